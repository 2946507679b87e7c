"""Same-step flow matching, and frames that do not count."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.base import draw_noise
from model.config import FlowConfig
from tests.model.test_flow import MEAN, MODEL, RNG, build, roles, sample
from wan.generation import GenerationConfig
from wan.ledger import CacheConfig
from wan.schedule import Schedule


def test_same_step_needs_a_cache_for_each_step():
    config, clean = FlowConfig(mode="same_step"), GenerationConfig()
    assert "write content: same_step" in "".join(config.problems_with(clean))
    read = GenerationConfig(cache=CacheConfig(6, rope="read", content="same_step"))
    assert not list(config.problems_with(read)), "clips that fit the window are one masked forward"
    loss = build(config, cache=read.cache)
    assert str(loss.context(sample(batch=1, num_frames=6), 2).mask).splitlines()[::2] == [
        "##....##",
        "####..##",
        "########",
        "......##",
    ]
    with pytest.raises(ValueError, match="clips of 8 latent frames drop frames of a window of 6"):
        loss.context(sample(batch=1, num_frames=8))


def test_frames_that_do_not_count_carry_no_loss():
    """Samples weigh alike, however many of their frames count."""
    batch, loss = sample(batch=2), build(FlowConfig())
    masks = torch.tensor([[True] * 4, [False, False, True, True]])
    with torch.no_grad():
        some, every = (loss(replace(batch, frame_mask=mask), roles(), RNG)[0].item() for mask in (masks, None))
        noise = draw_noise(batch, RNG)
        sigma = loss.draw_sigma(batch, RNG)
        x = Schedule(5.0).diffuse(batch.latents, noise, sigma)
        miss = MODEL(x, sigma, batch.condition, loss.context(batch)) - (noise - batch.latents)
    frames = miss.square().mean((2, 3, 4))
    wanted = (frames[0].mean() + frames[1, 2:].mean()) / 2
    assert some == pytest.approx(wanted.item(), rel=MEAN) and some != pytest.approx(every, rel=1e-4)
