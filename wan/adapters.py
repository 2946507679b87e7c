"""What reads or changes hidden states after a block, from outside the transformer: the face, and the first of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from wan.condition import Condition
from wan.tokens import TokenLayout
from wan.transformer import WanTransformer


class Adapter(Protocol):
    """A member of `transformer.adapters`. Weights of an adapter are registered where their names should be.

    The block loop calls it inside activation checkpointing, so it may run a second time in backward. Tensor code
    for the compiler stands in methods that `regions` names, as a block's does.
    """

    def after_block(self, layer: int, x: torch.Tensor, tokens: TokenLayout, condition: Condition) -> torch.Tensor:
        """Returns the tokens x [B, L / size, D] after block `layer`, changed or as they are.

        tokens: the layout of this rank's tokens: runs, frames, positions, which of them are here.
        """


class Tap:
    """Records the tokens after some blocks.

    features: layer, as it was given -> [B, L / size, D]. tokens: their layout. time: the embedded sigmas [B, R, D].
    """

    def __init__(self, layers: Sequence[int], num_blocks: int):
        self.features: dict[int, torch.Tensor] = {}
        self.tokens: TokenLayout | None = None
        self.time: torch.Tensor | None = None
        self.is_open = True
        self._names: dict[int, list[int]] = {}
        for layer in layers:
            self._names.setdefault(layer % num_blocks, []).append(layer)

    def after_block(self, layer: int, x: torch.Tensor, tokens: TokenLayout, condition: Condition) -> torch.Tensor:
        """Records x; returns it as it is."""
        if self.is_open and layer in self._names:
            self.tokens = tokens
            self.features |= dict.fromkeys(self._names[layer], x)
        return x


@contextlib.contextmanager
def tap(transformer: WanTransformer, layers: Sequence[int]) -> Iterator[Tap]:
    """Records the tokens after the given blocks (negative = from the end), and the embedded time, of one forward.

    Recomputation under checkpointing happens after the context exits and is not recorded.
    Errors: ValueError for blocks that the transformer does not have.
    """
    count = len(transformer.blocks)
    wrong = [layer for layer in layers if not -count <= layer < count]
    if wrong:
        raise ValueError(f"blocks {wrong} cannot be tapped: the transformer has {count} (0..{count - 1})")
    made, before = Tap(layers, count), transformer.adapters
    transformer.adapters = (*before, made)
    outer, embed_time = transformer.__dict__.get("embed_time"), transformer.embed_time

    def noted(sigma_BR: torch.Tensor):
        made.time, rows = embed_time(sigma_BR)
        return made.time, rows

    transformer.__dict__["embed_time"] = noted
    try:
        yield made
    finally:
        transformer.adapters, made.is_open = before, False
        transformer.__dict__.pop("embed_time")
        if outer is not None:  # of a tap around this one
            transformer.__dict__["embed_time"] = outer
