"""The decoder of a video: order, overlap, the bound of its queue, its state, and what becomes of errors."""

from __future__ import annotations

import gc
import threading
import time

import pytest
import torch

from pipeline.decoder import DECODED_TOGETHER, WAITING, Decoder, DecodingStopped
from wan.codec.base import StreamingDecoder

CPU = torch.device("cpu")
KINDS = [None, CPU]


class Sum(StreamingDecoder):
    """Pixels are the running sum of all latents so far; `during(value)` is called before each decode."""

    strides, latent_channels = (4, 8, 8), 1

    def __init__(self, during=lambda value: None, frames_per_pass=1):
        self.during, self.frames_per_pass, self.calls = during, frames_per_pass, []

    def decode_stream(self, latents, state=None):
        """Returns (pixels, state)."""
        self.calls.append((latents.shape[1], threading.current_thread()))
        self.during(int(latents.flatten()[0]))
        pixels = latents.cumsum(1) + (0 if state is None else state[0])
        return pixels, (pixels[:, -1:],)


def chunks(count, frames=1):
    """Latents whose value is the number of the chunk, from 0."""
    return [torch.full((1, frames, 1, 1, 1), float(n)) for n in range(count)]


def values(tensors):
    """The numbers in some tensors, one list."""
    return [x for tensor in tensors for x in tensor.flatten().tolist()]


def run_aside(call):
    """Runs call() on a thread; returns (the event that it is over, the thread)."""
    over = threading.Event()
    thread = threading.Thread(target=lambda: (call(), over.set()))
    thread.start()
    return over, thread


@pytest.mark.parametrize("device", KINDS, ids=str)
def test_decoder_order(device):
    model = Sum(lambda n: time.sleep(0.002 * (3 - n % 3)))
    with Decoder(model, device) as decoder:
        futures = [decoder.submit(x) for x in chunks(9)]
    assert values(f.result() for f in futures) == torch.arange(9.0).cumsum(0).tolist()
    assert values(decoder.state) == [36.0] and decoder.seconds > 0.01


@pytest.mark.parametrize("device", KINDS, ids=str)
def test_decoder_goes_on_from_a_state(device):
    with Decoder(Sum(), device) as whole, Decoder(Sum(), device) as first:
        wanted = [whole.submit(x) for x in chunks(4, 3)]
        made = [first.submit(x) for x in chunks(4, 3)[:2]]
        first.drain()
        with Decoder(Sum(), device, first.state) as second:
            made += [second.submit(x) for x in chunks(4, 3)[2:]]
    assert values(f.result() for f in made) == values(f.result() for f in wanted)


def test_decoder_inline_is_done_at_once_and_by_the_caller():
    decoder = Decoder(Sum())
    assert decoder.submit(chunks(1)[0]).done()
    assert decoder.model.calls == [(1, threading.current_thread())]


@pytest.mark.parametrize("device", KINDS, ids=str)
@pytest.mark.parametrize(("frames_per_pass", "lengths"), [(1, [DECODED_TOGETHER, DECODED_TOGETHER, 2]), (6, [6, 4])])
def test_decoder_parts_of_a_long_chunk(device, frames_per_pass, lengths):
    parts = []
    with Decoder(Sum(frames_per_pass=frames_per_pass), device) as decoder:
        future = decoder.submit(chunks(2, 10)[1], lambda made: [parts.append((x, y)) for x, y in made] and "written")
    assert future.result() == "written" and [n for n, _ in decoder.model.calls] == lengths
    assert values(x for x, _ in parts) == [1.0] * 10 and values(y for _, y in parts) == list(range(1, 11))


def test_decoder_decodes_while_the_caller_goes_on():
    """Each waits for the other, which only two threads can do."""
    inside, go_on = threading.Event(), threading.Event()
    with Decoder(Sum(lambda n: inside.set() or go_on.wait(30)), CPU) as decoder:
        future = decoder.submit(chunks(1)[0])
        assert inside.wait(30) and not future.done()
        go_on.set()


def test_decoder_queue_is_bounded_where_decoding_stalls():
    free, decoder = threading.Event(), Decoder(Sum(lambda n: free.wait(30)), CPU)
    over, thread = run_aside(lambda: [decoder.submit(x) for x in chunks(WAITING)])
    thread.join(30)
    assert over.is_set(), "the next chunk waited though the queue had room"
    over, thread = run_aside(lambda: decoder.submit(chunks(1)[0]))
    assert not over.wait(0.2), "the caller ran ahead without bound"
    free.set()
    thread.join(30)
    decoder.drain()
    decoder.close()
    assert over.is_set() and len(decoder.model.calls) == WAITING + 1


def test_decoder_queue_is_bounded_where_the_reader_of_parts_stalls():
    """As a file on a slow disk: the network waits behind it, and so does the caller once the queue is full."""
    free, written, model = threading.Event(), [], Sum()
    with Decoder(model, CPU) as decoder:

        def write(parts):
            for _, pixels in parts:
                assert free.wait(30)
                written.append(pixels)

        over, thread = run_aside(lambda: [decoder.submit(x, write) for x in chunks(WAITING + 1)])
        assert not over.wait(0.2) and len(model.calls) == 1 and not written
        free.set()
        thread.join(30)
    assert values(written) == [0.0, 1.0, 3.0]


def test_decoder_reader_of_pixels_that_stalls_holds_nothing_up():
    """Pixels that nobody asks for are their future's; later chunks are decoded all the same, and stay in order."""
    decoder = Decoder(Sum(), CPU)
    futures = [decoder.submit(x) for x in chunks(10 * WAITING)]
    decoder.drain()
    assert all(f.done() for f in futures)
    assert values(f.result() for f in futures) == torch.arange(10.0 * WAITING).cumsum(0).tolist()
    decoder.close()


@pytest.mark.parametrize("device", KINDS, ids=str)
def test_decoder_error_comes_out_of_the_block(device):
    def fail(n):
        if n == 2:
            raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"), Decoder(Sum(fail), device) as decoder:
        for x in chunks(3):
            decoder.submit(x)
    assert values(decoder.state) == [1.0], "the state is that before the chunk that failed"


def test_decoder_error_stops_what_waits():
    last = threading.Event()

    def fail(n):
        assert last.wait(30)
        raise ValueError("no memory")

    decoder = Decoder(Sum(fail), CPU)
    futures = [decoder.submit(x) for x in chunks(2)]
    last.set()
    with pytest.raises(ValueError, match="no memory"):
        futures[0].result(30)
    with pytest.raises(DecodingStopped):
        futures[1].result(30)
    assert decoder.failed and decoder.state is None and len(decoder.model.calls) == 1
    with pytest.raises(ValueError, match="no memory"):
        decoder.submit(chunks(1)[0])
    with pytest.raises(DecodingStopped):
        decoder.drain()
    with pytest.raises(DecodingStopped):
        decoder.submit(chunks(1)[0])
    decoder.close()


@pytest.mark.parametrize("device", KINDS, ids=str)
def test_decoder_error_of_a_reader_leaves_the_state_before_the_chunk(device):
    """Also behind its last part, where the network has gone on already."""

    def write(parts):
        list(parts)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"), Decoder(Sum(), device) as decoder:
        decoder.submit(chunks(2)[1])
        decoder.submit(chunks(2)[1], write)
    assert values(decoder.state) == [1.0]


def test_decoder_ends_its_thread_where_the_caller_fails():
    inside, model = threading.Event(), Sum()
    model.during = lambda n: (inside.set(), time.sleep(0.1))
    with pytest.raises(KeyboardInterrupt), Decoder(model, CPU) as decoder:
        futures = [decoder.submit(x) for x in chunks(2)]
        assert inside.wait(30)
        raise KeyboardInterrupt
    assert not model.calls[0][1].is_alive()
    assert futures[0].done() and futures[1].cancelled() and len(model.calls) == 1


def test_decoder_that_is_dropped_ends_its_thread():
    model = Sum()
    Decoder(model, CPU).submit(chunks(1)[0]).result(30)
    gc.collect()
    (_, thread) = model.calls[0]
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.gpu
def test_decoder_on_a_gpu_of_its_own_sees_finished_latents():
    """The other device may be the same GPU: the latents are read on another stream than the one that makes them."""
    device, model = torch.device("cuda", torch.cuda.device_count() - 1), Sum()
    x = torch.randn(2048, 2048, device="cuda:0")
    with Decoder(model, device) as decoder:
        futures = []
        for n in range(6):
            y = x
            for _ in range(20):
                y = torch.tanh(y @ x / 45)
            futures.append(decoder.submit((y + n)[None, None, None]))
            del y
        pixels = [f.result() for f in futures]
    assert all(p.device == device for p in pixels)
    sums = [p.double().sum().item() for p in pixels]
    for n, total in enumerate(sums):
        assert total == pytest.approx((n + 1) * sums[0] + n * (n + 1) / 2 * x.numel(), rel=1e-6)


@pytest.mark.gpu
def test_decoder_on_the_cpu_sees_finished_latents_of_a_gpu():
    x = torch.randn(2048, 2048, device="cuda:0")
    with Decoder(Sum(), CPU) as decoder:
        futures = [decoder.submit((torch.tanh(x @ x / 45) + n)[None, None, None]) for n in range(6)]
    step = torch.tanh(x @ x / 45).cpu()
    for n, future in enumerate(futures):
        wanted = (n + 1) * step + n * (n + 1) / 2
        assert future.result().device == CPU and torch.allclose(future.result()[0, 0, 0], wanted, atol=1e-3)
