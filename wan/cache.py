"""Storage of keys and values behind a ledger: `Ring` for inference, `Chunks` for training.

Two, because a ring reused under activation checkpointing is mutated before the recompute reads it:
the loss stays, the gradient is wrong (measured: 55 % off) and nothing complains.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Self

import torch

from wan.geometry import Span
from wan.ledger import Ledger, Plan
from wan.rope import rotate
from wan.tokens import Run


@dataclass(frozen=True)
class CacheShape:
    """Sizes of one cache: layers, batch, heads, head width, tokens of one frame."""

    num_layers: int
    batch: int
    num_heads: int
    head_dim: int
    frame_tokens: int


class TextKVCache:
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


class KVCache:
    """Common base of the two storages: snapshot, restore, rewind, reset, pinned runs.

    Pinned keys are kept as the prefill pass made them, not rotated: their positions may differ in every forward.
    """

    ledger: Ledger
    shape: CacheShape
    text: TextKVCache

    def write(self, layer: int, plan: Plan, k: torch.Tensor, v: torch.Tensor, pinned_angles=None):
        """Takes a pass's own k, v [B, L, N, E]; returns all keys and values that it may see."""
        raise NotImplementedError

    def key_runs(self, plan: Plan, own: Run) -> tuple[Run, ...]:
        """Returns the runs of what `write` returns, in their physical order."""
        raise NotImplementedError

    def key_frames(self, plan: Plan) -> tuple[int | None, ...]:
        """Returns the video's frame of each frame of what `write` returns, in their physical order; None: pinned."""
        scratch, slots = ring_frames(plan)
        return *scratch, *(None for run in plan.pinned for _ in range(run.num_frames)), *slots

    def frozen_view(self, plan: Plan) -> KVCache:
        """Returns what a pass may close over: nothing that is committed later shows in it."""
        raise NotImplementedError

    def commit(self, plan: Plan) -> None:
        """Keeps the keys and values of the last pass without grad, as the plan says."""
        raise NotImplementedError

    def rewind(self, end: int | None = None) -> Span:
        """Empties the window for a recache chunk by chunk; returns the frames to commit again (`Ledger.rewind`)."""
        span = self.ledger.rewind(end)
        self.prune()
        return span

    def reset(self) -> None:
        """Drops the history, and the sink unless it is kept."""
        self.ledger.reset()
        self.prune()

    def snapshot(self, device=None) -> dict[str, torch.Tensor]:
        """Returns copies of the committed keys and values [layers, B, F tokens, N, E], frames in time order.

        Pinned ones, if there are any, are apart.

        device: where they lie; another one takes no memory of a second window where the cache is.
        """
        frames, layers = list(self.ledger.slot_of), range(self.shape.num_layers)
        found = {}
        if self.ledger.pinned and self.ledger.prefilled:
            pairs = zip(*(self.pinned(n) for n in layers), strict=True)
            found = {f"pinned_{n}": torch.stack(x).to(device) for n, x in zip(("keys", "values"), pairs, strict=True)}
        if not frames:
            return found
        rows = [[torch.cat([self.frame(n, f)[i] for f in frames], 1).to(device) for n in layers] for i in (0, 1)]
        return {"keys": torch.stack(rows[0]), "values": torch.stack(rows[1]), **found}

    def restore(self, book: dict, tensors: dict[str, torch.Tensor]) -> None:
        """Takes back the ledger's `state` and what `snapshot` returned next to it."""
        self.ledger.load_state(book)
        self.prune()
        for layer in range(self.shape.num_layers) if "pinned" in book else ():
            self.pin(layer, tensors["pinned_keys"][layer], tensors["pinned_values"][layer])
        for number, frame in enumerate(self.ledger.slot_of):
            where = slice(number * self.shape.frame_tokens, (number + 1) * self.shape.frame_tokens)
            for layer in range(self.shape.num_layers):
                self.write_frame(layer, frame, tensors["keys"][layer][:, where], tensors["values"][layer][:, where])

    def commit_prefill(self) -> None:
        """Lets chunks read the pinned runs that `pin` wrote in every layer."""
        self.ledger.prefilled = True

    def pin(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Writes the keys, not rotated, and values [B, P, N, E] of the pinned runs."""
        raise NotImplementedError

    def pinned(self, layer: int):
        """Returns (k, v) [B, P, N, E] of the pinned runs, not rotated."""
        raise NotImplementedError

    def share(self, other: Self) -> None:
        """Keeps text and pinned keys that are not rotated in one place with another cache of the same condition."""
        self.text = other.text

    def fork(self) -> Self:
        """Returns a copy; the two share nothing that later changes."""
        return self._mapped(torch.clone)

    def to(self, device) -> Self:
        """Returns the cache on a device."""
        return self._mapped(lambda tensor: tensor.to(device))

    def _mapped(self, change) -> Self:
        """Returns a cache of changed tensors, with a ledger of its own."""
        other = copy.copy(self)
        other.ledger, other.text = copy.deepcopy(self.ledger), TextKVCache()
        return other

    def frame(self, layer: int, frame: int):
        """Returns (k, v) [B, tokens, N, E] of one committed frame."""
        raise NotImplementedError

    def write_frame(self, layer: int, frame: int, k: torch.Tensor, v: torch.Tensor) -> None:
        raise NotImplementedError

    def prune(self) -> None:
        """Lets go of what the ledger no longer names."""


class Ring(KVCache):
    """Per layer one tensor of (n + S + H) frames and P pinned tokens: [scratch n | pinned P | sink S | history H].

    Every pass writes only the scratch (right-aligned when the chunk is shorter) and reads one
    contiguous view; slots are filled from the left, so scratch, pinned and filled slots always touch.
    Where keys are rotated when written, the pinned part holds rotated keys, rotated again from the raw ones
    when their positions change.
    Committing copies the scratch into its slots; nothing older moves, addresses are static once
    the window is full, and a chunk can be abandoned at any step. A recache fills the whole ring in one
    pass: each frame goes to its slot, those that are not kept to the scratch. No gradient.
    """

    def __init__(self, ledger: Ledger, shape: CacheShape, device=None, dtype=torch.float32):
        self.ledger, self.shape = ledger, shape
        self._slots = ledger.chunk_frames * shape.frame_tokens + ledger.pinned_tokens  # where the first slot begins
        tokens = self._slots + ledger.num_slots * shape.frame_tokens
        size = (shape.num_layers, shape.batch, tokens, shape.num_heads, shape.head_dim)
        self.keys = torch.zeros(size, device=device, dtype=dtype)
        self.values = torch.zeros(size, device=device, dtype=dtype)
        self.text = TextKVCache()
        self._keeps_raw = bool(ledger.pinned) and ledger.config.rope == "write"  # apart from what is read
        self._raw = self.keys[:, :, self._pinned]  # of the pinned runs, not rotated
        if self._keeps_raw:
            self._raw = self._raw.clone()
        self._rotated_at: list = [None] * shape.num_layers  # the pinned runs, as they are rotated in `keys`

    @property
    def _pinned(self) -> slice:
        return slice(self._slots - self.ledger.pinned_tokens, self._slots)

    def write(self, layer: int, plan: Plan, k: torch.Tensor, v: torch.Tensor, pinned_angles=None):
        """Writes the pass's own k, v [B, L, N, E] to the scratch (a recache: to their slots too).

        pinned_angles: of the pinned keys, where keys are rotated when written. Returns views of all that it attends to.
        """
        assert not torch.is_grad_enabled(), "a ring has no gradient; training uses Chunks"
        if len(k) != self.shape.batch:
            raise ValueError(f"a batch of {len(k)} came to a cache of batch {self.shape.batch}")
        if pinned_angles is not None and self._rotated_at[layer] != plan.pinned:
            self.keys[layer, :, self._pinned].copy_(rotate(self._raw[layer], *pinned_angles))
            self._rotated_at[layer] = plan.pinned
        unit, chunk = self.shape.frame_tokens, self.ledger.chunk_frames
        loose, stored = plan.scratch, plan.writes if plan.recache else ()
        first = chunk - len(loose)
        places = [(index, (first + i) * unit) for i, index in enumerate(loose)]
        places += [(index, self._slots + slot * unit) for index, slot in stored]
        for index, place, length in _runs(sorted(places), unit):
            source, target = slice(index * unit, (index + length) * unit), slice(place, place + length * unit)
            self.keys[layer, :, target].copy_(k[:, source])
            self.values[layer, :, target].copy_(v[:, source])
        visible = slice(first * unit, self._slots + (len(plan.slots) + len(stored)) * unit)
        return self.keys[layer, :, visible], self.values[layer, :, visible]

    def key_runs(self, plan: Plan, own: Run) -> tuple[Run, ...]:
        """Returns the token runs of what `write` returns, in its physical order; own: the run of the pass."""
        return ring_runs(plan, own)

    def pin(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Writes the keys, not rotated, and values [B, P, N, E] of the pinned runs."""
        self._raw[layer].copy_(k)
        self.values[layer, :, self._pinned].copy_(v)
        self._rotated_at[layer] = None

    def pinned(self, layer: int):
        """Returns (k, v) [B, P, N, E] of the pinned runs, not rotated."""
        return self._raw[layer], self.values[layer, :, self._pinned]

    def share(self, other: Self) -> None:
        """Keeps text and pinned keys that are not rotated in one place with another cache of the same condition."""
        super().share(other)
        if self._keeps_raw:
            self._raw = other._raw

    def frozen_view(self, plan: Plan) -> Ring:
        """Returns what a pass may close over: the ring itself, for it is never recomputed."""
        return self

    def commit(self, plan: Plan) -> None:
        """Copies the frames that `plan` keeps from the scratch to their slots (a recache did).

        Frame by frame: neighbours may part where the ring turns, and every chunk should run the same operations.
        """
        unit, chunk = self.shape.frame_tokens, self.ledger.chunk_frames
        begin = chunk - len(plan.span)
        for index, slot in () if plan.recache else plan.writes:
            source = slice((begin + index) * unit, (begin + index + 1) * unit)
            target = slice(self._slots + slot * unit, self._slots + (slot + 1) * unit)
            for store in (self.keys, self.values):
                store[:, :, target].copy_(store[:, :, source])
        self.ledger.commit(plan)

    def frame(self, layer: int, frame: int):
        """Returns (k, v) [B, tokens, N, E] of one committed frame."""
        start = self._slots + self.ledger.slot_of[frame] * self.shape.frame_tokens
        where = slice(start, start + self.shape.frame_tokens)
        return self.keys[layer, :, where], self.values[layer, :, where]

    def write_frame(self, layer: int, frame: int, k: torch.Tensor, v: torch.Tensor) -> None:
        for target, source in zip(self.frame(layer, frame), (k, v), strict=True):
            target.copy_(source)

    def _mapped(self, change) -> Self:
        other = super()._mapped(change)
        other.keys, other.values = change(self.keys), change(self.values)
        other._raw = change(self._raw) if self._keeps_raw else other.keys[:, :, self._pinned]
        other._rotated_at = [*self._rotated_at]
        return other


class Chunks(KVCache):
    """Per layer a map frame -> (k, v) as the committing passes returned them; evicting drops the reference.

    A pass reads a `cat` of the frames its plan names and its own, so gradient flows through its own
    keys and values only, and a recompute during backward sees exactly what the forward saw.
    With same-step content a pass with gradient may be the committing one: its keys are kept detached.
    """

    def __init__(self, ledger: Ledger, shape: CacheShape):
        self.ledger, self.shape = ledger, shape
        self.text = TextKVCache()
        self._kept: list[dict] = [{} for _ in range(shape.num_layers)]
        self._own: list = [None] * shape.num_layers
        self._pinned: list = [None] * shape.num_layers

    def write(self, layer: int, plan: Plan, k: torch.Tensor, v: torch.Tensor, pinned_angles=None):
        """Returns all keys and values that the pass attends to: pinned runs, cached frames in time order, its own.

        pinned_angles: of the pinned keys, where keys are rotated when written.
        """
        if self._own:  # that of a frozen view is empty, but until a commit that may be its own
            self._own[layer] = (k.detach(), v.detach()) if k.requires_grad else (k, v)
        kept = [self._kept[layer][f] for f in plan.read]
        if plan.pinned:
            raw, values = self._pinned[layer]
            kept.insert(0, (raw if pinned_angles is None else rotate(raw, *pinned_angles), values))
        if not kept:
            return k, v
        return torch.cat([pair[0] for pair in kept] + [k], 1), torch.cat([pair[1] for pair in kept] + [v], 1)

    def key_runs(self, plan: Plan, own: Run) -> tuple[Run, ...]:
        """Returns the token runs of what `write` returns, in its order; own: the run of the pass."""
        return *plan.pinned, replace(own, times=(*plan.read_positions, *plan.positions))

    def key_frames(self, plan: Plan) -> tuple[int | None, ...]:
        """Returns the video's frame of each frame of what `write` returns, in its order; None: pinned."""
        return *(None for run in plan.pinned for _ in range(run.num_frames)), *plan.read, *plan.frames

    def pin(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Keeps the keys, not rotated, and values [B, P, N, E] of the pinned runs."""
        self._pinned[layer] = (k.clone(), v.clone())

    def pinned(self, layer: int):
        """Returns (k, v) [B, P, N, E] of the pinned runs, not rotated."""
        return self._pinned[layer]

    def frozen_view(self, plan: Plan) -> Chunks:
        """Returns a view with the tensors of now: a checkpointed block must not see later commits."""
        if not torch.is_grad_enabled():
            return self
        frozen = Chunks(self.ledger, self.shape)
        frozen.text = self.text
        frozen._kept = [{f: kept[f] for f in plan.read} for kept in self._kept]
        frozen._pinned = list(self._pinned)
        frozen._own = self._own if self.ledger.config.content == "same_step" else []
        return frozen

    def commit(self, plan: Plan) -> None:
        """Keeps the frames that `plan` names from the last pass without grad; drops the evicted."""
        unit = self.shape.frame_tokens
        for layer, kept in enumerate(self._kept):
            k, v = self._own[layer]
            for frame in plan.evict:
                del kept[frame]
            for index, _ in plan.writes:
                own = [t[:, index * unit : (index + 1) * unit] for t in (k, v)]
                # a sink outlives the frames it was recached with; as a view it would keep the memory of all
                kept[plan.frames[index]] = tuple(t.clone() for t in own) if plan.recache else tuple(own)
        self._own.clear()  # a recompute in backward, which holds this list, leaves nothing in it
        self._own = [None] * self.shape.num_layers
        self.ledger.commit(plan)

    def frame(self, layer: int, frame: int):
        """Returns (k, v) [B, tokens, N, E] of one committed frame."""
        return self._kept[layer][frame]

    def write_frame(self, layer: int, frame: int, k: torch.Tensor, v: torch.Tensor) -> None:
        self._kept[layer][frame] = (k.clone(), v.clone())  # not a view of all that was read

    def prune(self) -> None:
        named = self.ledger.slot_of
        self._kept = [{f: pair for f, pair in kept.items() if f in named} for kept in self._kept]

    def _mapped(self, change) -> Self:
        other = super()._mapped(change)
        other._kept = [{f: (change(k), change(v)) for f, (k, v) in kept.items()} for kept in self._kept]
        other._pinned = [pair and (change(pair[0]), change(pair[1])) for pair in self._pinned]
        other._own = [None] * self.shape.num_layers
        return other


def ring_frames(plan: Plan) -> tuple[list[int], list[int]]:
    """Returns the frames in the scratch and those in the slots, in their physical order."""
    by_slot = list(zip(plan.slots, plan.read, strict=True))
    if plan.recache:
        by_slot += [(slot, plan.frames[index]) for index, slot in plan.writes]
    return [plan.frames[i] for i in plan.scratch], [frame for _, frame in sorted(by_slot)]


def ring_runs(plan: Plan, own: Run) -> tuple[Run, ...]:
    """Returns the token runs of scratch, pinned runs and slots, in their physical order; own: the run of the pass."""
    places = dict(zip((*plan.read, *plan.frames), (*plan.read_positions, *plan.positions), strict=True))
    scratch, slots = (replace(own, times=tuple(places[frame] for frame in frames)) for frames in ring_frames(plan))
    return tuple(run for run in (scratch, *plan.pinned, slots) if run.num_frames)


def _runs(writes, unit: int):
    """Groups (index, place) pairs into (index, place, length) where both are consecutive; places are `unit` apart."""
    runs: list[list[int]] = []
    for index, place in writes:
        if runs and runs[-1][0] + runs[-1][2] == index and runs[-1][1] + runs[-1][2] * unit == place:
            runs[-1][2] += 1
        else:
            runs.append([index, place, 1])
    return [tuple(r) for r in runs]
