"""Which condition holds at a span of the video. A prompt switch is only a changed condition.

A track returns the condition of the whole video; the rollout cuts it for the frames of each pass.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from wan.condition import Condition
from wan.geometry import Span


class Track:
    """The conditions of a video; `at` is called once for each chunk, in order."""

    def at(self, span: Span) -> Condition:
        """Returns the condition in force at the chunk over `span`: that of the whole video."""
        raise NotImplementedError

    def preempt_requested(self) -> bool:
        """Returns True if the running chunk should be restarted; called between two of its steps."""
        return False


class Fixed(Track):
    """One condition for the whole video."""

    def __init__(self, condition: Condition):
        self.condition = condition

    def at(self, span: Span) -> Condition:
        """Returns the condition."""
        return self.condition


class PromptSchedule(Track):
    """One condition after another, each from the first chunk that starts at or after its requested frame.

    At most one switch per chunk: of several that are due, the later ones wait for the next chunks.
    Source: LongLive, pipeline/interactive_causal_inference.py.
    """

    def __init__(self, cues: Sequence[tuple[int, Condition]]):
        """cues: (requested latent frame, condition) in order; the first one's frame is 0.

        Errors: ValueError for no cue, a first one that is not at 0, or frames that descend.
        """
        frames = [frame for frame, _ in cues]
        if not frames or frames[0] != 0 or frames != sorted(frames):
            raise ValueError(f"the conditions of a schedule start at frames {frames}; begin at 0 and do not go back")
        self.cues, self.cursor = list(cues), 0
        self.taken = [0]  # the frame at which each cue so far came into force
        self._latest_start = -1

    def advance(self, span: Span) -> int:
        """Returns the number of the cue in force over `span`; moves on by one if the next one is due."""
        due = self.cursor + 1 < len(self.cues) and self.cues[self.cursor + 1][0] <= span.start
        if due and span.start > self._latest_start:  # called again for one chunk, the answer stays
            self.cursor += 1
            self.taken.append(span.start)
        self._latest_start = max(self._latest_start, span.start)
        return self.cursor

    def at(self, span: Span) -> Condition:
        """Returns the condition in force."""
        return self.cues[self.advance(span)][1]


class Live(Track):
    """A condition that other threads change while the video is generated; at most one switch per chunk."""

    def __init__(self, name: str, condition: Condition, latest_start: int = -1):
        """name: of the condition, e.g. its prompt. latest_start: first frame of the last chunk that was asked for."""
        self.name, self.condition, self.latest_start = name, condition, latest_start
        self._waiting: deque[tuple[str, Condition, bool]] = deque()
        self._lock = threading.Lock()

    def switch(self, name: str, condition: Condition, now: bool = False) -> None:
        """Queues another condition for one of the next chunks; `now`: for the running one, instead of the queue."""
        with self._lock:
            if now:
                self._waiting.clear()
            self._waiting.append((name, condition, now))

    def at(self, span: Span) -> Condition:
        """Returns the condition of the next chunk: the first one queued, or the one in force.

        Called again for a chunk whose generation failed, it returns the same, unless another was requested with `now`.
        """
        with self._lock:
            if self._waiting and (span.start > self.latest_start or self._waiting[0][2]):
                self.name, self.condition, _ = self._waiting.popleft()
            self.latest_start = span.start
            return self.condition

    def preempt_requested(self) -> bool:
        """Returns True if a condition is queued that was requested with `now`."""
        with self._lock:
            return any(now for _, _, now in self._waiting)

    def fork(self) -> Live:
        """Returns a track that goes on from here, on its own."""
        with self._lock:
            other = Live(self.name, self.condition, self.latest_start)
            other._waiting.extend(self._waiting)
            return other

    def waiting(self) -> list[tuple[str, bool]]:
        """Returns (name, whether now) of the queued conditions, in order."""
        with self._lock:
            return [(name, now) for name, _, now in self._waiting]
