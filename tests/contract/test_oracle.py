"""A rollout over the ring equals one over lists that drop nothing, for any window, sink, chunk and rotation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.rollout import Chunk, Rollout
from tests import tiny, tolerance
from tests.contract.oracle import Book, play
from wan.cache import Ring
from wan.context import Cached
from wan.geometry import Span
from wan.ledger import CacheConfig, Ledger

FP64 = tiny.denoiser(dtype=torch.float64)
FP32 = tiny.denoiser(dtype=torch.float32)


@st.composite
def policies(draw):
    """Returns (config, chunk lengths, given first frame): windows from none to more than the video."""
    chunk, sink, history = draw(st.integers(1, 3)), draw(st.integers(0, 5)), draw(st.integers(0, 5))
    window = draw(st.sampled_from([-1, sink + chunk + history, sink + chunk + history]))
    lengths = [chunk, *draw(st.lists(st.integers(1, chunk), min_size=1, max_size=5))]
    lengths = draw(st.permutations(lengths))
    first = draw(st.booleans())
    config = CacheConfig(window, sink, draw(st.sampled_from(["write", "read"])))
    return config, ([1] if first else []) + lengths, first


def both_videos(model, config, lengths, first, batch, **fields):
    """Returns the video over the project's cache, and the oracle's."""
    dtype, borders = model.transformer.dtype, tiny.spans(*lengths)
    text, noise = tiny.condition(batch, dtype=dtype), tiny.noise(batch, dtype=dtype)
    start = tiny.latents(1, batch, dtype=dtype) if first else None
    book = Book(config.window_frames, config.sink_frames, max(lengths))
    wanted = play(model, text, borders, noise, tiny.SIGMAS, book, config.rope, start)
    given = [Chunk(Span(0, 1), start, given=True)] if first else []
    with torch.no_grad():
        rolls = tiny.rollout(model, config, **fields)
        video = tiny.video(rolls, text, borders[len(given) :], noise, given=given)
    return video, tiny.healthy(wanted)


@pytest.fixture
def poisoned(monkeypatch):
    """Fills new rings with not-a-number: whoever reads what was not written shows it."""
    make = Ring.__init__

    def poison(self, *arguments, **fields):
        make(self, *arguments, **fields)
        self.keys.fill_(torch.nan)
        self.values.fill_(torch.nan)

    monkeypatch.setattr(Ring, "__init__", poison)


def test_ring_equals_oracle(poisoned):
    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(policy=policies(), batch=st.integers(1, 3))
    def compare(policy, batch):
        video, wanted = both_videos(FP64, *policy, batch)
        assert tiny.error(video, wanted) < tolerance.EXACT

    compare()


def test_chunks_equal_oracle_without_grad():
    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(policy=policies())
    def compare(policy):
        video, wanted = both_videos(FP64, *policy, 1, training=True)
        assert tiny.error(video, wanted) < tolerance.EXACT

    compare()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(policy=policies())
def test_ring_keeps_the_frames_of_chunks(policy):
    """The two storages hold the same keys and values under the same frames."""
    config, lengths, _ = policy
    total, clean = sum(lengths), tiny.latents(sum(lengths), dtype=torch.float64)
    caches = [make(FP64, config, max(lengths), total) for make in (tiny.ring, tiny.kept_chunks)]
    for cache in caches:
        tiny.walk(FP64, cache, tiny.spans(*lengths), clean, tiny.condition(dtype=torch.float64))
    ring, chunks = caches
    assert ring.ledger.slot_of.keys() == chunks.ledger.slot_of.keys()
    for layer in range(FP64.spec.num_layers):
        for frame in ring.ledger.slot_of:
            pairs = zip(ring.frame(layer, frame), chunks.frame(layer, frame), strict=True)
            assert all(tiny.error(a, tiny.healthy(b)) < tolerance.EXACT for a, b in pairs)


CASE = ([1, 3, 3, 2, 3, 1, 3], True, 2)  # a given frame, ragged chunks; window 9 = sink 2 + history 4 + chunk 3


PASSES = 3 * len(CASE[0])  # two steps and the context pass of each chunk, one after the other


def case(rope: str, model=FP64):
    return both_videos(model, CacheConfig(9, 2, rope), *CASE)


@pytest.mark.parametrize("rope", ["write", "read"])
def test_ring_equals_oracle_in_fp32(rope, poisoned):
    assert tiny.error(*case(rope, FP32)) < tiny.rounding(PASSES)


def skip_context_pass(monkeypatch):
    def commit(self, state, condition, span, chunk, noise):
        with torch.no_grad():
            for cache in state.caches[0]:
                Cached(cache, span).commit()  # what the last denoising pass left in the scratch
        state.next_frame = span.stop

    monkeypatch.setattr(Rollout, "commit", commit)


class _Deaf:
    """A ledger that hears no commit."""

    def __init__(self, ledger):
        self.chunk_frames = ledger.chunk_frames

    def commit(self, plan) -> None:
        """Does nothing."""


def change_stored(monkeypatch, change):
    """Stores the slots of `change(writes, number of sink slots)`, while the book enters the right ones."""
    original = Ring.commit

    def commit(self, plan):
        book, self.ledger = self.ledger, _Deaf(self.ledger)
        original(self, replace(plan, writes=change(plan.writes, book.sink_frames)))
        self.ledger = book
        book.commit(plan)

    monkeypatch.setattr(Ring, "commit", commit)


def drop_sink(monkeypatch):
    change_stored(monkeypatch, lambda writes, sink: tuple(w for w in writes if w[1] >= sink))


def swap_slots(monkeypatch):
    """Invisible until an eviction takes the wrong frame, for the order of keys does not matter."""
    change_stored(
        monkeypatch, lambda writes, _: tuple(zip([i for i, _ in writes], [s for _, s in writes][::-1], strict=True))
    )


def shift_positions(monkeypatch):
    original = Ledger.plan

    def plan(self, span):
        made = original(self, span)
        by = int(span.start > 0)  # a shift of all positions would change nothing
        return replace(made, positions=range(made.positions.start + by, made.positions.stop + by))

    monkeypatch.setattr(Ledger, "plan", plan)


def lengthen_history(monkeypatch):
    original = Ledger.__init__

    def make(self, *arguments):
        original(self, *arguments)
        self.history_frames += 1

    monkeypatch.setattr(Ledger, "__init__", make)


MUTATIONS = [skip_context_pass, drop_sink, shift_positions, lengthen_history, swap_slots]


@pytest.mark.parametrize("rope", ["write", "read"])
@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda m: m.__name__)
def test_mutations_break_it(mutate, rope, monkeypatch):
    mutate(monkeypatch)
    assert tiny.error(*case(rope)) > tolerance.DIFFERENT


def test_time_order_of_keys_breaks_reading(monkeypatch):
    """Keys lie in the order of their slots; positions given in time order belong to other frames."""
    in_time_order = lambda self, plan, own: (replace(own, times=(*plan.positions, *plan.read_positions)),)  # noqa: E731
    monkeypatch.setattr(Ring, "key_runs", in_time_order)
    assert tiny.error(*case("read")) > tolerance.DIFFERENT


def test_reading_what_was_not_written_is_seen(poisoned, monkeypatch):
    original = Ring.write

    def write(self, *args):
        keys, values = original(self, *args)
        layer = args[0]
        one_more = keys.shape[1] + self.shape.frame_tokens
        begin = keys.storage_offset() - self.keys[layer].storage_offset()
        begin //= self.keys.stride(2)
        return tuple(store[layer, :, begin : begin + one_more] for store in (self.keys, self.values))

    monkeypatch.setattr(Ring, "write", write)
    assert tiny.error(*case("write")) == float("inf")
