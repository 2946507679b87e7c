"""The knobs of attention; no torch, so that a configuration is read at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wan.attention import BACKENDS


@dataclass
class AttentionConfig:
    """backend: a name of `BACKENDS`, or `auto` = the first that can run, logged once."""

    backend: str = "auto"

    def problems(self) -> Iterator[str]:
        """Yields a backend that is not in the table."""
        if self.backend != "auto" and self.backend not in BACKENDS:
            yield f"attention.backend is {self.backend!r}; write auto or one of {', '.join(BACKENDS)}"
