"""The adversarial objective: losses, penalties and gradients in closed form for a quadratic discriminator."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from model.config import GanConfig, ScoreConfig
from tests import tiny
from tests.model.stand_in import BOUND, DIFFERENT, SIGMAS, draws, gradients, normal, rows, sample, text_mean
from utils.config.field import check

CURVE = 0.3
WIDTHS = {"r1_sigma": 0.1, "r2_sigma": 0.2}


class Quadratic(nn.Module):
    """D(x) = k.x + curve/2 |x|^2 + mean(text) + sigma of the first frame, one logit a row."""

    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(0.2 * normal("k", batch=1)[0])
        self.curve = nn.Parameter(torch.tensor(CURVE, dtype=torch.float64))
        self.calls = []

    def forward(self, critic, x, sigma, condition):
        self.calls.append((critic, len(x), condition))
        value = (self.k * x).flatten(1).sum(1) + self.curve / 2 * x.square().flatten(1).sum(1)
        return (value + text_mean(condition.text).flatten() + sigma[:, 0])[:, None]


def run(side: str, noises: int, **knobs):
    """Returns (loss, sample, discriminator, noises, metrics) of the `generator`'s or the `critic`'s loss."""
    roles = SimpleNamespace(discriminator=Quadratic(), critic=object())
    batch, (recording, drawn) = sample(real=normal("real")), draws(noises=noises)
    loss = GanConfig(0.7, 0.9, score=ScoreConfig(shift=1.0), **knobs).build()
    value, metrics = (loss if side == "generator" else loss.critic)(batch, roles, recording)
    recording.finish()
    value.backward()
    assert all(call[0] is roles.critic for call in roles.discriminator.calls)
    return value.detach(), batch, roles.discriminator, drawn, metrics


def noised(x, noise):
    s = rows(SIGMAS)
    return (1 - s) * x.detach() + s * noise


def logit(d, x, batch):
    """Writes D out for every row, [B]."""
    value = (d.k.detach() * x).sum((1, 2, 3, 4)) + CURVE / 2 * x.square().sum((1, 2, 3, 4))
    return value + text_mean(batch.condition.text).flatten() + torch.tensor(SIGMAS)


def column(values):
    return values[:, None, None, None, None]


@pytest.mark.parametrize("relativistic", [False, True])
def test_gan_generator_loss_and_gradient_written_out(relativistic):
    loss, batch, d, (noise_fake, noise_real), metrics = run("generator", 2, relativistic=relativistic)
    fake, real = noised(batch.latents, noise_fake), noised(batch.real, noise_real)
    on_fake, on_real = logit(d, fake, batch), logit(d, real, batch)
    margin = on_fake - on_real if relativistic else on_fake
    assert abs(loss - 0.7 * torch.log1p(torch.exp(-margin)).mean()) < BOUND
    wanted = -0.7 * column(torch.sigmoid(-margin)) * (d.k + CURVE * fake) * (1 - rows(SIGMAS)) / 2
    assert tiny.error(batch.latents.grad, wanted.detach()) < BOUND
    assert tiny.error(batch.latents.grad, -wanted.detach()) > DIFFERENT
    assert abs(metrics["logit_fake"] - on_fake.mean()) < BOUND and abs(metrics["logit_real"] - on_real.mean()) < BOUND


@pytest.mark.parametrize("relativistic", [False, True])
def test_gan_discriminator_loss_and_gradient_written_out(relativistic):
    loss, batch, d, (noise,), metrics = run("critic", 1, relativistic=relativistic)
    fake, real = noised(batch.latents, noise), noised(batch.real, noise)  # the same noise
    on_fake, on_real = logit(d, fake, batch), logit(d, real, batch)
    if relativistic:
        wanted = torch.log1p(torch.exp(on_fake - on_real)).mean()
        down = up = column(torch.sigmoid(on_fake - on_real))
    else:
        wanted = torch.log1p(torch.exp(-on_real)).mean() + torch.log1p(torch.exp(on_fake)).mean()
        down, up = column(torch.sigmoid(-on_real)), column(torch.sigmoid(on_fake))
    assert abs(loss - 0.9 * wanted) < BOUND
    k, curve = gradients(d)
    assert tiny.error(k, 0.9 * (up * fake - down * real).mean(0)) < BOUND
    assert tiny.error(k, 0.9 * (down * real - up * fake).mean(0)) > DIFFERENT
    halves = (up * fake.square() - down * real.square()) / 2
    assert abs(curve - 0.9 * halves.sum() / 2) < BOUND
    assert metrics["r1"] == 0 and metrics["r2"] == 0 and abs(metrics["gan"] - loss) < BOUND


def penalty(d, x, noise, width: float, weight: float):
    """Writes (penalty, gradient in k, in the curve) out: D is quadratic, so its slope is known."""
    slope = (d.k.detach() * noise).sum((1, 2, 3, 4))
    bend = (x * noise + width / 2 * noise.square()).sum((1, 2, 3, 4))
    slope = slope + CURVE * bend
    return (
        weight * slope.square().mean(),
        2 * weight * (column(slope) * noise).mean(0),
        2 * weight * (slope * bend).mean(),
    )


@pytest.mark.parametrize(("r1", "r2"), [(0.5, 0.0), (0.0, 0.25), (0.5, 0.25)])
def test_gan_penalties_written_out(r1, r2):
    loss, batch, d, (noise, *moves), metrics = run(
        "critic", 1 + bool(r1) + bool(r2), r1_weight=r1, r2_weight=r2, **WIDTHS
    )
    plain, _, plain_d, *_ = run("critic", 1)
    wanted, k, curve = plain, *gradients(plain_d)
    for name, weight, x in (("r1", r1, batch.real), ("r2", r2, batch.latents)):
        if not weight:
            assert metrics[name] == 0
            continue
        move, width = moves.pop(0), WIDTHS[f"{name}_sigma"]
        value, in_k, in_curve = penalty(d, noised(x, noise), move, width, weight)
        assert abs(metrics[name] - value) < BOUND
        other = batch.latents if x is batch.real else batch.real
        assert abs(metrics[name] - penalty(d, noised(other, noise), move, width, weight)[0]) > DIFFERENT
        wanted, k, curve = wanted + value, k + in_k, curve + in_curve
    assert moves == []
    assert abs(loss - wanted) < BOUND and abs(metrics["critic_loss"] - wanted) < BOUND
    assert tiny.error(gradients(d)[0], k) < BOUND and abs(gradients(d)[1] - curve) < BOUND


def test_gan_asks_for_fake_and_real_in_one_forward():
    _, batch, d, *_ = run("critic", 2, r1_weight=1.0)
    (_, both, condition), (_, moved, alone) = d.calls
    assert (both, moved) == (4, 2)
    assert torch.equal(condition.text, batch.condition.text.repeat(2, 1, 1))
    assert condition.key != batch.condition.key and alone is batch.condition


def test_gan_wrong_width_is_refused():
    with pytest.raises(ValueError, match="r2_sigma is 0.0; write"):
        check(GanConfig(r2_sigma=0.0))
