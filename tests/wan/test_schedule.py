"""Sigma arithmetic: shift, mixing, velocity and x0, tables and snapping."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny, tolerance
from wan.schedule import NUM_TRAIN_TIMESTEPS, Schedule, shift_sigma, sigma_table, step_sigmas, weight_table

SHIFTS = st.floats(0.2, 20)
UNIT = st.floats(0, 1)


@given(SHIFTS, UNIT)
def test_shift_keeps_the_ends_and_has_an_inverse(shift, sigma):
    assert (shift_sigma(0.0, shift), shift_sigma(1.0, shift)) == (0.0, pytest.approx(1.0))
    assert shift_sigma(shift_sigma(sigma, shift), 1 / shift) == pytest.approx(sigma, abs=1e-9)
    assert shift_sigma(sigma, 1.0) == sigma


def test_the_table():
    table = sigma_table(5.0)
    assert table.shape == (NUM_TRAIN_TIMESTEPS,) and table[0] == 1
    assert (table.diff() < 0).all()
    assert table[-1].item() == pytest.approx(0.00498, abs=1e-5), "the ancestors' last sigma is not 0"


def test_weights_are_a_bell_with_mean_one():
    weights, table = weight_table(5.0), sigma_table(5.0)
    assert weights.mean().item() == pytest.approx(1, abs=tolerance.rounding(terms=1000, sums=3))
    assert weights.min() == 0 and abs(table[weights.argmax()] - 0.5) < 0.01
    sigma = table[[3, 700]]
    assert torch.equal(Schedule(5.0).weight(sigma), weights[[3, 700]])


@pytest.mark.parametrize("rounding", ["none", "integer", "table"])
@pytest.mark.parametrize("shape", [(2,), (2, 3)], ids=["per sample", "per frame"])
def test_velocity_and_x0_are_inverse(rounding, shape, float64):
    schedule = Schedule(5.0, rounding)
    x0, noise = tiny.latents(3, 2, 1), tiny.latents(3, 2, 2)
    sigma = torch.linspace(0.2, 0.95, 6, dtype=torch.float64)[: 6 if len(shape) == 2 else 2].reshape(shape)
    x = tiny.healthy(schedule.diffuse(x0, noise, sigma))
    velocity = noise - x0
    assert tiny.error(schedule.velocity_to_x0(x, velocity, sigma), x0) < tolerance.EXACT
    assert tiny.error(schedule.x0_to_velocity(x, x0, sigma), velocity) < tolerance.EXACT
    assert tiny.error(schedule.velocity_to_x0(x, velocity, sigma + 0.01), x0) > 1e-3


def test_sigma_is_per_frame(float64):
    x0, noise = tiny.latents(3, 1, 1), tiny.latents(3, 1, 2)
    x = Schedule().diffuse(x0, noise, torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.float64))
    assert torch.equal(x[:, 0], x0[:, 0]) and torch.equal(x[:, 2], noise[:, 2])
    assert tiny.error(x[:, 1], (x0[:, 1] + noise[:, 1]) / 2) < tolerance.EXACT


def test_half_precision_is_mixed_in_fp32():
    x0, noise = (tiny.latents(3, 1, seed).bfloat16() for seed in (1, 2))
    sigma = torch.tensor([0.3])
    wanted = 0.7 * x0.float() + 0.3 * noise.float()
    assert torch.equal(Schedule().diffuse(x0, noise, sigma), wanted.bfloat16())
    assert Schedule().velocity_to_x0(x0.float(), noise, sigma).dtype == torch.bfloat16
    wide = Schedule().diffuse(x0.double(), noise.double(), sigma.double())
    assert wide.dtype == torch.float64 and tiny.error(wide, wanted) < tolerance.rounding(terms=2, sums=2, magnitude=4)


def test_snapping():
    sigma = torch.tensor([0.93749, 0.0004, 1.0])
    assert torch.equal(Schedule().rounded(sigma), sigma)
    assert torch.equal(Schedule(rounding="integer").rounded(sigma), torch.tensor([0.937, 0.0, 1.0]))
    table = Schedule(5.0, "table").rounded(sigma)
    assert all(x in sigma_table(5.0) for x in table)
    assert table[0] == 0.9375 and table[1] == sigma_table(5.0)[-1] and table[2] == 1


@given(SHIFTS, UNIT)
def test_the_nearest_entry_is_taken(shift, sigma):
    shift = round(shift, 2)
    given = Schedule(shift, "table").rounded(torch.tensor([sigma], dtype=torch.float64))
    distances = (sigma_table(shift).double() - sigma).abs()
    assert (given - sigma).abs().item() == pytest.approx(distances.min().item(), abs=1e-12)


def test_published_steps():
    assert step_sigmas([1000, 750, 500, 250], 5.0) == pytest.approx((1.0, 0.9375, 0.8333333, 0.625))
    assert step_sigmas([1000, 757, 522], 5.0, warp=False) == (1.0, 0.757, 0.522)
    assert step_sigmas([1000, 500], 1.0) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("steps", "message"),
    [([], "must lie in"), ([1000, 0], "must lie in"), ([1001], "must lie in"), ([500, 750], "must descend")]
    + [([500, 500], "must descend")],
)
def test_wrong_steps(steps, message):
    with pytest.raises(ValueError, match=message):
        step_sigmas(steps, 5.0)


def test_wrong_knobs():
    with pytest.raises(ValueError, match="rounding is 'round'; write one of"):
        Schedule(rounding="round")
    with pytest.raises(ValueError, match="shift is 0"):
        Schedule(0)
