"""FlexAttention: frame masks as block masks, so that hidden blocks cost nothing."""

from __future__ import annotations

import functools

import torch

from wan.attention.call import AttentionCall
from wan.tokens import TokenLayout


class Flex:
    """Compiled FlexAttention; for masks on a GPU."""

    def __init__(self):
        self._block_masks: dict = {}

    def usable(self, call: AttentionCall) -> str | None:
        """Returns why it cannot run, or None."""
        q = call.q
        if call.mask is None:
            return "there is no mask; a dense kernel is faster"
        if q.device.type != "cuda":
            return "it has no backward on the CPU" if call.needs_grad else "on the CPU it needs a C++ compiler"
        if q.shape[-1] < 16:
            return f"it needs a head width of at least 16, not {q.shape[-1]}"
        return None

    def run(self, call: AttentionCall) -> torch.Tensor:
        """[B, L, N, E] in and out."""
        block_mask = self._block_mask(call)
        q, k, v = (x.transpose(1, 2) for x in (call.q, call.k, call.v))
        return _compiled()(q, k, v, block_mask=block_mask).transpose(1, 2)

    def _block_mask(self, call: AttentionCall):
        """Builds the block mask of a frame mask once per size; keyed by content, not by object."""
        mask, device = call.mask, call.q.device
        shape = (call.queries.plain, call.keys.plain)
        key = (mask.frames.numpy().tobytes(), tuple(mask.frames.shape), *shape, str(device))
        if key not in self._block_masks:
            from torch.nn.attention.flex_attention import create_block_mask

            frames, (query_frame, key_frame) = mask.frames.to(device), (_frame_lookup(x, device) for x in shape)
            real = torch.tensor(call.keys.real, device=device) if call.keys.padded else None

            def visible(batch, head, query, key_index):
                seen = frames[query_frame(query), key_frame(key_index)]
                return seen if real is None else seen & real[key_index]

            sizes = (call.q.shape[1], call.k.shape[1])
            self._block_masks[key] = create_block_mask(visible, None, None, *sizes, device=str(device))
        return self._block_masks[key]


def _frame_lookup(layout: TokenLayout, device):
    """Returns a function from the number of a token to that of its frame: a division where frames are alike."""
    if layout.is_even and not layout.mixes_frames:
        per_frame = layout.num_tokens // layout.num_frames
        return lambda token: token // per_frame
    frames = torch.tensor(layout.frame_of_token, device=device)
    return lambda token: frames[token]


@functools.cache
def _compiled():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
