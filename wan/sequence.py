"""How tokens are ordered and split between processes. Default: one process holds all of them, as they lie.

`WanTransformer.sequence` is the one door through which tokens enter and leave the blocks. `utils/parallel/ulysses.py`
puts an object with the same members there; nothing in this room knows of other processes.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch

from wan.tokens import Order, TokenLayout


class WholeSequence:
    """Every token is worked on here. order: see `TokenLayout`; the result does not depend on it."""

    size = 1  # into how many parts the tokens of a frame, and the heads of a cache, are split
    statistics: Any = None  # of what sparse attention read (`wan.attention.selector`)

    def __init__(self, order: Order | None = None):
        self.order = order

    def arrange(self, layout: TokenLayout) -> TokenLayout:
        """Returns the layout of all tokens in the order in which they are processed."""
        return layout if self.order is None else replace(layout, order=self.order, unit=0)

    def local(self, layout: TokenLayout) -> TokenLayout:
        """Returns the layout of the tokens that this process works on."""
        return layout

    def split(self, x_BLD: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        """Returns the tokens to work on, [B, L / size, D], of all tokens, frame slowest."""
        return x_BLD if layout.order is None else x_BLD.index_select(1, index(layout, "permutation", x_BLD.device))

    def join(self, x_BLD: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        """Returns all tokens [B, L, D] of those that `split` returned; of one run with `layout.only(run)`."""
        return x_BLD if layout.order is None else x_BLD.index_select(1, index(layout, "inverse", x_BLD.device))

    def view(self, view, layout: TokenLayout, level: float | None = None):
        """Returns the view through which the blocks of one forward attend. level: its sigma, if the host knows it."""
        return view


def index(layout: TokenLayout, name: str, device) -> torch.Tensor:
    """Returns one of the layout's lists (`permutation`, `modulation_rows` ...) as a tensor, made once per size."""
    return _index(layout.plain, name, str(device))


@functools.lru_cache(maxsize=64)
def _index(plain: TokenLayout, name: str, device: str) -> torch.Tensor:
    return torch.tensor(getattr(plain, name), device=device)
