"""The scores: drawn noise levels, noised latents, guided x0."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import ScoreConfig
from model.score import Score, per_sample_scale
from tests import tiny
from tests.model.stand_in import BOUND, DIFFERENT, SIGMAS, Affine, draws, normal, rows, sample, text_mean
from utils.config.field import check
from utils.rng import Recording, Rng
from wan.schedule import sigma_table

# Of the published code, shift 5: time on the grid -> time that the networks see, clamped to 20..980.
PUBLISHED = {0: 20, 1: 20, 4: 20, 5: 24.510, 100: 357.143, 250: 625, 500: 833.333, 900: 978.261, 908: 980, 999: 980}


def drawn(times, **knobs) -> torch.Tensor:
    """Returns the sigma of rows whose recorded draws are `times`."""
    recording = Recording([torch.tensor(times)[:, None]])
    sigma = Score(ScoreConfig(**knobs)).draw_sigma(sample(batch=len(times)), recording, "any")
    assert sigma.shape == (len(times), 4) and torch.equal(sigma, sigma[:, :1].expand(-1, 4))
    return sigma[:, 0]


def test_score_times_match_the_published_ones():
    assert tiny.error(1000 * drawn(list(PUBLISHED)), torch.tensor(list(PUBLISHED.values()))) < 1e-3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.floats(0.2, 10), st.floats(0, 0.4), st.floats(0.5, 1))
def test_score_sigma_is_shifted_and_clamped(time, shift, low, high):
    wanted = min(max(shift * time / (1000 + (shift - 1) * time), low), high)
    assert drawn([time], shift=shift, low=low, high=high).item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("knobs", "exit_range", "times"),
    [
        ({}, (750, 500), (0, 1000)),
        ({"first": 20, "last": 30}, None, (20, 30)),
        ({"from_exit": True}, (750, 500), (500, 1000)),
        ({"to_exit": True}, (750, 500), (0, 750)),
        ({"from_exit": True, "to_exit": True}, (750, 500), (500, 750)),
        ({"from_exit": True, "to_exit": True, "first": 20, "last": 30}, None, (20, 30)),
    ],
)
def test_score_times_lie_between_the_exit_steps(knobs, exit_range, times):
    score = Score(ScoreConfig(shift=1.0, low=0.0, high=1.0, **knobs))
    sigma = 1000 * score.draw_sigma(sample(batch=2000, frames=2, exit_range=exit_range), Rng(3), "any")
    low, high = times
    assert low <= sigma.min() + 1e-3 and sigma.max() < high - 0.5
    assert sigma.min() < low + 0.05 * (high - low) and sigma.max() > high - 0.05 * (high - low) - 1


def test_score_noise_is_mixed_at_the_drawn_sigma():
    batch, (recording, (noise,)) = sample(), draws()
    noised = Score(ScoreConfig(shift=1.0)).noised(batch, recording, "any")
    s = rows(SIGMAS)
    assert tiny.error(noised.x, (1 - s) * batch.latents + s * noise) < BOUND
    assert (
        torch.equal(noised.noise, noise) and tiny.error(noised.sigma, torch.tensor(SIGMAS)[:, None].expand(2, 4)) == 0
    )


def test_score_draws_are_keyed_by_name_step_and_sample():
    score, rng = Score(ScoreConfig()), Rng(2)
    first = score.noised(sample(batch=4), rng, "generator")
    again = score.noised(replace(sample(batch=2), index=range(2, 4)), rng, "generator")
    assert torch.equal(again.noise, first.noise[2:]) and torch.equal(again.sigma, first.sigma[2:])
    for other in (
        score.noised(sample(batch=4), rng, "critic"),
        score.noised(replace(sample(batch=4), step=1), rng, "generator"),
    ):
        assert not torch.equal(other.noise, first.noise) and not torch.equal(other.sigma, first.sigma)


def test_score_guidance_goes_from_null_to_text():
    batch, (recording, _), score = sample(), draws(), Score(ScoreConfig(shift=1.0))
    noised = score.noised(batch, recording, "any")
    null, text, guided, swapped = (
        score.x0(Affine(0.7, -1.3), noised, condition, w)
        for condition, w in (
            (batch.condition.null(), 1.0),
            (batch.condition, 1.0),
            (batch.condition, 3.0),
            (replace(batch.condition.null(), null_text=batch.condition.text), 3.0),
        )
    )
    assert tiny.error(guided, text + 2 * (text - null)) < BOUND
    assert tiny.error(swapped, guided) > DIFFERENT


@settings(max_examples=40, deadline=None)
@given(st.floats(-2, 10), st.sampled_from(["none", "table"]))
def test_score_x0_is_guided(w, rounding):
    batch, (recording, _), network = sample(), draws(), Affine(0.7, -1.3)
    score = Score(ScoreConfig(shift=1.0, rounding=rounding))
    noised = score.noised(batch, recording, "any")
    table = sigma_table(8.0)
    s = rows(
        [min(table.tolist(), key=lambda entry, s=s: abs(entry - s)) for s in SIGMAS] if rounding == "table" else SIGMAS
    )
    x = noised.x
    text, null = text_mean(batch.condition.text), text_mean(batch.condition.null_text)
    wanted = x - s * (0.7 * x - 1.3 * (null + w * (text - null)))
    assert tiny.error(score.x0(network, noised, batch.condition, w), wanted) < BOUND
    assert len(network.calls) == (1 if w == 1 else 2)


def test_score_scale_is_of_each_sample():
    x = normal("x")
    wanted = [sum(abs(v) for v in row.flatten().tolist()) / row.numel() for row in x]
    assert tiny.error(per_sample_scale(x).flatten(), torch.tensor(wanted, dtype=torch.float64)) < BOUND
    assert per_sample_scale(x).shape == (2, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"first": 10, "last": 10}, "must rise"),
        ({"last": 1001}, "last is 1001; write 0 to 1000"),
        ({"shift": 0.0}, "shift is 0.0; write"),
        ({"low": 0.9, "high": 0.1}, "must rise within 0..1"),
        ({"rounding": "nearest"}, "rounding is 'nearest'"),
    ],
)
def test_score_wrong_knobs_are_refused(wrong, words):
    check(ScoreConfig())
    with pytest.raises(ValueError, match=words):
        check(ScoreConfig(**wrong))
