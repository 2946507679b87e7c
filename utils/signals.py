"""Signals by which a scheduler, or a terminal that closes, ends a process: what a process may do about them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """Raised where a signal ends the work, and handled as Ctrl-C is. number: the signal's."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def received_by(receive: Callable[[int], None]) -> Iterator[None]:
    """A context in which these signals call `receive(number)` in the main thread instead of ending the process.

    A SIGHUP that is ignored stays so: nohup asked for that. In another thread than the main one it does nothing.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        wanted = [number for number in SIGNALS if not (ignored and number == signal.SIGHUP)]
        before = {number: signal.signal(number, lambda number, frame: receive(number)) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """A context in which SIGTERM ends the process by itself: for waits in a library, where no handler gets its turn."""
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def as_interrupts() -> Iterator[None]:
    """A context in which the first of these signals raises `Stopped` in the main thread, as Ctrl-C raises its own.

    Later ones do nothing, so that what is being left behind can be put in order.
    """
    seen: list[int] = []

    def receive(number: int) -> None:
        seen.append(number)
        if len(seen) == 1:
            raise Stopped(number)

    with received_by(receive):
        yield
