"""Decodes finished latents in order: in line, or on a worker thread while the next chunk is generated."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from wan.codec.base import DecoderState, StreamingDecoder

WAITING = 2  # chunks that may be unfinished; more would only hold more latents
DECODED_TOGETHER = 4  # latent frames of a long chunk, so that a whole clip needs no more memory than a stream

Parts = Iterator[tuple[torch.Tensor, torch.Tensor]]  # (latents, pixels) of a few frames of a chunk


class DecodingStopped(RuntimeError):
    """An earlier chunk could not be decoded, so that this one is not decoded either."""


class Decoder:
    """Decodes the chunks of one video, or of a batch of videos, one after another.

        with Decoder(vae, vae.own_device) as decoder:
            pixels = decoder.submit(latents)                   # a future; pixels.result() waits
            decoder.submit(latents, write)                     # write(parts) instead of keeping all pixels

    device: None = in line: done when `submit` returns, and what fails is raised there. Else on a thread and, on a GPU,
    a CUDA stream of its own: the host never waits for the latents, which are copied behind the work that makes them.
    At most `waiting` chunks are unfinished there; `submit` waits while there are as many. An error comes out of the
    chunk's future, and of a later `submit`, of `drain`, or where the block ends. After it no further chunk is decoded,
    so the output has no gap.
    state: of the stream, behind the last chunk that was decoded. Another one may be put there while nothing is waiting.
    seconds: spent in the network so far. failed: True after an error.
    """

    def __init__(
        self,
        model: StreamingDecoder,
        device: torch.device | None = None,
        state: DecoderState | None = None,
        waiting: int = WAITING,
    ):
        self.model, self.device, self.state, self.waiting = model, device, state, waiting
        self.seconds, self.failed = 0.0, False
        self._queue = deque[Future]()
        self._thread = None if device is None else ThreadPoolExecutor(1, "decoder")
        self._stream = torch.cuda.Stream(device) if device is not None and device.type == "cuda" else None

    def submit(self, latents_BFCHW: torch.Tensor, consume: Callable[[Parts], Any] | None = None) -> Future:
        """Decodes the next chunk, or queues it; returns the future of its pixels [B, P, 3, H, W].

        consume(parts): called where the chunk is decoded; must take all parts, and its result is the future's.
        Pixels on a GPU are to be read on its default stream. Errors: `DecodingStopped` after an earlier error.
        """
        consume = consume or self._join
        if self._thread is None:
            done: Future = Future()
            done.set_result(self._decode(latents_BFCHW, None, consume))
            return done
        while self._queue and (len(self._queue) >= self.waiting or self._queue[0].done()):
            self._queue.popleft().result()
        self._check()
        future = self._thread.submit(self._decode, *hand_over(latents_BFCHW, self.device), consume)
        self._queue.append(future)
        return future

    def drain(self) -> None:
        """Waits until all chunks are decoded: the state is that behind the last one."""
        while self._queue:
            self._queue.popleft().result()

    def close(self) -> None:
        """Waits for the chunk that is being decoded, and cancels those behind it. A second time does nothing."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            self.close()

    def _check(self) -> None:
        if self.failed:
            raise DecodingStopped("an earlier chunk could not be decoded; begin again from the state before it")

    def _decode(self, latents: torch.Tensor, ready: torch.cuda.Event | None, consume: Callable[[Parts], Any]) -> Any:
        """Decodes a chunk, on the thread if there is one; the state moves on only when all of it succeeded."""
        self._check()
        reached: list = []
        try:
            if self._stream is None:
                if ready is not None:
                    ready.synchronize()
                result = consume(self._parts(latents, reached))
            else:
                with torch.cuda.stream(self._stream):
                    self._stream.wait_event(ready)
                    latents.record_stream(self._stream)
                    result = consume(self._parts(latents, reached))
                self._stream.synchronize()
        except BaseException:
            self.failed = True
            raise
        (self.state,) = reached
        return result

    def _parts(self, latents: torch.Tensor, reached: list[DecoderState]) -> Parts:
        """Yields (latents, pixels) of the chunk in parts; the state behind the last one goes into `reached`."""
        state = self.state
        for part in latents.split(max(DECODED_TOGETHER, self.model.frames_per_pass), 1):
            begin = time.perf_counter()
            with torch.no_grad():
                pixels, state = self.model.decode_stream(part, state)
            self.seconds += time.perf_counter() - begin
            yield part, pixels
        reached.append(state)

    def _join(self, parts: Parts) -> torch.Tensor:
        """Returns all pixels of a chunk."""
        pixels = torch.cat([pixels for _, pixels in parts], 1)
        if self._stream is not None:  # it is freed behind the work of the stream that reads it
            pixels.record_stream(torch.cuda.default_stream(self.device))
        return pixels


def hand_over(latents: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Returns (the latents on the device, the event after which they are there; None: now). Does not wait."""
    # Here and not on the thread: there the copy would be queued behind the next chunk's work.
    there = latents.to(device, non_blocking=True)
    gpu = device if device.type == "cuda" else latents.device
    if gpu.type != "cuda":
        return there, None
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(gpu))
    return there, ready
