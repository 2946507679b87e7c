"""Block-sparse attention on any device: each row of query blocks gathers the blocks that it reads, then SDPA."""

from __future__ import annotations

import itertools
import math

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from wan.attention.call import AttentionCall
from wan.attention.sparse import blocks, kept_first

PIECE_BYTES = 64 << 20  # of gathered keys at once


class Gather:
    """Exact, with a backward, in bounded pieces; asks no device for a count. For selections."""

    def usable(self, call: AttentionCall) -> str | None:
        """Returns why it cannot run, or None."""
        return None if call.selection is not None else "it is for selections of blocks (sparse.name=asa)"

    def run(self, call: AttentionCall) -> torch.Tensor:
        """[B, L, N, E] in and out."""
        selection, block = call.selection, call.selection.block
        q, k, v = (blocks(x, block) for x in (call.q, call.k, call.v))  # [B, N, blocks, block, E]
        pooled = None
        if selection.pool:
            pooled = tuple(selection.pooled(x).transpose(1, 2) for x in (call.k, call.v))
        real = selection.present(call.k.shape[1])
        row = k[:, :, 0].numel() * k.element_size()  # of one gathered block
        rows = []
        for first, stop, limit in _stretches(selection.limits, lambda limit: max(1, PIECE_BYTES // (row * limit))):
            kept = selection.kept[:, :, first:stop]
            places = None if limit == k.shape[2] and real is None and selection.exact else kept_first(kept)[..., :limit]
            piece = (q[:, :, first:stop], k, v, kept, places, real, pooled, selection.exact, selection.pool)
            rows.append(checkpoint(_attend, *piece, use_reentrant=False) if call.needs_grad else _attend(*piece))
        out = rows[0] if len(rows) == 1 else torch.cat(rows, 2)
        return out.flatten(2, 3)[:, :, : call.q.shape[1]].transpose(1, 2)


def _attend(q, k, v, kept, places, real, pooled, exact: bool, pool: int) -> torch.Tensor:
    """Returns the output [B, N, i, block, E] of some rows of query blocks."""
    batch, heads, rows = q.shape[:3]
    mask = None
    if places is None:  # all keys, in their order
        keys, values = (x.flatten(2, 3)[:, :, None].expand(-1, -1, rows, -1, -1) for x in (k, v))
    else:
        keys, values = _gathered(k, places), _gathered(v, places)
        if not exact:
            mask = kept.gather(3, places)[..., None].expand(*places.shape, k.shape[3])
        if real is not None:
            present = real[places]
            mask = present if mask is None else mask & present
        mask = None if mask is None else mask.flatten(3, 4)
    if pooled is not None:
        more = [x[:, :, None].expand(-1, -1, rows, -1, -1) for x in pooled]
        seen = torch.zeros((*keys.shape[:4],), dtype=q.dtype, device=q.device)
        if mask is not None:
            seen = seen.masked_fill(~mask, float("-inf"))
        mask = functional.pad(seen, (0, more[0].shape[3]), value=math.log(pool))
        keys, values = torch.cat((keys, more[0]), 3), torch.cat((values, more[1]), 3)
    q, keys, values = (x.reshape(batch, heads * rows, *x.shape[3:]) for x in (q, keys, values))
    mask = None if mask is None else mask.reshape(batch, heads * rows, 1, -1)
    return functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask).unflatten(1, (heads, rows))


def _gathered(x_BNJbE: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Returns the blocks at `places` [B, N, i, m] as tokens [B, N, i, m block, E]."""
    batch, heads, blocks = x_BNJbE.shape[:3]
    first = torch.arange(batch * heads, device=places.device).view(batch, heads, 1, 1) * blocks
    found = x_BNJbE.flatten(0, 2).index_select(0, (first + places).flatten())
    return found.view(*places.shape, *x_BNJbE.shape[3:]).flatten(3, 4)


def _stretches(limits, longest):
    """Yields (first, stop, limit) of neighbouring rows with one limit, at most `longest(limit)` of them."""
    first = 0
    for limit, rows in itertools.groupby(limits):
        stop = first + len(list(rows))
        while first < stop:
            yield first, min(first + longest(limit), stop), limit
            first = min(first + longest(limit), stop)
