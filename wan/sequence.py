"""Which tokens a process works on, and how its queries look at the rest: all tokens, unless told otherwise.

`WanTransformer.sequence` is the one place where tokens are split and joined. `utils/parallel/ulysses.py`
puts an object with the same four members there; nothing in this room knows of other processes.
"""

from __future__ import annotations

import torch

from wan.attention.dispatch import attend


class Sight:
    """What the queries of one forward look through: the view's keys and values, then a kernel."""

    def __init__(self, view):
        self._view, self.text = view, view.text

    def look(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: str) -> torch.Tensor:
        """Enters the layer's own q, k, v [B, L, N, E] and returns what the queries read, [B, L, N, E]."""
        q, k, v, mask = self._view.extend(layer, q, k, v)
        return attend(q, k, v, mask=mask, backend=backend)


class WholeSequence:
    """Every token is worked on here."""

    size = 1  # into how many parts the tokens of a frame, and the heads of a cache, are split

    def split(self, x_BLD: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Returns the tokens to work on, [B, L / size, D], of all tokens, frame slowest."""
        return x_BLD

    def join(self, x_BLD: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Returns all tokens [B, L, D] of those that `split` returned."""
        return x_BLD

    def sight(self, view, num_frames: int) -> Sight:
        """Returns what the blocks of one forward look through; num_frames counts all segments."""
        return Sight(view)
