"""Which condition holds at a span of the film. A prompt switch is only a changed condition."""

from __future__ import annotations

from typing import Protocol

from wan.condition import Condition
from wan.geometry import Span


class Track(Protocol):
    """`track.at(span) -> Condition`."""

    def at(self, span: Span) -> Condition: ...


class Fixed:
    """One condition for the whole film."""

    def __init__(self, condition: Condition):
        self.condition = condition

    def at(self, span: Span) -> Condition:
        """Returns the condition, its joined channels cut to the span."""
        return self.condition.at(span)
