"""What records or changes hidden states after a block, from outside the transformer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from wan.transformer import WanTransformer


@contextlib.contextmanager
def tap(transformer: WanTransformer, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Records the tokens [B, L, D] after the given blocks (negative = from the end) during one forward.

    What a recompute in backward would add comes after the block is left and is not seen.
    """
    count, found = len(transformer.blocks), {}
    wrong = [layer for layer in layers if not -count <= layer < count]
    if wrong:
        raise ValueError(f"blocks {wrong} cannot be tapped: the transformer has {count} (0..{count - 1})")
    with contextlib.ExitStack() as stack:
        for layer in layers:
            hook = lambda module, inputs, output, layer=layer: found.__setitem__(layer, output)  # noqa: E731
            stack.callback(transformer.blocks[layer].register_forward_hook(hook).remove)
        yield found
