"""A session's decoder: on a thread of its own as exact as in line; what a stalled or failed one does to the video."""

from __future__ import annotations

import json
import threading
import time

import pytest
import torch

from pipeline.decoder import WAITING, DecodingStopped
from pipeline.session import Session
from tests import tiny
from tests.pipeline.test_session import StreamedMean, equal, make_pipeline, started
from tests.pipeline.test_session_errors import OutOfMemory, breaks
from wan.ledger import CacheConfig

CPU = torch.device("cpu")


class Mean(StreamedMean):
    """A decoder that may have a device of its own; it fails before its call number `fail`, and notes its threads."""

    def __init__(self, own_device=None, fail=()):
        self.own_device, self.fail, self.threads, self.before = own_device, fail, [], lambda: None

    def decode_stream(self, latents, state=None):
        """Returns (pixels, state)."""
        self.threads.append(threading.current_thread())
        self.before()
        if len(self.threads) in self.fail:
            raise OutOfMemory
        return super().decode_stream(latents, state)


def session_with(decoder, **fields):
    """A session at the start of "one", decoded by `decoder`."""
    pipeline = make_pipeline(CacheConfig(9, 2))
    pipeline.bundle.decoder = decoder
    return started(pipeline, **fields)


def steps(session, count):
    """The next chunks, asked for one by one."""
    return [session.step() for _ in range(count)]


def steps_ahead(session, count):
    """The next chunks, whose pixels are asked for when all are generated."""
    made = [session.step_ahead() for _ in range(count)]
    return [tiny_chunk(chunk, pixels.result(30)) for chunk, pixels in made]


def tiny_chunk(chunk, pixels):
    """A chunk with its pixels."""
    return type(chunk)(chunk.span, chunk.latents, chunk.given, chunk.recache_seconds, pixels)


def all_equal(a, b):
    """Whether two lists of chunks are equal bit by bit."""
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("go", [steps, steps_ahead])
def test_session_with_its_own_device_is_as_exact_as_in_line(go):
    """Switches, a snapshot, a rewind and a fork on the way."""
    videos = []
    for device in (None, CPU):
        session = session_with(decoder := Mean(device), given=tiny.latents(3))
        made = go(session, 3)
        session.switch_prompt("two")
        before = session.snapshot()
        made += go(session, 2)
        session.restore(before)
        other = session.fork()
        videos.append((made, go(session, 3), go(other, 3), before))
        assert (threading.main_thread() in decoder.threads) == (device is None)
        assert len(set(decoder.threads)) == (1 if device is None else 3), "each video has a thread"
    inline, apart = videos
    for a, b in zip(inline[:3], apart[:3], strict=True):
        assert all_equal(a, b)
    assert inline[3]["book"] == apart[3]["book"]
    assert all(torch.equal(x, apart[3]["tensors"][name]) for name, x in inline[3]["tensors"].items())


def test_session_step_ahead_does_not_wait_for_pixels_until_the_queue_is_full():
    decoder, free = Mean(CPU), threading.Event()
    decoder.before = lambda: free.wait(60)
    session, made = session_with(decoder), []
    for _ in range(WAITING):
        made.append(session.step_ahead())
    assert session.next_frame == 3 * WAITING and not any(pixels.done() for _, pixels in made)
    full = threading.Thread(target=lambda: made.append(session.step_ahead()))
    full.start()
    full.join(0.3)
    assert full.is_alive(), "the generation ran away from the decoder"
    free.set()
    full.join(60)
    wanted = steps(session_with(Mean()), WAITING + 1)
    assert all_equal([tiny_chunk(c, p.result(60)) for c, p in made], wanted)


def test_session_reader_that_stalls_holds_nothing_up():
    session = session_with(Mean(CPU))
    made = [session.step_ahead() for _ in range(4 * WAITING)]
    wanted = steps(session_with(Mean()), 4 * WAITING)
    assert all_equal([tiny_chunk(c, p.result(60)) for c, p in made], wanted)
    session.snapshot()
    session.step()
    assert len(session._pending) == 0, "a session holds no pixels that are decoded"


@pytest.mark.parametrize("device", [None, CPU], ids=str)
def test_session_chunk_whose_decoding_failed_comes_with_the_next_step(device):
    wanted = steps(session_with(Mean()), 6)
    decoder = Mean(device, fail=[4])
    session = session_with(decoder)
    assert all_equal(steps(session, 3), wanted[:3])
    with pytest.raises(OutOfMemory):
        session.step()
    assert session.next_frame == 9, "the chunk has not been shown yet"
    other = session.fork()
    assert all_equal(steps(session, 3), wanted[3:]) and all_equal(steps(other, 3), wanted[3:])


def test_session_chunks_behind_a_failed_one_come_again_in_order():
    """Also through a snapshot as bytes would carry it, taken while they wait."""
    wanted, free, raised = steps(session_with(Mean()), 6), threading.Event(), []
    decoder = Mean(CPU, fail=[2])
    decoder.before = lambda: free.wait(60)
    session = session_with(decoder)
    made = [session.step_ahead() for _ in range(2)]

    def ask():
        """The queue is full: waits for the first two, and meets the failure of the second now or with its pixels."""
        try:
            session.step_ahead()[1].result(60)
        except (OutOfMemory, DecodingStopped) as error:
            raised.append(error)

    third = threading.Thread(target=ask)
    third.start()
    while session._next < 9:  # until it is generated
        time.sleep(0.01)
    free.set()
    third.join(60)
    assert len(raised) == 1
    assert equal(tiny_chunk(made[0][0], made[0][1].result(60)), wanted[0])
    with pytest.raises(OutOfMemory):
        made[1][1].result(60)
    snapshot = session.snapshot()
    book = json.loads(json.dumps(snapshot["book"]))
    assert (session.next_frame, book["next_frame"]) == (3, 3) and book["undecoded"][0] == [3, 6]
    other = Session(session.pipeline)
    other.restore({"tensors": snapshot["tensors"], "book": book})
    assert other.next_frame == 3
    assert all_equal(steps(session, 5), wanted[1:]) and all_equal(steps(other, 5), wanted[1:])


def test_session_generation_that_failed_behind_an_undecoded_chunk_keeps_its_prompt():
    """Both must be made good: the chunk is decoded again, and the switch that had begun comes at its chunk."""
    video = session_with(Mean())
    wanted = steps(video, 1)
    video.switch_prompt("two")
    video.switch_prompt("three")
    wanted += steps(video, 3)
    free, decoder = threading.Event(), Mean(CPU, fail=[1])
    decoder.before = lambda: free.wait(60)
    session = session_with(decoder)
    _, pixels = session.step_ahead()
    session.switch_prompt("two")
    session.switch_prompt("three")
    executor = session._executor
    breaks(session, 2)
    with pytest.raises(OutOfMemory):
        session.step_ahead()
    session._executor = executor
    free.set()
    with pytest.raises(OutOfMemory):
        pixels.result(60)
    other = session.fork()
    assert all_equal(steps(session, 4), wanted) and all_equal(steps(other, 4), wanted)


@pytest.mark.parametrize("end", ["close", "start"])
def test_session_that_ends_gives_up_what_waits(end):
    decoder, free = Mean(CPU), threading.Event()
    decoder.before = lambda: free.wait(60)
    session = session_with(decoder)
    made = [session.step_ahead() for _ in range(2)]
    threading.Timer(0.1, free.set).start()
    session.close() if end == "close" else session.start("two")
    assert made[0][1].done() and made[1][1].cancelled() and len(decoder.threads) == 1
    assert not decoder.threads[0].is_alive()


def test_session_without_pixels_has_no_decoder():
    decoder = Mean(CPU)
    pipeline = make_pipeline()
    pipeline.bundle.decoder = decoder
    session = Session(pipeline, decode=False)
    session.start("one", given=tiny.latents(3))
    chunk, pixels = session.step_ahead()
    assert chunk.pixels is None and pixels is None and decoder.threads == []
