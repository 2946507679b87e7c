"""Score identity distillation: loss and gradient in closed form for affine scores."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import ScoreConfig, SidConfig
from tests import tiny
from tests.model.stand_in import BOUND, DIFFERENT, Affine, draws, rows, sample, text_mean
from tests.model.stand_in import SIGMAS as GIVEN

TEACHER, CRITIC = (0.7, -1.3), (-0.4, 0.9)  # slope and push
LAST_CHUNK = torch.tensor([False, False, True, True])


def run(alpha=1.0, w_real=4.0, mask=None):
    """Returns (loss, its gradient in the latents, sample, noise)."""
    roles = SimpleNamespace(teacher=Affine(*TEACHER), critic=Affine(*CRITIC))
    batch, (recording, (noise,)) = sample(frame_mask=mask), draws()
    loss, _ = SidConfig(alpha, ScoreConfig(real_guidance=w_real, shift=1.0)).build()(batch, roles, recording)
    recording.finish()
    loss.backward()
    return loss.detach(), batch.latents.grad, batch, noise


def written_out(batch, noise, alpha=1.0, w=4.0, mask=None, through=1.0):
    """Returns (loss, gradient); x0 of a score is keep * x_sigma + constant. through=0: scores as constants."""
    x, s = batch.latents.detach(), rows(GIVEN)
    noisy = (1 - s) * x + s * noise
    text, null = text_mean(batch.condition.text), text_mean(batch.condition.null_text)
    keep_r, keep_f = 1 - s.double() * TEACHER[0], 1 - s.double() * CRITIC[0]
    r = keep_r * noisy - s * TEACHER[1] * (null + w * (text - null))
    f = keep_f * noisy - s * CRITIC[1] * text
    scale = (x - r).abs().mean((1, 2, 3, 4), keepdim=True)
    product = (r - f) * ((r - x) - alpha * (r - f)) / scale
    dr, df = through * keep_r * (1 - s), through * keep_f * (1 - s)  # of x, through x_sigma
    slope = ((dr - df) * ((r - x) - alpha * (r - f)) + (r - f) * ((dr - 1) - alpha * (dr - df))) / scale
    counted = torch.ones(4, dtype=torch.bool) if mask is None else mask
    loss = product[:, counted].mean()
    return loss, slope * counted[None, :, None, None, None] / product[:, counted].numel()


@pytest.mark.parametrize("mask", [None, LAST_CHUNK], ids=["all frames", "last chunk"])
@pytest.mark.parametrize("alpha", [1.0, 1.2, 0.0])
def test_sid_loss_and_gradient_written_out(alpha, mask):
    loss, gradient, batch, noise = run(alpha, mask=mask)
    wanted, slope = written_out(batch, noise, alpha, mask=mask)
    assert abs(loss - wanted) < BOUND and tiny.error(gradient, slope) < BOUND


@settings(max_examples=30, deadline=None)
@given(st.floats(-2, 2), st.floats(0, 8))
def test_sid_gradient_under_any_alpha_and_guidance(alpha, w):
    loss, gradient, batch, noise = run(alpha, w)
    wanted, slope = written_out(batch, noise, alpha, w)
    assert abs(loss - wanted) < BOUND and tiny.error(gradient, slope) < BOUND


@pytest.mark.parametrize(
    ("wrong", "loss_too"),
    [({"alpha": 1.2}, True), ({"alpha": -1.0}, True), ({"w": 3.0}, True), ({"through": 0.0}, False)],
    ids=["alpha", "sign of alpha", "guidance", "scores as constants"],
)
def test_sid_differs_from_wrong_formulas(wrong, loss_too):
    loss, gradient, batch, noise = run()
    other, slope = written_out(batch, noise, **wrong)
    assert tiny.error(gradient, slope) > DIFFERENT
    assert (abs(loss - other) > DIFFERENT) == loss_too
