"""Same-step flow matching, and frames that do not count."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from model.base import Sample, draw_noise
from model.config import FlowConfig
from tests import tiny
from tests.model.test_flow import MEAN, MODEL, RNG, build, roles, sample
from wan.generation import GenerationConfig, PortraitConfig
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


def test_the_reference_stands_ahead_of_a_drawn_chunk():
    """Drawn by step, equal for every part of it; never before where it was pinned; the velocity follows."""
    portrait = PortraitConfig(distance=(4, 40))
    generation = GenerationConfig(cache=CacheConfig(9, content="same_step"), portrait=portrait)
    spans = tiny.spans(3, 3, 3)
    condition = tiny.avatar(2, 9)
    geometry = tiny.S2V_GEOMETRY
    model = tiny.s2v_denoiser()
    batch = Sample(0, tiny.latents(9, 2, geometry=geometry), condition, range(2), spans, ["", ""])
    networks = SimpleNamespace(generator=model)
    rest, drawn = (FlowConfig(mode="same_step", distance=name).build(generation) for name in ("rest", "drawn"))
    places = [drawn.draw_reference(replace(batch, step=step), RNG) for step in range(60)]
    assert {p for p in places} <= set(range(4, 47)) and len(set(places)) > 15 and max(places) > 35
    step = next(step for step, place in enumerate(places) if place > 30)
    batch, seen = replace(batch, step=step), []
    handle = model.transformer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        still, moved = (loss(batch, networks, RNG)[0].item() for loss in (rest, drawn))
    handle.remove()
    times = [[run.positions[0] for run in runs if run.kind == "reference"] for runs in seen]
    assert times == [[(30,)], [(places[step],)]] and still != moved
    early = next(step for step, place in enumerate(places) if place < 30)
    with torch.no_grad():
        still, moved = (loss(replace(batch, step=early), networks, RNG)[0].item() for loss in (rest, drawn))
    assert still == moved
    assert "write distance=rest" in "".join(FlowConfig(distance="drawn").problems())
