"""What an attention kernel is given: one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from wan.attention.masks import FrameMask
from wan.tokens import TokenLayout

if TYPE_CHECKING:
    from wan.attention.sparse import Selection


@dataclass(slots=True)
class AttentionCall:
    """One attention: q [B, L, N, E], k and v [B, S, N, E].

    layer: number of the block, None outside of them. mask: hides key frames from query frames, or None. selection:
    hides blocks of keys from blocks of queries, and what a mask would, or None.
    queries, keys: the layouts of q and of k and v, in the order in which they lie in memory (a ring: own frames,
    pinned runs, slots); None where the tokens are not those of the sequence (text).
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    layer: int | None = None
    queries: TokenLayout | None = None
    keys: TokenLayout | None = None
    mask: FrameMask | None = None
    selection: Selection | None = None

    @property
    def needs_grad(self) -> bool:
        """True if a backward pass will follow."""
        grad = self.q.requires_grad or self.k.requires_grad or self.v.requires_grad
        return grad and torch.is_grad_enabled()
