"""A polite stop: SIGTERM, SIGHUP or SIGUSR1 to any one rank lets all ranks end the same step, save, and exit with 0.

A scheduler sees by `<run>/REQUEUE` that the job wants to go on (torchrun returns 1 whatever its workers return).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from utils.parallel import ranks
from utils.signals import received_by


class Interrupt:
    """A context in which such a signal sets a flag instead of ending the process."""

    def __init__(self, run: str | Path):
        self.mark = Path(run) / "REQUEUE"
        self._received = False
        self._answer: Callable[[], bool] | None = None
        self._signals = ExitStack()

    def __enter__(self) -> Interrupt:
        self._signals.enter_context(received_by(self._receive))
        return self

    def __exit__(self, kind, *error) -> None:
        if kind is None and self._answer is not None:
            self._answer()  # nothing may be under way when the group is left
        self._signals.close()

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

    def _receive(self, number: int) -> None:
        self._received = True
