"""Frames that are given fill the cache as the same frames did when they were made; so whatever follows is the same."""

from __future__ import annotations

import pytest
import torch

from pipeline.executor import PlainExecutor
from pipeline.rollout import Chunk
from pipeline.track import Fixed
from tests import tiny
from wan.geometry import Span
from wan.ledger import CacheConfig

MODEL, TEXT = tiny.denoiser(), tiny.condition()
CONFIGS = [CacheConfig(-1), *(CacheConfig(9, sink, rope) for sink in (0, 2, 3) for rope in ("write", "read"))]
BORDERS = tiny.spans(3, 3, 3, 3, 3)


def caches(state):
    """Every kept key and value: branch, frame -> [layers, 2, B, tokens, N, E]."""
    layers = range(MODEL.spec.num_layers)
    return {
        (number, frame): torch.stack([torch.stack(cache.frame(layer, frame)) for layer in layers])
        for number, cache in enumerate(state.caches[0])
        for frame in cache.ledger.slot_of
    }


@torch.no_grad()
def made(config, count):
    """(the first chunks of a video, the caches behind them)"""
    rolls = tiny.rollout(MODEL, config, guidance=2.0)
    state = tiny.start(rolls, BORDERS)
    chunks = list(PlainExecutor(rolls).run(state, Fixed(TEXT), BORDERS[:count], tiny.noise()))
    return chunks, caches(state)


@torch.no_grad()
def given(config, chunks):
    """The caches behind given chunks, before anything is made."""
    rolls = tiny.rollout(MODEL, config, guidance=2.0)
    state = tiny.start(rolls, BORDERS)
    list(PlainExecutor(rolls).run(state, Fixed(TEXT), (), tiny.noise(), chunks))
    return caches(state)


def same(a, b) -> bool:
    """Whether two caches keep the same frames with equal keys and values, bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_given_frames_fill_the_cache_as_generated(config, count):
    chunks, wanted = made(config, count)
    tiny.healthy(torch.cat([c.latents for c in chunks], 1))
    assert same(given(config, chunks), wanted)


def test_given_frames_left_out_or_moved_show():
    """A chunk that is left out, a border that is moved, latents that differ by a hair: none passes for the video."""
    config = CacheConfig(9, 2)
    chunks, wanted = made(config, 4)
    video = torch.cat([c.latents for c in chunks], 1)
    moved = [Span(0, 1), Span(1, 3), *(c.span for c in chunks[1:])]
    assert not same(given(config, chunks[:3]), wanted)
    assert not same(given(config, [Chunk(s, video[:, s.start : s.stop]) for s in moved]), wanted)
    near = [Chunk(c.span, c.latents * (1 + 1e-5)) for c in chunks]
    assert not same(given(config, near), wanted)
