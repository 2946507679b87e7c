"""FlexAttention: frame masks as block masks, so that hidden blocks cost nothing."""

from __future__ import annotations

import functools

import torch


class Flex:
    """Compiled FlexAttention; for masks on a GPU."""

    def __init__(self):
        self._block_masks: dict = {}

    def usable(self, q, mask, needs_grad) -> str | None:
        """Returns why it cannot run, or None."""
        if mask is None:
            return "there is no mask; a dense kernel is faster"
        if q.device.type != "cuda":
            return "it has no backward on the CPU" if needs_grad else "on the CPU it needs a C++ compiler"
        if q.shape[-1] < 16:
            return f"it needs a head width of at least 16, not {q.shape[-1]}"
        return None

    def run(self, q, k, v, mask):
        """[B, L, N, E] in and out."""
        block_mask = self._block_mask(mask, q.shape[1], k.shape[1], q.device)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return _compiled()(q, k, v, block_mask=block_mask).transpose(1, 2)

    def _block_mask(self, mask, num_queries, num_keys, device):
        """Builds the block mask of a frame mask once per size; keyed by content, not by object."""
        frames = mask.frames.to(device)
        key = (mask.frames.numpy().tobytes(), tuple(frames.shape), num_queries, num_keys, str(device))
        if key not in self._block_masks:
            from torch.nn.attention.flex_attention import create_block_mask

            per_query, per_key = num_queries // frames.shape[0], num_keys // frames.shape[1]

            def seen(batch, head, query, key_index):
                return frames[query // per_query, key_index // per_key]

            self._block_masks[key] = create_block_mask(seen, None, None, num_queries, num_keys, device=str(device))
        return self._block_masks[key]


@functools.cache
def _compiled():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
