"""Sounds as samples that are read where they are needed: from memory, from a file, or as they arrive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ArraySound:
    """Samples [N] or [N, channels] in memory, at `rate`."""

    samples: np.ndarray
    rate: int

    @property
    def channels(self) -> int:
        """How many there are."""
        return 1 if self.samples.ndim == 1 else self.samples.shape[1]

    @property
    def length(self) -> int:
        """In samples."""
        return len(self.samples)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns float32 samples [stop - start, channels]; zeros before the start and behind the end."""
        rows = self.samples.reshape(self.length, -1)
        found = np.zeros((stop - start, rows.shape[1]), np.float32)
        first, last = max(start, 0), min(max(stop, 0), self.length)
        if last > first:
            found[first - start : last - start] = rows[first:last]
        return found
