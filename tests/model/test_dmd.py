"""Distribution matching: the gradient of the generated latents, written out row by row."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import DmdConfig, ScoreConfig
from tests import tiny
from tests.model.stand_in import BOUND, DIFFERENT, SIGMAS, Affine, draws, gradients, sample, text_mean

TEACHER, CRITIC = (0.7, -1.3), (-0.4, 0.9)  # slope and push
LAST_CHUNK = torch.tensor([False, False, True, True])


def run(mask=None, real_guidance=4.0, fake_guidance=1.0, teacher=TEACHER, critic=CRITIC, batch=2):
    """Returns (loss, its gradient in the latents, networks, sample, noise)."""
    score = ScoreConfig(real_guidance=real_guidance, fake_guidance=fake_guidance, shift=1.0)
    roles = SimpleNamespace(teacher=Affine(*teacher), critic=Affine(*critic))
    batch_of = sample(frame_mask=mask)
    recording, (noise,) = draws()
    loss, metrics = DmdConfig(score).build()(batch_of, roles, recording)
    recording.finish()
    loss.backward()
    return loss.detach(), batch_of.latents.grad, roles, batch_of, noise, metrics


def direction(sample, noise, w_real=4.0, w_fake=1.0, normalise=lambda x, real: (x - real).abs().mean()):
    """Writes (x0 of the critic - x0 of the teacher) / mean |x - x0 of the teacher| out, row by row."""
    found = []
    for row, s in enumerate(SIGMAS):
        s = torch.tensor(s)  # fp32, as the clock
        x = sample.latents.detach()[row]
        noisy = (1 - s) * x + s * noise[row]
        text, null = (text_mean(t)[row] for t in (sample.condition.text, sample.condition.null_text))

        def x0(network, w, s=s, noisy=noisy, text=text, null=null):
            slope, push = network
            with_text, without = (noisy - s * (slope * noisy + push * words) for words in (text, null))
            return without + w * (with_text - without)

        real, fake = x0(TEACHER, w_real), x0(CRITIC, w_fake)
        found.append((fake - real) / normalise(x, real))
    return torch.stack(found)


def spread(g, mask):
    """Writes dL/dx out: g over the number of elements of the counted frames, 0 elsewhere."""
    mask = torch.ones(g.shape[1], dtype=torch.bool) if mask is None else mask
    counted = g.shape[0] * int(mask.sum()) * g[0, 0].numel()
    return g * mask[None, :, None, None, None] / counted


@pytest.mark.parametrize("mask", [None, LAST_CHUNK], ids=["all frames", "last chunk"])
def test_dmd_gradient_is_direction_over_numel(mask):
    loss, gradient, _, given_, noise, metrics = run(mask)
    g = direction(given_, noise)
    assert tiny.error(gradient, spread(g, mask)) < BOUND
    counted = g if mask is None else g[:, mask]
    assert abs(loss - 0.5 * counted.square().mean()) < BOUND
    assert abs(metrics["dmd_gradient"] - g.abs().mean()) < BOUND  # of all frames
    assert abs(metrics["sigma"] - sum(SIGMAS) / 2) < 1e-6  # fp32


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 8), st.floats(0, 8), st.lists(st.booleans(), min_size=4, max_size=4).filter(any))
def test_dmd_gradient_under_any_guidance_and_mask(w_real, w_fake, frames):
    mask = torch.tensor(frames)
    _, gradient, _, given_, noise, _ = run(mask, w_real, w_fake)
    assert tiny.error(gradient, spread(direction(given_, noise, w_real, w_fake), mask)) < BOUND


@pytest.mark.parametrize(
    "wrong",
    [
        lambda s, n: -direction(s, n),
        lambda s, n: direction(s, n, normalise=lambda x, real: 1),
        lambda s, n: direction(s, n, normalise=lambda x, real: (x - real)[LAST_CHUNK].abs().mean()),
        lambda s, n: direction(s, n, normalise=lambda x, real: (x - real).square().mean().sqrt()),
        lambda s, n: direction(s, n, w_real=3.0),
        lambda s, n: direction(s, n, w_fake=4.0),
    ],
    ids=["sign", "no normaliser", "normaliser of the mask", "quadratic normaliser", "teacher", "critic guided"],
)
def test_dmd_gradient_differs_from_wrong_formulas(wrong):
    _, gradient, _, given_, noise, _ = run(LAST_CHUNK)
    assert tiny.error(gradient, spread(wrong(given_, noise), LAST_CHUNK)) > DIFFERENT


def test_dmd_without_difference_has_no_gradient():
    loss, gradient, _, _, _, _ = run(critic=TEACHER, fake_guidance=4.0)
    assert loss < BOUND and gradient.abs().max() < BOUND


def test_dmd_scores_get_no_gradient():
    _, _, roles, given_, _, _ = run()
    assert gradients(roles.teacher, roles.critic) == [None] * 6
    teacher, critic = roles.teacher.calls, roles.critic.calls
    assert [len(teacher), len(critic)] == [2, 1]  # guided, not guided
    texts = [call[2].text for call in teacher]
    assert torch.equal(texts[0], given_.condition.text) and torch.equal(texts[1], given_.condition.null_text)


def test_dmd_score_that_is_not_finite_shows_in_the_loss():
    loss, *_ = run(teacher=(float("nan"), 0.0))
    assert not loss.isfinite()
