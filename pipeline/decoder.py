"""Work on finished latents that goes on, in order, while the next chunk is made: the decoder's thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

WAITING = 2  # calls that may be under way or wait; more would only hold more latents


class Ahead:
    """Calls one after another: `with Ahead(device) as ahead: ahead(call, latents)` -> call(latents on the device).

    device: None = each call is made at once, by the caller. Else on a thread, and on a GPU a stream, of its own: the
    host never waits for the latents, which are copied behind the work that makes them.
    What a call raises comes out of a later call, of `drain`, or where the block ends.
    """

    def __init__(self, device: torch.device | None):
        self.device, self._waiting, self._failed = device, deque[Future](), False
        self._thread = None if device is None else ThreadPoolExecutor(1, "ahead")
        self._stream = torch.cuda.Stream(device) if device is not None and device.type == "cuda" else None

    def __call__(self, call: Callable, latents: torch.Tensor) -> None:
        """Makes the call, or lets it follow the earlier ones; waits only if WAITING of them are not done."""
        if self._thread is None:
            call(latents)
            return
        while len(self._waiting) >= WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._run, call, *hand_over(latents, self.device)))

    def drain(self) -> None:
        """Waits until all calls are made."""
        while self._waiting:
            self._waiting.popleft().result()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            if self._thread is not None:
                self._thread.shutdown(wait=True, cancel_futures=True)

    def _run(self, call: Callable, latents: torch.Tensor, ready: torch.cuda.Event | None) -> None:
        """Runs on the thread; after a call that failed nothing more is done, so that no gap can be written."""
        if self._failed:
            return
        self._failed = True
        self._make(call, latents, ready)
        self._failed = False

    def _make(self, call: Callable, latents: torch.Tensor, ready: torch.cuda.Event | None) -> None:
        if ready is None:
            call(latents)
        elif self._stream is None:
            ready.synchronize()
            call(latents)
        else:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(ready)
                latents.record_stream(self._stream)
                call(latents)


def hand_over(latents: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Returns (the latents on the device, the event after which they are there; None: now). Does not wait."""
    # Here and not on the thread: there the copy would stand behind the next chunk's work.
    there = latents.to(device, non_blocking=True)
    gpu = device if device.type == "cuda" else latents.device
    if gpu.type != "cuda":
        return there, None
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(gpu))
    return there, ready
