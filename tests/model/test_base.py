"""What the losses share: frames that count over the parts of a batch, precision, noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.base import count_frames, draw_noise, wide
from tests import tiny
from tests.model.stand_in import BOUND, normal, sample
from utils.rng import Rng

FRAMES = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=4, max_size=4)


@settings(max_examples=60, deadline=None)
@given(FRAMES, st.sampled_from([1, 2, 4]))
@example([[False] * 4] * 4, 2)
def test_base_parts_of_a_batch_add_up_to_its_mean(frames, parts):
    counted, values = torch.tensor(frames), normal("values", batch=4)[:, :, 0, 0, 0]
    whole, size = sample(batch=4), 4 // parts
    total = 0.0
    for start in range(0, 4, size):
        own = slice(start, start + size)
        part = replace(whole, index=range(4)[own], whole=range(4))
        number = count_frames(part, counted[own], lambda index: counted[list(index)])
        total += (values[own] * counted[own]).sum() / number / parts
    wanted = [v for v, c in zip(values.flatten().tolist(), counted.flatten().tolist(), strict=True) if c]
    assert abs(total - sum(wanted) / max(len(wanted), 1)) < BOUND


def test_base_whole_batch_counts_its_own_frames():
    counted = torch.tensor([[True, False, True, True], [False] * 4])
    for whole in ((), range(2)):
        assert count_frames(replace(sample(), whole=whole), counted, None) == 3
    assert count_frames(sample(), torch.zeros(2, 4, dtype=torch.bool), None) == 1


@pytest.mark.parametrize(("given_", "kept"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_base_wide_widens_half_precision_only(given_, kept):
    x = normal("x").to(getattr(torch, given_))
    assert wide(x).dtype == getattr(torch, kept) and tiny.error(wide(x), x) == 0


def test_base_noise_is_that_of_step_name_and_sample():
    whole, rng = sample(batch=3), Rng(4)
    noise = draw_noise(whole, rng)
    assert noise.dtype == torch.float64 and noise.shape == whole.latents.shape
    for row in range(3):
        key = ("sample", 0, "noise", row)
        assert torch.equal(noise[row].float(), rng.normal(whole.latents.shape[1:], *key))
    moved = replace(sample(batch=1), index=[2])
    assert torch.equal(draw_noise(moved, rng)[0], noise[2])
    for other in (draw_noise(whole, rng, "other"), draw_noise(replace(whole, step=1), rng), draw_noise(whole, Rng(5))):
        assert not torch.equal(other, noise)
