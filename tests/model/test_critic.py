"""The critic's flow objective: loss and gradient of its weights in closed form."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from model.config import DmdConfig, ScoreConfig, SidConfig
from model.critic import CriticLoss
from model.score import Score
from tests import tiny
from tests.model.stand_in import BOUND, DIFFERENT, SIGMAS, Affine, draws, gradients, rows, sample, text_mean
from wan.schedule import sigma_table

SLOPE, PUSH = -0.4, 0.9
LAST_CHUNK = torch.tensor([False, False, True, True])


def run(mask=None, **knobs):
    """Returns (loss, gradient of slope and push, sample, noise) for a sample without gradient."""
    roles, batch = SimpleNamespace(critic=Affine(SLOPE, PUSH)), sample(frame_mask=mask)
    batch.latents.requires_grad_(False)
    recording, (noise,) = draws()
    loss, metrics = CriticLoss(Score(ScoreConfig(shift=1.0, **knobs)))(batch, roles, recording)
    recording.finish()
    loss.backward()
    assert torch.equal(metrics["loss"], loss.detach()) and torch.equal(metrics["critic_loss"], loss.detach())
    return loss.detach(), torch.stack(gradients(roles.critic)[:2]), batch, noise


def written_out(batch, noise, mask=None, mix=None, back=None, target=lambda noise, x: noise - x):
    """Returns (loss, gradient). mix, back: sigma by which x is noised; that by which a velocity becomes x0."""
    x, mix = batch.latents, rows(SIGMAS if mix is None else mix)
    ratio = 1.0 if back is None else rows(back).double() / mix.double()  # to x0 by one table, back by the other
    noisy, text = (1 - mix) * x + mix * noise, text_mean(batch.condition.text).expand_as(x)
    counted = torch.ones(4, dtype=torch.bool) if mask is None else mask
    miss = ((SLOPE * noisy + PUSH * text) * ratio - target(noise, x))[:, counted]
    slope, push = (2 * (miss * (ratio * of)[:, counted]).mean() for of in (noisy, text))
    return miss.square().mean(), torch.stack((slope, push))


@pytest.mark.parametrize("mask", [None, LAST_CHUNK], ids=["all frames", "last chunk"])
def test_critic_loss_and_gradient_written_out(mask):
    loss, gradient, batch, noise = run(mask)
    wanted, slopes = written_out(batch, noise, mask)
    assert abs(loss - wanted) < BOUND and tiny.error(gradient, slopes) < BOUND


def test_critic_loss_under_the_published_tables():
    def nearest(shift, sigma):
        return min(sigma_table(shift).tolist(), key=lambda entry: abs(entry - sigma))

    loss, gradient, batch, noise = run(rounding="table")
    mix, back = ([nearest(shift, s) for s in SIGMAS] for shift in (5.0, 8.0))
    wanted, slopes = written_out(batch, noise, None, mix, back)
    assert abs(loss - wanted) < BOUND and tiny.error(gradient, slopes) < BOUND
    assert abs(loss - written_out(batch, noise)[0]) > DIFFERENT


@pytest.mark.parametrize(
    "wrong",
    [{"target": lambda noise, x: x - noise}, {"target": lambda noise, x: noise}, {"mask": LAST_CHUNK}],
    ids=["sign", "noise", "mask"],
)
def test_critic_loss_differs_from_wrong_formulas(wrong):
    loss, gradient, batch, noise = run()
    other, slopes = written_out(batch, noise, **wrong)
    assert abs(loss - other) > DIFFERENT and tiny.error(gradient, slopes) > DIFFERENT


def test_critic_is_unguided_whatever_the_generator_asks():
    knobs = ScoreConfig(fake_guidance=3.0, shift=1.0)
    for config in (DmdConfig(knobs), SidConfig(1.0, knobs)):
        roles, batch = SimpleNamespace(critic=Affine(SLOPE, PUSH)), sample()
        recording, (noise,) = draws()
        loss, _ = config.build().critic(batch, roles, recording)
        assert len(roles.critic.calls) == 1
        assert abs(loss.detach() - written_out(batch, noise)[0]) < BOUND
