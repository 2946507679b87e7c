"""The ledger against its definition, for any window, sink and chunk lengths."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from tests.contract.oracle import Book
from utils.config.field import check
from wan.geometry import Span
from wan.ledger import CacheConfig, Ledger


@st.composite
def videos(draw):
    """Returns (config, largest chunk, video's length or None, chunk lengths)."""
    chunk, sink, history = draw(st.integers(1, 5)), draw(st.integers(0, 9)), draw(st.integers(0, 9))
    lengths = draw(st.lists(st.integers(1, chunk), min_size=1, max_size=12))
    bounded = draw(st.booleans())
    config = CacheConfig(sink + history + chunk if bounded else -1, sink, draw(st.sampled_from(["write", "read"])))
    return config, chunk, None if bounded else sum(lengths) + draw(st.integers(0, 3)), lengths


def plans(config, chunk, max_frames, lengths):
    """Yields (ledger, plan) before each commit."""
    ledger = Ledger(config, chunk, max_frames)
    for span in tiny.spans(*lengths):
        plan = ledger.plan(span)
        yield ledger, plan
        ledger.commit(plan)


@given(videos())
def test_what_is_read_is_the_definition(video):
    config, chunk, _, _ = video
    book = Book(config.window_frames, config.sink_frames, chunk)
    for _, plan in plans(*video):
        assert list(plan.read) == book.seen(plan.span.start)
        if config.window_frames != -1:
            assert len(plan.read) + chunk <= config.window_frames


@given(videos())
def test_positions(video):
    for _, plan in plans(*video):
        frames = [*plan.read, *range(plan.span.start, plan.span.stop)]
        wanted = frames if video[0].rope == "write" else list(range(len(frames)))
        assert [*plan.read_positions, *plan.positions] == wanted


@given(videos())
def test_slots_are_a_filled_block_and_a_frame_never_moves(video):
    home: dict[int, int] = {}
    for ledger, plan in plans(*video):
        assert sorted(plan.slots) == list(range(len(plan.read))), "contiguous with the scratch"
        assert len(plan.read) <= ledger.num_slots
        where = dict(zip(plan.read, plan.slots, strict=True))
        assert all(where[frame] == home.setdefault(frame, slot) for frame, slot in where.items())
        assert all(where[f] == f for f in where if f < ledger.sink_frames)


@given(videos())
def test_a_commit_writes_free_slots_alone(video):
    for ledger, plan in plans(*video):
        kept = {s for f, s in zip(plan.read, plan.slots, strict=True) if f not in plan.evict}
        targets = [slot for _, slot in plan.writes]
        assert len(set(targets)) == len(targets) and not kept & set(targets)
        assert all(0 <= slot < ledger.num_slots for slot in targets)
        assert [i for i, _ in plan.writes] == sorted({i for i, _ in plan.writes})
        assert all(0 <= i < len(plan.span) for i, _ in plan.writes)
        assert set(plan.evict) <= set(plan.read) and all(f >= ledger.sink_frames for f in plan.evict)


@given(videos())
def test_planning_changes_nothing(video):
    for ledger, plan in plans(*video):
        state = json.dumps(ledger.state())
        assert ledger.plan(plan.span) == plan
        assert json.dumps(ledger.state()) == state


@settings(max_examples=50)
@given(videos(), st.data())
def test_a_restored_book_goes_on_alike(video, data):
    config, chunk, max_frames, lengths = video
    cut = data.draw(st.integers(0, len(lengths) - 1))
    for number, (ledger, plan) in enumerate(plans(*video)):
        if number == cut:
            other = Ledger(config, chunk, max_frames)
            other.load_state(json.loads(json.dumps(ledger.state())))
        if number >= cut:
            assert other.plan(plan.span) == plan
            other.commit(plan)


def test_an_example():
    """Window 12, sink 3, chunks of 3: 3 + 6 + 3 frames."""
    made = [plan for _, plan in plans(CacheConfig(12, 3), 3, None, [3] * 6)]
    assert made[2].read == (0, 1, 2, 3, 4, 5) and made[2].evict == ()
    assert made[3].read == (0, 1, 2, 3, 4, 5, 6, 7, 8) and made[3].evict == (3, 4, 5)
    assert made[3].writes == ((0, 3), (1, 4), (2, 5))
    assert made[4].read == (0, 1, 2, 6, 7, 8, 9, 10, 11) and made[4].slots == (0, 1, 2, 6, 7, 8, 3, 4, 5)
    assert made[4].positions == range(12, 15)
    read = [plan for _, plan in plans(CacheConfig(12, 3, "read"), 3, None, [3] * 6)]
    assert read[4].positions == range(9, 12) and read[5].positions == range(9, 12)


def test_a_short_chunk_sees_no_longer_history():
    made = [plan for _, plan in plans(CacheConfig(6), 3, None, [3, 3, 1, 3])]
    assert made[2].read == (3, 4, 5) and made[3].read == (4, 5, 6)


def test_a_sink_longer_than_the_video_is_the_video():
    made = [plan for _, plan in plans(CacheConfig(-1, 50), 3, 6, [3, 3])]
    assert made[1].read == (0, 1, 2) and made[1].writes == ((0, 3), (1, 4), (2, 5))


@pytest.mark.parametrize(
    ("config", "chunk", "message"),
    [
        (CacheConfig(-1), 3, "window_frames is -1 and the video has no known length; set a window"),
        (CacheConfig(5, 3), 3, r"window_frames 5 is smaller than sink_frames 3 \+ chunk 3; write at least 6"),
        (CacheConfig(2), 3, "write at least 3"),
        (CacheConfig(9, -1), 3, "sink_frames is -1; write 0 or more"),
        (CacheConfig(0), 3, "window_frames is 0; write -1"),
        (CacheConfig(-2), 3, "window_frames is -2"),
        (CacheConfig(9, 3, "both"), 3, "rope is 'both'; write 'write' or 'read'"),
    ],
)
def test_wrong_knobs(config, chunk, message):
    with pytest.raises(ValueError, match=message):
        Ledger(config, chunk)


def test_the_smallest_window_is_sink_and_chunk():
    made = [plan for _, plan in plans(CacheConfig(6, 3), 3, None, [3, 3, 3])]
    assert made[2].read == (0, 1, 2)
    assert made[1].writes == () and made[1].evict == ()


@pytest.mark.parametrize(
    ("span", "message"),
    [
        (Span(3, 6), r"span \[3, 6\) does not start at the next frame 0"),
        (Span(0, 4), r"span \[0, 4\) must hold 1 to 3 frames"),
        (Span(0, 0), "must hold 1 to 3 frames"),
    ],
)
def test_wrong_spans(span, message):
    with pytest.raises(ValueError, match=message):
        Ledger(CacheConfig(9), 3).plan(span)


def test_a_plan_is_committed_once():
    ledger = Ledger(CacheConfig(9), 3)
    plan = ledger.plan(Span(0, 3))
    ledger.commit(plan)
    with pytest.raises(AssertionError, match="once, in order"):
        ledger.commit(plan)


def test_a_video_longer_than_told_is_refused():
    """`everything` must not silently become a window of the told length."""
    ledger = Ledger(CacheConfig(-1), 3, max_frames=6)
    for span in (Span(0, 3), Span(3, 6)):
        ledger.commit(ledger.plan(span))
    with pytest.raises(ValueError, match="length"):
        ledger.plan(Span(6, 9))


def reached(end: int, **knobs):
    """Returns (ledger, plan) of a recache before frame `end` that reaches 21 frames back; window 9, sink 3."""
    ledger = Ledger(CacheConfig(9, 3, recache="bidirectional", recache_frames=21, **knobs), 3)
    for span in tiny.spans(*[3] * (end // 3)):
        ledger.commit(ledger.plan(span))
    return ledger, ledger.plan_recache()


def test_a_recache_that_reaches_beyond_the_window_begins_the_sink_there():
    ledger, plan = reached(45, keep_sink=False)
    assert list(plan.frames) == [24, 25, 26, 39, 40, 41, 42, 43, 44] == list(plan.positions)
    ledger.commit(plan)
    assert list(ledger.slot_of.items()) == [(24, 0), (25, 1), (26, 2), (42, 3), (43, 4), (44, 5)]
    assert ledger.plan(Span(45, 48)).read == (24, 25, 26, 42, 43, 44)
    assert list(reached(12, keep_sink=True)[1].frames) == [0, 1, 2, 6, 7, 8, 9, 10, 11], "from the start: a new sink"
    kept = reached(24, keep_sink=True)[1]
    assert (list(kept.frames), kept.read) == ([18, 19, 20, 21, 22, 23], (0, 1, 2)), "beyond its reach the old one stays"
    assert list(reached(45, keep_sink=False, rope="read")[1].positions) == list(range(9))


@pytest.mark.parametrize("window", [-1, 30])
def test_a_recache_reaches_at_least_the_window(window):
    with pytest.raises(ValueError, match="recache_frames is 21; write 0"):
        check(CacheConfig(window, recache_frames=21))
