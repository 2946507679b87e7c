"""A polite stop: SIGTERM or SIGUSR1 to any one rank lets all ranks end the same step, save, and exit with status 0.

A scheduler sees by `<run>/REQUEUE` that the job wants to go on (torchrun returns 1 whatever its workers return).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

from utils.parallel import ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interrupt:
    """A context in which SIGTERM and SIGUSR1 set a flag instead of ending the process."""

    def __init__(self, run: str | Path):
        self.mark = Path(run) / "REQUEUE"
        self._received = False
        self._answer: Callable[[], bool] | None = None
        self._before: dict = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, kind, *error) -> None:
        if kind is None and self._answer is not None:
            self._answer()  # nothing may be under way when the group is left
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def due(self) -> bool:
        """Returns whether to stop now. All ranks ask at the end of every step, and get the same answer.

        A signal counts one step later: the ranks' answers are collected while that step runs, so nobody waits.
        """
        answer, self._answer = self._answer, ranks.ask_any(self._received)
        return answer is not None and answer()

    def ask_for_requeue(self) -> None:
        """Writes the mark that the job wants to go on."""
        if ranks.rank() == 0:
            self.mark.touch()

    def clear(self) -> None:
        """Removes the mark of an earlier job."""
        if ranks.rank() == 0:
            self.mark.unlink(missing_ok=True)

    def _receive(self, number: int, frame) -> None:
        self._received = True
