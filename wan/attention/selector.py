"""Makes a network's self-attention sparse, from outside: orders its tokens into blocks, and selects in every forward.

`apply` puts a `SparseSequence` at `transformer.sequence`, before tokens are shared between processes. Each forward's
view then has a `Selector`, which keeps what it chose for each layer: a recompute in backward reads that again. Chosen
anew from other draws it would give the same loss and another gradient.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from wan.attention.call import AttentionCall
from wan.attention.config import AsaConfig, NoSparsity
from wan.attention.sparse import ALWAYS, CHOSEN, HIDDEN, BlockRules, Selection, block_rules, select
from wan.attention.token_order import TokenOrder
from wan.config import raise_first
from wan.sequence import WholeSequence, index
from wan.tokens import TokenLayout

Classes = tuple[tuple[int, ...], ...]  # [query frames][key frames] of HIDDEN, CHOSEN, ALWAYS


def apply(network: nn.Module, config: AsaConfig | NoSparsity) -> nn.Module:
    """Lets the self-attention of a network run as `config` says; returns the network, changed in place.

    Errors: ValueError for knobs that do not go together or blocks that the network does not have, or if its tokens
    are shared or ordered already.
    """
    if isinstance(config, NoSparsity):
        return network
    raise_first(config.problems())
    layers = len(network.blocks)
    if wrong := [layer for layer in config.dense_layers if not -layers <= layer < layers]:
        raise ValueError(f"sparse.dense_layers names {wrong} of a network of {layers} blocks; write 0 to {layers - 1}")
    if network.sequence.size > 1 or network.sequence.order is not None:
        raise ValueError("tokens are put into blocks before they are shared, and once; apply sparse first")
    network.sequence = SparseSequence(config, layers)
    return network


class SparseSequence(WholeSequence):
    """All tokens, in blocks along a curve. statistics: what its forwards read, for metrics."""

    def __init__(self, config: AsaConfig, num_layers: int):
        super().__init__(TokenOrder(config.order, config.block))
        self.config, self.statistics = config, Statistics()
        self._dense = frozenset(layer % num_layers for layer in config.dense_layers)

    def arrange(self, layout: TokenLayout) -> TokenLayout:
        """Returns the layout of all tokens in the order in which they are processed.

        Errors: ValueError for what a curve through a whole clip cannot order.
        """
        if self.config.order == "clip":
            kinds, clip = [run.kind for run in layout.runs], layout.runs[0]
            if clip.cached or len(set(clip.sigma)) > 1 or any(kind != "text" for kind in kinds[1:]):
                raise ValueError(
                    f"sparse.order=clip takes one run of frames of one sigma, without a cache: runs {kinds} were "
                    "given; write sparse.order=frame"
                )
        return super().arrange(layout)

    def view(self, view, layout: TokenLayout, level: float | None = None):
        """Returns the view through which the blocks of one forward attend. level: its sigma, if the host knows it."""
        config = self.config
        if level is None or config.dense_below <= level <= config.dense_above:
            keeps = view.selections if config.select == "chunk" else {}
            view.selector = Selector(config, self._dense, {} if keeps is None else keeps, self.statistics, level)
        return view


class Statistics:
    """What was read since `take` was asked last: tensors, so that counting waits for no device."""

    def __init__(self):
        self._sums: list[torch.Tensor] = []
        self._blocks = 0

    def count(self, kept: torch.Tensor, always: torch.Tensor, visible: int) -> None:
        """Adds one selection [B, N, I, J]; visible: (query, key) blocks that a dense pass would read, of all rows."""
        heads = kept.shape[0] * kept.shape[1]
        self._sums.append(torch.stack((kept.sum(), heads * always.sum())))
        self._blocks += heads * visible
        if len(self._sums) > 256:
            self._sums = [torch.stack(self._sums).sum(0)]

    def take(self) -> dict[str, torch.Tensor]:
        """Returns {sparsity, forced}: the share of the blocks not read, and the share read whatever the scores were."""
        if not self._sums:
            return {}
        kept, always = (torch.stack(self._sums).sum(0).double() / self._blocks).unbind()
        self._sums, self._blocks = [], 0
        return {"sparsity": 1 - kept, "forced": always}


class Selector:
    """Selects the blocks of one forward. kept: layer -> selection, for a recompute or the later passes of a chunk."""

    def __init__(self, config: AsaConfig, dense: frozenset[int], kept: dict, statistics: Statistics, level):
        self.config, self.dense, self.kept = config, dense, kept
        self._statistics, self._level = statistics, level
        self._rules: tuple[BlockRules, int] | None = None  # made by the first layer that selects

    def __call__(self, call: AttentionCall, classes: Callable[[AsaConfig], Classes]) -> AttentionCall:
        """Returns the call with its selection, which holds what its frame mask hides too; dense layers as they are.

        classes: tells what the frames of the keys are to those of the queries, the same for every layer.
        """
        if call.layer in self.dense:
            return call
        if call.layer not in self.kept:
            self.kept[call.layer] = self._select(call, classes)
        return replace(call, mask=None, selection=self.kept[call.layer])

    def _select(self, call: AttentionCall, classes: Callable[[AsaConfig], Classes]) -> Selection:
        config, device = self.config, str(call.q.device)
        if self._rules is None:
            ratios = (config.min, config.max)
            self._rules = _rules(classes(config), call.queries.plain, call.keys.plain, config.block, ratios, device)
        rules, visible = self._rules
        kept = select(call.q, call.k, rules, config, self._positions(call))
        self._statistics.count(kept, rules.always, visible)
        real = index(call.keys, "real", device) if call.keys.padded else None
        return Selection(kept, config.block, rules.limits, rules.exact, real, config.pool)

    def _positions(self, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Returns where tokens are sampled within a block of queries, and of keys; None: nowhere."""
        config = self.config
        if config.probe == "mean":
            return None
        if config.probe == "sampled":
            return (_spread(config.block, config.samples, str(call.q.device)),) * 2
        times = [list(run.times) for run in call.queries.runs]
        key = repr((config.seed, call.layer, self._level, times)).encode()
        draw = torch.Generator().manual_seed(zlib.crc32(key))
        found = [torch.randperm(config.block, generator=draw)[: config.samples] for _ in "qk"]
        return found[0].to(call.q.device), found[1].to(call.q.device)


@functools.lru_cache(maxsize=16)
def _spread(block: int, samples: int, device: str) -> torch.Tensor:
    """Returns the places of so many tokens, evenly spread over a block."""
    return torch.tensor([(2 * n + 1) * block // (2 * samples) for n in range(samples)]).to(device)


@functools.lru_cache(maxsize=128)
def _rules(classes: Classes, queries: TokenLayout, keys: TokenLayout, block: int, ratios: tuple, device: str):
    """Returns (the rules, the visible pairs of blocks) of one forward; made once for each arrangement of frames."""
    frames = [_parts_of_blocks(layout, block) for layout in (queries, keys)]
    table = [[classes[i][j] for j in frames[1]] for i in frames[0]]
    visible = sum(entry != HIDDEN for row in table for entry in row)
    return block_rules(table, ratios, device), visible


def _parts_of_blocks(layout: TokenLayout, block: int) -> list[int]:
    """Returns the row of the classes that each block belongs to: its frame, or its run where frames are mixed."""
    if not layout.mixes_frames:
        return list(layout.frame_of_token[::block])
    return [number for number, length in enumerate(layout.lengths) for _ in range(-(-length // block))]


def clip_classes(layout: TokenLayout, config: AsaConfig, mask=None) -> Classes:
    """Returns what the frames of a whole clip are to each other; conditions (a portrait) are always read.

    Under a frame mask, chunks read as over a cache: frames that see each other are a chunk, the sink is the mask's.
    """
    count = (lambda run: 1) if layout.mixes_frames else (lambda run: run.num_frames)
    fixed = [run.kind not in ("video", "clean") for run in layout.runs for _ in range(count(run))]
    if mask is None:
        return tuple(tuple(ALWAYS if row or column else CHOSEN for column in fixed) for row in fixed)
    seen = mask.frames.tolist()
    rows = []
    for i, row in enumerate(seen):
        own = [sees and seen[j][i] and not fixed[j] for j, sees in enumerate(row)]
        past = [j for j, sees in enumerate(row) if sees and not own[j] and not fixed[j]]
        dense = _dense(past, mask.sink, config) | {j for j, mine in enumerate(own) if mine and config.dense.own}
        rows.append(
            tuple(
                HIDDEN if not sees else ALWAYS if fixed[i] or fixed[j] or j in dense else CHOSEN
                for j, sees in enumerate(row)
            )
        )
    return tuple(rows)


def cached_classes(plan, frames: Sequence[int | None], first: int, sink: int, config: AsaConfig) -> Classes:
    """Returns what the frames of a cache's keys (None: pinned) are to those of a pass; `first`: the sink's first frame.

    A recache, in which all frames of a window see each other, reads of them its own frame whole, and the sink.
    """
    pinned = {j for j, frame in enumerate(frames) if frame is None}
    places = {frame: j for j, frame in enumerate(frames) if frame is not None}
    in_sink = sum(1 for frame in places if frame < first + sink)
    rows = []
    for frame in plan.frames:
        own = {frame} if plan.recache else set(plan.frames)
        past = sorted(other for other in places if other not in own and (plan.recache or other < plan.span.start))
        dense = {places[past[j]] for j in _dense(range(len(past)), in_sink, config, not plan.recache)}
        if config.dense.own or plan.recache:
            dense |= {places[other] for other in own}
        rows.append(tuple(ALWAYS if j in pinned or j in dense else CHOSEN for j in range(len(frames))))
    return tuple(rows)


def _dense(past: Sequence[int], sink: int, config: AsaConfig, newest: bool = True) -> set[int]:
    """Returns which of the earlier frames, numbered from 0 in `past`, are read whole."""
    first = itertools.takewhile(lambda j: j < sink, past) if config.dense.sink else ()
    count = config.dense.newest if newest else 0
    return {*first, *(past[len(past) - min(count, len(past)) :] if count else ())}
