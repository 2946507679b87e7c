"""Generation from noised clean data: what the generator is shown, what comes back, and its gradient."""

from __future__ import annotations

import pytest
import torch

from model.noised import generate_from_data
from tests import tiny
from tests.model.stand_in import BOUND, DIFFERENT, Affine, gradients, normal, rows, sample, text_mean
from wan.ledger import CacheConfig
from wan.schedule import Schedule, sigma_table

SLOPE, PUSH, PULL = -0.4, 0.9, 0.25
SIGMA = torch.tensor([[0.625, 0.625, 0.0, 0.0], [0.3, 0.3, 1.0, 1.0]])  # a chunk of the first row is left clean


def run(teacher_forcing=False, rounding="none", cache=None, frames=4):
    """Returns (x0, generator, sample, clean, noise)."""
    batch, clean, noise = sample(frames=frames), normal("clean", frames=frames), normal("noise", frames=frames)
    sigma = SIGMA.repeat(1, frames // 4)
    generator, schedule = Affine(SLOPE, PUSH, PULL), Schedule(5.0, rounding)
    cache = cache or CacheConfig()
    x0 = generate_from_data(
        generator, clean, noise, sigma, batch.condition, batch.spans, schedule, cache, teacher_forcing
    )
    return x0, generator, batch, clean, noise


def written_out(batch, clean, noise, pull=0.0, sigma=SIGMA):
    """Returns (x, x0) where `sigma` is what the schedule computes with."""
    s = rows(sigma)
    x = torch.where(rows(SIGMA) > 0, (1 - s) * clean + s * noise, clean)
    return x, x - s * (SLOPE * x + PUSH * text_mean(batch.condition.text) + pull * clean)


@pytest.mark.parametrize("teacher_forcing", [False, True])
def test_noised_x0_and_gradient_written_out(teacher_forcing):
    x0, generator, batch, clean, noise = run(teacher_forcing)
    x, wanted = written_out(batch, clean, noise, PULL if teacher_forcing else 0.0)
    assert tiny.error(x0, wanted) < BOUND
    x0.sum().backward()
    s, text = rows(SIGMA), text_mean(batch.condition.text).expand_as(x)
    slope, push, pull = gradients(generator)
    assert abs(slope + (s * x).sum()) < BOUND and abs(push + (s * text).sum()) < BOUND
    assert abs(pull + (s * clean).sum()) < BOUND if teacher_forcing else pull is None
    assert tiny.error(x0, written_out(batch, clean, noise, -PULL)[1]) > DIFFERENT
    assert tiny.error(x0, written_out(batch, noise, clean)[1]) > DIFFERENT


def test_noised_chunks_without_noise_stay_clean_by_the_table():
    x0, generator, batch, clean, noise = run(rounding="table")
    table = sigma_table(5.0).tolist()
    rounded = torch.tensor([[min(table, key=lambda entry, s=s: abs(entry - s)) for s in row] for row in SIGMA.tolist()])
    assert rounded[0, 2] > 0  # the table has no 0
    assert tiny.error(x0, written_out(batch, clean, noise, sigma=rounded)[1]) < BOUND
    x, sigma, *_ = generator.calls[0]
    assert torch.equal(x[0, 2:], clean[0, 2:]) and torch.equal(sigma, SIGMA)
    assert tiny.error(x[0, :2], clean[0, :2]) > DIFFERENT


@pytest.mark.parametrize(
    ("teacher_forcing", "picture"),
    [
        (False, ["##......", "####....", "#.####..", "#...####"]),
        (True, ["........##......", "##........##....", "#.##........##..", "#...##........##"]),
    ],
)
def test_noised_chunks_see_what_the_cache_would_hold(teacher_forcing, picture):
    _, generator, batch, clean, _ = run(teacher_forcing, cache=CacheConfig(5, 1), frames=8)
    (_, _, condition, context, shown) = generator.calls[0]
    lines = str(context.mask).splitlines()
    assert lines[8 if teacher_forcing else 0 :: 2] == picture and condition is batch.condition
    if teacher_forcing:
        assert torch.equal(shown.x, clean) and not shown.sigma.any() and shown.sigma.shape == (2, 8)
    else:
        assert shown is None
