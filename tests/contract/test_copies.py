"""What a chunk copies does not depend on the window; rotating keys when they are read costs one copy of them, no more.

Counted by the benchmark's own counter, to the byte, over a whole chunk of a rollout whose window is full.
"""

from __future__ import annotations

import functools

import pytest
import torch

from pipeline.executor import PlainExecutor
from pipeline.rollout import Chunk
from pipeline.track import Fixed
from scripts.bench.infer import SCOPES, count_copies
from tests import tiny
from wan.cache import Ring
from wan.geometry import Span
from wan.ledger import CacheConfig

MODEL, CHUNK, SINK = tiny.denoiser(), 3, 2
PASSES = len(tiny.SIGMAS) + 1  # and the context pass
LAYERS, WIDTH, UNIT = tiny.SPEC.num_layers, tiny.SPEC.dim, tiny.GEOMETRY.frame_tokens
BYTES = 4  # fp32


@torch.no_grad()
def copied(window: int, rope: str) -> dict[str, int]:
    """Returns scope -> bytes copied by one chunk after the window is full; given chunks fill it."""
    rollout = tiny.rollout(MODEL, CacheConfig(window, SINK, rope))
    *first, last = tiny.spans(*[CHUNK] * (window // CHUNK))
    given = [Chunk(span, tiny.latents(CHUNK, seed=span.start), given=True) for span in first]
    borders = [last, Span(window, window + CHUNK)]
    state = tiny.start(rollout, borders, given=given)
    chunks = PlainExecutor(rollout).run(state, Fixed(tiny.condition()), borders, tiny.noise(), given)
    for _ in (*first, last):
        tiny.healthy(next(chunks).latents)
    assert len(state.caches[0][0].ledger.slot_of) == window - CHUNK, "the window is not full"
    return count_copies(functools.partial(next, chunks))[0]


kept = functools.cache(copied)  # of the code as it is


def keys(frames: int) -> int:
    """Returns the bytes of the keys of so many frames, of all layers and passes of a chunk."""
    return PASSES * LAYERS * frames * UNIT * WIDTH * BYTES


def tables(frames: int) -> int:
    """Returns the bytes of cosines and sines of so many frames, made twice: for denoising and for the context pass.

    Those of time are put together in float64 and cast, before each token gets its own.
    """
    time = tiny.SPEC.head_dim - 4 * (tiny.SPEC.head_dim // 6)
    return 2 * frames * (UNIT * tiny.SPEC.head_dim * BYTES + time * (8 + BYTES))


def test_rotating_when_written_copies_the_same_for_any_window():
    short, long = kept(12, "write"), kept(48, "write")
    assert short == long
    assert short["rotated keys"] == 0
    assert short["cache write"] == 2 * keys(CHUNK), "own keys and values of every pass"
    assert short["commit"] == 2 * keys(CHUNK) // PASSES, "those of the context pass, once"
    assert short["angle tables"] == tables(CHUNK)
    assert set(short) == set(SCOPES) and short["other"] > 0 == short["decode"]


@pytest.mark.parametrize("window", [12, 48])
def test_rotating_when_read_adds_one_copy_of_the_keys(window):
    write, read = kept(window, "write"), kept(window, "read")
    assert read["rotated keys"] == keys(window)
    for same in ("cache write", "commit"):
        assert read[same] == write[same]
    assert write["other"] - read["other"] == keys(CHUNK), "own keys are turned among the others, not apart"


def test_nothing_else_grows_when_read():
    short, long = kept(12, "read"), kept(48, "read")
    grown = {scope: long[scope] - short[scope] for scope in SCOPES if long[scope] != short[scope]}
    by_frame = grown.pop("angle tables") / tables(36)  # positions change places as the ring turns
    assert grown == {"rotated keys": keys(36)}
    assert by_frame <= 2, "at most gathered and joined"


PUT = Ring.write


def cloned_view(self, *args):
    """What the ancestors do: the cache is copied for every layer and pass."""
    return tuple(view.clone() for view in PUT(self, *args))


def cloned_values(self, *args):
    """One copy too many: the values move with the keys."""
    keys, values = PUT(self, *args)
    return keys, values.clone()


@pytest.mark.parametrize("fault", [cloned_view, cloned_values])
@pytest.mark.parametrize("rope", ["write", "read"])
def test_a_copy_too_many_shows(fault, rope, monkeypatch):
    """The twin: with one more copy in the cache path the same count grows with the window."""
    right = kept(12, rope)
    monkeypatch.setattr(Ring, "write", fault)
    short, long = copied(12, rope), copied(24, rope)
    assert long["cache write"] > short["cache write"] > right["cache write"]
