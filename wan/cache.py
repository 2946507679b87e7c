"""Storage of keys and values behind a ledger: `Ring` for inference, `Chunks` for training.

Two, because a ring reused under activation checkpointing is mutated before the recompute reads it:
the loss stays, the gradient is wrong (measured: 55 % off) and nothing complains.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wan.ledger import Ledger, Plan


@dataclass(frozen=True)
class CacheShape:
    """Sizes of one cache: layers, batch, heads, head width, tokens of one frame."""

    num_layers: int
    batch: int
    num_heads: int
    head_dim: int
    frame_tokens: int


class TextStore:
    """Keys and values of the text per layer, kept while condition and weights stay the same.

    Filled only without grad: a pass with gradient recomputes them, or the text projections would
    receive none.
    """

    def __init__(self):
        self._key, self._kept = None, {}

    def get(self, layer: int, key, make):
        """Returns what `make()` returned for this layer and key."""
        if torch.is_grad_enabled():
            return make()
        if self._key != key:
            self._key, self._kept = key, {}
        if layer not in self._kept:
            self._kept[layer] = make()
        return self._kept[layer]


class Ring:
    """Per layer one tensor [B, (n + S + H) tokens, N, E], laid out [scratch n | sink S | history H].

    Every pass writes only the scratch (right-aligned when the chunk is shorter) and reads one
    contiguous view; slots are filled from the left, so scratch and filled slots always touch.
    Committing copies the scratch into its slots; nothing older moves, addresses are static once
    the window is full, and a chunk can be abandoned at any step. No gradient.
    """

    def __init__(self, ledger: Ledger, shape: CacheShape, device=None, dtype=torch.float32):
        self.ledger, self.shape = ledger, shape
        tokens = (ledger.chunk_frames + ledger.num_slots) * shape.frame_tokens
        size = (shape.num_layers, shape.batch, tokens, shape.num_heads, shape.head_dim)
        self.keys = torch.zeros(size, device=device, dtype=dtype)
        self.values = torch.zeros(size, device=device, dtype=dtype)
        self.text = TextStore()

    def put(self, layer: int, plan: Plan, k: torch.Tensor, v: torch.Tensor):
        """Writes the pass's own k, v [B, L, N, E] to the scratch; returns views of all that it sees."""
        assert not torch.is_grad_enabled(), "a ring has no gradient; training uses Chunks"
        if len(k) != self.shape.batch:
            raise ValueError(f"a batch of {len(k)} came to a cache of batch {self.shape.batch}")
        unit, chunk = self.shape.frame_tokens, self.ledger.chunk_frames
        begin = (chunk - len(plan.span)) * unit
        scratch, end = slice(begin, chunk * unit), (chunk + len(plan.slots)) * unit
        self.keys[layer, :, scratch].copy_(k)
        self.values[layer, :, scratch].copy_(v)
        return self.keys[layer, :, begin:end], self.values[layer, :, begin:end]

    def key_positions(self, plan: Plan) -> tuple[int, ...]:
        """Returns the rotary position of each frame of what `put` returns, in its physical order."""
        by_slot = sorted(zip(plan.slots, plan.read_positions, strict=True))
        return (*plan.positions, *(position for _, position in by_slot))

    def freeze(self, plan: Plan) -> Ring:
        """Returns what a pass may close over: the ring itself, for it is never recomputed."""
        return self

    def commit(self, plan: Plan) -> None:
        """Copies the frames that `plan` keeps from the scratch to their slots, runs at a time."""
        unit, chunk = self.shape.frame_tokens, self.ledger.chunk_frames
        begin = chunk - len(plan.span)
        for index, slot, length in _runs(plan.writes):
            source = slice((begin + index) * unit, (begin + index + length) * unit)
            target = slice((chunk + slot) * unit, (chunk + slot + length) * unit)
            for store in (self.keys, self.values):
                store[:, :, target].copy_(store[:, :, source])
        self.ledger.commit(plan)

    def frame(self, layer: int, frame: int):
        """Returns (k, v) [B, tokens, N, E] of one committed frame."""
        start = (self.ledger.chunk_frames + self.ledger.slot_of[frame]) * self.shape.frame_tokens
        where = slice(start, start + self.shape.frame_tokens)
        return self.keys[layer, :, where], self.values[layer, :, where]


class Chunks:
    """Per layer a map frame -> (k, v) as the committing passes returned them; evicting drops the reference.

    A pass reads a `cat` of the frames its plan names and its own, so gradient flows through its own
    keys and values only, and a recompute during backward sees exactly what the forward saw.
    """

    def __init__(self, ledger: Ledger, shape: CacheShape):
        self.ledger, self.shape = ledger, shape
        self.text = TextStore()
        self._kept: list[dict] = [{} for _ in range(shape.num_layers)]
        self._own: list = [None] * shape.num_layers

    def put(self, layer: int, plan: Plan, k: torch.Tensor, v: torch.Tensor):
        """Returns all keys and values that the pass sees: the kept frames in time order, then its own."""
        if not torch.is_grad_enabled():
            self._own[layer] = (k, v)
        kept = [self._kept[layer][f] for f in plan.read]
        if not kept:
            return k, v
        return torch.cat([pair[0] for pair in kept] + [k], 1), torch.cat([pair[1] for pair in kept] + [v], 1)

    def key_positions(self, plan: Plan) -> tuple[int, ...]:
        """Returns the rotary position of each frame of what `put` returns, in its order."""
        return (*plan.read_positions, *plan.positions)

    def freeze(self, plan: Plan) -> Chunks:
        """Returns a view with the tensors of now: a checkpointed block must not see later commits."""
        if not torch.is_grad_enabled():
            return self
        frozen = Chunks(self.ledger, self.shape)
        frozen.text = self.text
        frozen._kept = [{f: kept[f] for f in plan.read} for kept in self._kept]
        return frozen

    def commit(self, plan: Plan) -> None:
        """Keeps the frames that `plan` names from the last pass without grad; drops the evicted."""
        unit = self.shape.frame_tokens
        for layer, kept in enumerate(self._kept):
            k, v = self._own[layer]
            for frame in plan.evict:
                del kept[frame]
            for index, _ in plan.writes:
                where = slice(index * unit, (index + 1) * unit)
                kept[plan.span.start + index] = (k[:, where], v[:, where])
        self._own = [None] * self.shape.num_layers
        self.ledger.commit(plan)

    def frame(self, layer: int, frame: int):
        """Returns (k, v) [B, tokens, N, E] of one committed frame."""
        return self._kept[layer][frame]


def _runs(writes):
    """Groups (index, slot) pairs into (index, slot, length) where both are consecutive."""
    runs: list[list[int]] = []
    for index, slot in writes:
        if runs and runs[-1][0] + runs[-1][2] == index and runs[-1][1] + runs[-1][2] == slot:
            runs[-1][2] += 1
        else:
            runs.append([index, slot, 1])
    return [tuple(r) for r in runs]
