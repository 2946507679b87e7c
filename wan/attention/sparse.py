"""Which blocks of keys each block of queries reads: chosen from cheap scores, without gradient.

Adaptive block-sparse attention of Video-BLADE (arXiv 2508.10774), with a mean-pooled probe and the published one.
A selection is a mask like a frame mask: any kernel that takes one may run it, and all give the same result.

B batch, N heads, I query blocks, J key blocks, L and S query and key tokens, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from wan.attention.config import AsaConfig

HIDDEN, CHOSEN, ALWAYS = range(3)  # what a block of keys is to a block of queries: never, perhaps, always read
PROBE_SCORES = 1 << 26  # of sampled tokens at once: 256 MB in fp32


@dataclass(frozen=True)
class Selection:
    """kept: [B, N, I, J], True where query block i reads key block j.

    limits: of each query block the most that a row keeps; whole numbers of the host, so that no kernel asks a device.
    exact: every row keeps just that many. real: [S], False for the pads among the keys, or None without any.
    pool: every so many neighbouring keys and values are averaged into one that all queries read too (Video-BLADE's
    global tokens), its score raised by ln(pool), as it stands for so many; 0: none.
    """

    kept: torch.Tensor
    block: int
    limits: tuple[int, ...]
    exact: bool = False
    real: torch.Tensor | None = None
    pool: int = 0

    def present(self, keys: int) -> torch.Tensor | None:
        """Returns [J, block], False for pads and behind the last of so many keys; None if all of it is True."""
        if self.real is None and not keys % self.block:
            return None
        real = torch.ones(keys, dtype=torch.bool, device=self.kept.device) if self.real is None else self.real
        return functional.pad(real, (0, -keys % self.block)).unflatten(0, (-1, self.block))

    def visible(self, queries: int, keys: int) -> torch.Tensor:
        """Returns the token mask [B, N, L, S] without pooled keys."""
        tokens = self.kept.repeat_interleave(self.block, 2)[:, :, :queries]
        tokens = tokens.repeat_interleave(self.block, 3)[..., :keys]
        return tokens if self.real is None else tokens & self.real

    def bias(self, queries: int, keys: int, dtype: torch.dtype) -> torch.Tensor:
        """Returns what is added to the scores [B, N, L, S + pooled]: 0, -infinity where nothing is read, ln(pool)."""
        visible = self.visible(queries, keys)
        tokens = torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, -math.inf)
        return functional.pad(tokens, (0, -(-keys // self.pool)), value=math.log(self.pool))

    def pooled(self, x_BSNE: torch.Tensor) -> torch.Tensor:
        """Returns the means [B, ceil(S / pool), N, E] of every `pool` neighbours; the last token fills up the last."""
        return filled(x_BSNE, self.pool).unflatten(1, (-1, self.pool)).mean(2)


@dataclass(frozen=True)
class BlockRules:
    """What each block of keys is to each block of queries, on a device.

    chosen, always: [I, J] bool. least, most: [I] of the chosen blocks. limits: most and those that are always read.
    """

    chosen: torch.Tensor
    always: torch.Tensor
    least: torch.Tensor
    most: torch.Tensor
    limits: tuple[int, ...]
    exact: bool


def block_rules(classes: Sequence[Sequence[int]], ratios: tuple[float, float], device) -> BlockRules:
    """Returns the rules for `classes` [I][J] of HIDDEN, CHOSEN, ALWAYS.

    ratios: the least and the largest share of the blocks that may be chosen.
    """
    table = torch.tensor(classes, dtype=torch.uint8)
    counts = (table == CHOSEN).sum(1).tolist()
    least, most = ([min(count, max(1, int(count * ratio))) for count in counts] for ratio in ratios)
    always = (table == ALWAYS).sum(1).tolist()
    limits = tuple(a + m for a, m in zip(always, most, strict=True))
    tensors = (table == CHOSEN, table == ALWAYS, torch.tensor(least), torch.tensor(most))
    chosen, forced, low, high = (x.to(device, non_blocking=True) for x in tensors)
    return BlockRules(chosen, forced, low, high, limits, least == most)


@torch.no_grad()
def select(q: torch.Tensor, k: torch.Tensor, rules: BlockRules, config: AsaConfig, positions=None) -> torch.Tensor:
    """Returns the blocks [B, N, I, J] that are read, of q [B, L, N, E] and k [B, S, N, E].

    positions: where in a block tokens are sampled, see `mean_scores` and `sampled_scores`; None for the mean.
    """
    if positions is None:
        scores = mean_scores(q, k, config.block, rules.chosen)
    else:
        scores = sampled_scores(q, k, config.block, positions, rules.chosen)
    return choose(scores, rules.least, rules.most, config) & rules.chosen | rules.always


def mean_scores(q: torch.Tensor, k: torch.Tensor, block: int, chosen: torch.Tensor | None = None) -> torch.Tensor:
    """Returns softmax(mean q . mean k / sqrt(E)) of blocks, [B, N, I, J], over the blocks that may be chosen."""
    pooled_q, pooled_k = (blocks(x, block).mean(3, dtype=_wide(x)) for x in (q, k))
    scores = pooled_q @ pooled_k.transpose(2, 3) / math.sqrt(q.shape[-1])
    if chosen is not None:
        scores = scores.masked_fill(~chosen, -math.inf)
    return scores.softmax(-1).nan_to_num_(0.0)  # of a row without any choice


def sampled_scores(q, k, block: int, positions, chosen: torch.Tensor | None = None) -> torch.Tensor:
    """Returns the published map [B, N, I, J]: of sampled tokens the largest exp(score - its query's largest).

    Rows are divided by their sum. positions: of the samples within a block, for queries and for keys: one-dimensional,
    or [B, N, samples]. Cut into pieces of query blocks: at 8,192 x 8,192 samples the whole map takes 268 MB a head.
    Source: Video-BLADE, attn_pooling_kernel.py, in fp32.
    """
    q_s, k_s = (sampled(x, block, places) for x, places in zip((q, k), positions, strict=True))  # [B, N, I, s, E]
    columns = k_s.flatten(2, 3).transpose(2, 3) / math.sqrt(q.shape[-1])
    hidden = None if chosen is None else ~chosen
    rows, step = [], max(1, PROBE_SCORES // (q_s.shape[0] * q_s.shape[1] * q_s.shape[3] * columns.shape[-1]))
    for first in range(0, q_s.shape[2], step):
        piece = q_s[:, :, first : first + step]
        scores = (piece.flatten(2, 3) @ columns).unflatten(-1, (-1, k_s.shape[3])).amax(-1)  # [B, N, i s, J]
        scores = scores.unflatten(2, (-1, q_s.shape[3]))
        if hidden is not None:
            scores = scores.masked_fill(hidden[first : first + step, None], -math.inf)
        rows.append((scores - scores.amax(-1, keepdim=True)).exp().amax(3))
    found = torch.cat(rows, 2).nan_to_num_(0.0)
    return found / found.sum(-1, keepdim=True).clamp_min(torch.finfo(found.dtype).tiny)


def sampled(x_BLNE: torch.Tensor, block: int, positions: torch.Tensor) -> torch.Tensor:
    """Returns the tokens of each block at `positions` ([s] or [B, N, s]), [B, N, I, s, E], in fp32 or wider."""
    every = blocks(x_BLNE, block)
    if positions.ndim == 1:
        found = every.index_select(3, positions)
    else:
        places = positions[:, :, None, :, None].expand(-1, -1, every.shape[2], -1, every.shape[4])
        found = every.gather(3, places)
    return found.to(_wide(x_BLNE))


def choose(scores_BNIJ: torch.Tensor, least: torch.Tensor, most: torch.Tensor, config: AsaConfig) -> torch.Tensor:
    """Returns [B, N, I, J]: of each row the largest scores up to `threshold` of their sum, `least` to `most` of them.

    count: `inclusive` counts the block that reaches the threshold, `below` does not (as published).
    """
    values, order = scores_BNIJ.sort(dim=-1, descending=True, stable=True)
    sums = values.cumsum(-1)
    count = (sums < config.threshold * sums[..., -1:]).sum(-1) + (config.count == "inclusive")
    count = torch.minimum(torch.maximum(count, least), most)
    places = torch.arange(scores_BNIJ.shape[-1], device=scores_BNIJ.device).expand_as(order)
    return torch.zeros_like(order).scatter_(-1, order, places) < count[..., None]


def kept_first(kept: torch.Tensor) -> torch.Tensor:
    """Returns the numbers of the blocks along the last axis: the kept ones in their order, then the others."""
    return kept.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices


def blocks(x_BLNE: torch.Tensor, block: int) -> torch.Tensor:
    """Returns the tokens in blocks, [B, N, blocks, block, E], the last block filled up by the last token."""
    return filled(x_BLNE, block).unflatten(1, (-1, block)).permute(0, 3, 1, 2, 4)


def filled(x_BLNE: torch.Tensor, block: int) -> torch.Tensor:
    """Returns the tokens with the last one repeated up to a whole number of blocks."""
    missing = -x_BLNE.shape[1] % block
    return torch.cat((x_BLNE, x_BLNE[:, -1:].expand(-1, missing, -1, -1)), 1) if missing else x_BLNE


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
