"""A storage of keys and values that lies apart from the memory that attention reads: `Staged`, for inference.

Between the passes keys and values lie at a home: on the device or in CPU memory. A pass lays out one layer after the
other in a working buffer, as a `Ring` has it, and the next layer's history comes while the current one computes. What
every step's cache has in common, the buffers and the pinned runs' keys and values, is there once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol, Self

import torch

from wan.cache import CacheShape, KVCache, TextKVCache, ring_runs
from wan.ledger import Ledger, Plan
from wan.rope import rotate
from wan.tokens import Run


class Copier(Protocol):
    """Copies next to the computation; copies keep their order among themselves (`utils.offload`)."""

    def home(self, shape, dtype: torch.dtype) -> torch.Tensor:
        """Returns zeros in CPU memory from which copies run next to the computation."""

    def mark(self) -> Any:
        """Returns what stands for the computation that was queued so far."""

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Any = None) -> Any:
        """Queues a copy behind the computation `after`; returns what `wait` takes."""

    def wait(self, copied: Any) -> None:
        """Lets the computation that is queued from now on wait for a copy."""

    def finish(self) -> None:
        """Returns when all copies are done."""


class Workspace:
    """What the caches of one video share: working buffers, and the pinned runs' keys (not rotated) and values.

    depth: buffers, used in turn: two where layers are fetched ahead, else one. Made when they are first used, so that
    caches which come to share one have none of their own.
    """

    def __init__(self, shape: CacheShape, tokens: int, pinned_tokens: int, depth: int, device, dtype: torch.dtype):
        layer = (shape.batch, tokens, shape.num_heads, shape.head_dim)
        pinned = (shape.num_layers, shape.batch, pinned_tokens, shape.num_heads, shape.head_dim)
        self.sizes, self.depth, self.device, self.dtype = (layer, pinned), depth, device, dtype
        self.staged: list[Any] = [
            None
        ] * depth  # ((cache, layer) that was fetched for the pass's next call, its copies)

    @cached_property
    def buffers(self) -> list[tuple[torch.Tensor, ...]]:
        """Keys and values [B, tokens, N, E] of one layer, `depth` times."""
        return [self._pair(self.sizes[0]) for _ in range(self.depth)]

    @cached_property
    def raw(self) -> tuple[torch.Tensor, ...]:
        """Keys and values [layers, B, P, N, E] of the pinned runs."""
        return self._pair(self.sizes[1])

    def _pair(self, size) -> tuple[torch.Tensor, ...]:
        return tuple(torch.zeros(size, device=self.device, dtype=self.dtype) for _ in "kv")

    def mapped(self, change) -> Workspace:
        """Returns a workspace of changed pinned runs, with buffers of its own on their device."""
        other = copy.copy(self)
        for name in ("buffers", "raw"):
            vars(other).pop(name, None)
        other.staged = [None] * self.depth
        raw = tuple(change(x) for x in self.raw)
        other.raw, other.device = raw, raw[0].device  # type: ignore[misc]
        return other


class Staged(KVCache):
    """A cache whose frames lie at home; what `write` returns is what a `Ring` of the same ledger returns, bit for bit.

    Home: [layers, B, places, tokens, N, E], a place for each slot and for each frame of a chunk. Every pass leaves its
    own frames in the places of the chunk; committing exchanges places and slots, and moves no key. No gradient.
    """

    def __init__(
        self, ledger: Ledger, shape: CacheShape, copier: Copier, device=None, dtype=torch.float32, at_home=False
    ):
        """at_home: keys and values lie in CPU memory, else on the device."""
        self.ledger, self.shape, self.text = ledger, shape, TextKVCache()
        self._copier, self._at_home = copier, at_home
        self._slots = ledger.chunk_frames * shape.frame_tokens + ledger.pinned_tokens  # where the first slot begins
        tokens = self._slots + ledger.num_slots * shape.frame_tokens
        places = ledger.num_slots + ledger.chunk_frames
        size = (shape.num_layers, shape.batch, places, shape.frame_tokens, shape.num_heads, shape.head_dim)
        make = copier.home if at_home else lambda size, dtype: torch.zeros(size, device=device, dtype=dtype)
        self.home = tuple(make(size, dtype) for _ in "kv")
        self.work = Workspace(shape, tokens, ledger.pinned_tokens, 1 + at_home, device, dtype)
        self._place = list(range(ledger.num_slots))  # slot -> place
        self._own = list(range(ledger.num_slots, places))  # frame of a chunk, right-aligned -> place

    @property
    def _pinned(self) -> slice:
        return slice(self._slots - self.ledger.pinned_tokens, self._slots)

    def write(self, layer: int, plan: Plan, k: torch.Tensor, v: torch.Tensor, pinned_angles=None):
        """Lays out a layer around the pass's own k, v [B, L, N, E]; returns views of all that it attends to.

        They hold until the next call (two calls, where layers are fetched ahead).
        """
        assert not torch.is_grad_enabled(), "a staged cache has no gradient; training uses Chunks"
        if len(k) != self.shape.batch:
            raise ValueError(f"a batch of {len(k)} came to a cache of batch {self.shape.batch}")
        number = layer % self.work.depth
        if (staged := self.work.staged[number]) is None or staged[0] != (id(self), layer):
            staged = self._fetch(layer, plan)
        self.work.staged[number] = None  # own frames of another pass come into it
        if self._at_home and layer + 1 < self.shape.num_layers:
            self._fetch(layer + 1, plan)
        for copied in staged[1]:
            self._copier.wait(copied)
        keys, values = self.work.buffers[number]
        if plan.pinned:
            raw = self.work.raw[0][layer]
            keys[:, self._pinned].copy_(raw if pinned_angles is None else rotate(raw, *pinned_angles))
            values[:, self._pinned].copy_(self.work.raw[1][layer])
        first = self.ledger.chunk_frames - len(plan.scratch)
        for index, place, target in self._own_places(plan, first):
            self._keep(layer, index, place, target, (k, v), (keys, values))
        stored = len(plan.writes) if plan.recache else 0
        stop = self._slots + (len(plan.slots) + stored) * self.shape.frame_tokens
        visible = slice(first * self.shape.frame_tokens, stop)
        return keys[:, visible], values[:, visible]

    def key_runs(self, plan: Plan, own: Run) -> tuple[Run, ...]:
        """Returns the token runs of what `write` returns, in its physical order; own: the run of the pass."""
        return ring_runs(plan, own)

    def _own_places(self, plan: Plan, first: int) -> Iterator[tuple[int, int, int]]:
        """Yields (index in the pass, place at home, token in the buffer) of the frames of a pass."""
        unit = self.shape.frame_tokens
        for number, index in enumerate(plan.scratch):
            if not plan.recache:  # of a recache these are not kept
                yield index, self._own[first + number], (first + number) * unit
            else:
                yield index, -1, (first + number) * unit
        for index, slot in plan.writes if plan.recache else ():
            yield index, self._place[slot], self._slots + slot * unit

    def _keep(self, layer: int, index: int, place: int, target: int, own, buffers) -> None:
        """Writes one frame of a pass to its place in the buffer, and at home unless the place is -1."""
        unit = self.shape.frame_tokens
        source, where = slice(index * unit, (index + 1) * unit), slice(target, target + unit)
        for pair, buffer in zip(own, buffers, strict=True):
            buffer[:, where].copy_(pair[:, source])
        if place < 0:
            return
        made = self._copier.mark() if self._at_home else None
        for pair, home in zip(own, self.home, strict=True):
            for sample in range(self.shape.batch):
                self._move(home[layer, sample, place], pair[sample, source], made)

    def _move(self, target: torch.Tensor, source: torch.Tensor, after=None):
        """Copies next to the computation where the home is CPU memory, else within it."""
        if self._at_home:
            return self._copier.copy(target, source, after)
        target.copy_(source)
        return None

    def _fetch(self, layer: int, plan: Plan) -> tuple:
        """Queues the copies of a layer's history into its buffer, behind what reads the buffer."""
        number, unit = layer % self.work.depth, self.shape.frame_tokens
        after = self._copier.mark() if self._at_home else None  # the attention before the last has been queued
        copies = []
        for begin, place, length in _runs_of([self._place[slot] for slot in range(len(plan.slots))]):
            where = slice(self._slots + begin * unit, self._slots + (begin + length) * unit)
            for buffer, home in zip(self.work.buffers[number], self.home, strict=True):
                for sample in range(self.shape.batch):
                    frames = home[layer, sample, place : place + length].flatten(0, 1)
                    copies.append(self._move(buffer[sample, where], frames, after))
        self.work.staged[number] = ((id(self), layer), [copied for copied in copies if copied is not None])
        return self.work.staged[number]

    def frozen_view(self, plan: Plan) -> Staged:
        """Returns what a pass may close over: the cache itself, for it is never recomputed."""
        return self

    def commit(self, plan: Plan) -> None:
        """Exchanges the places of the frames that `plan` keeps with those of their slots (a recache wrote these)."""
        begin = self.ledger.chunk_frames - len(plan.span)
        for index, slot in () if plan.recache else plan.writes:
            own = begin + index
            self._place[slot], self._own[own] = self._own[own], self._place[slot]
        self.ledger.commit(plan)

    def pin(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Writes the keys, not rotated, and values [B, P, N, E] of the pinned runs, for all caches of the video."""
        for raw, given in zip(self.work.raw, (k, v), strict=True):
            raw[layer].copy_(given)

    def pinned(self, layer: int):
        """Returns (k, v) [B, P, N, E] of the pinned runs, not rotated."""
        return self.work.raw[0][layer], self.work.raw[1][layer]

    def share(self, other: Self) -> None:
        """Keeps text, buffers and pinned runs in one place with another cache of the same condition."""
        super().share(other)
        self.work, self._copier = other.work, other._copier  # one order of copies for what is shared

    def frame(self, layer: int, frame: int):
        """Returns (k, v) [B, tokens, N, E] of one committed frame, at home."""
        self._copier.finish()
        place = self._place[self.ledger.slot_of[frame]]
        return self.home[0][layer, :, place], self.home[1][layer, :, place]

    def write_frame(self, layer: int, frame: int, k: torch.Tensor, v: torch.Tensor) -> None:
        for target, source in zip(self.frame(layer, frame), (k, v), strict=True):
            target.copy_(source)

    def fork(self) -> Self:
        """Returns a copy; the two share nothing that later changes."""
        other = super().fork()
        if self._at_home:
            other.home = tuple(self._copier.home(tuple(x.shape), x.dtype).copy_(x) for x in self.home)
        return other

    def _mapped(self, change) -> Self:
        self._copier.finish()
        other = super()._mapped(change)
        other._place, other._own = [*self._place], [*self._own]
        other.work = self.work.mapped(change)
        if not self._at_home:  # else it stays there when a video moves to another device
            other.home = tuple(change(x) for x in self.home)
        return other


def _runs_of(places: list[int]) -> Iterator[tuple[int, int, int]]:
    """Yields (first slot, its place, length) of neighbouring slots whose places are neighbours too."""
    begin = 0
    for slot in range(1, len(places) + 1):
        if slot == len(places) or places[slot] != places[slot - 1] + 1:
            yield begin, places[begin], slot - begin
            begin = slot
