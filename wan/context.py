"""What a query may see: `Full`, `Masked`, `Cached`. Attention layers know no other difference.

A context opens one `View` per forward: positions and angles are computed there, once, and each
layer calls `view.extend(layer, q, k, v)`. Whether keys are rotated when written or when read is
decided here and nowhere else.
"""

from __future__ import annotations

import torch

from wan.attention.masks import FrameMask
from wan.cache import TextKVCache
from wan.geometry import Span
from wan.rope import RotaryTable, rotate


class View:
    """One forward's view: rotates, stores and returns what each layer attends to."""

    def __init__(self, query_angles, key_angles, text: TextKVCache, mask=None, cache=None, plan=None):
        self._query_angles, self._key_angles = query_angles, key_angles
        self._mask, self._cache, self._plan = mask, cache, plan
        self.text = text

    def extend(self, layer: int, q, k, v):
        """[B, L, N, E] -> (q, k, v, mask): rotated queries, and all keys and values they may see."""
        q = rotate(q, *self._query_angles)
        if self._key_angles is None:  # rotated when written: keys share the queries' positions
            k = rotate(k, *self._query_angles)
        if self._cache is not None:
            k, v = self._cache.write(layer, self._plan, k, v)
        if self._key_angles is not None:  # rotated when read: one fused copy of the keys in view
            k = rotate(k, *self._key_angles)
        return q, k, v, self._mask


class Full:
    """Every token sees every other; positions 0..F-1 unless told."""

    def __init__(self, positions=None):
        self.positions, self.text = positions, TextKVCache()

    mask: FrameMask | None = None

    def open(self, num_frames: int, num_segments: int, table: RotaryTable, grid, device, dtype) -> View:
        """Returns the view of a forward over `num_segments` segments of `num_frames` frames each."""
        positions = list(self.positions if self.positions is not None else range(num_frames)) * num_segments
        if len(positions) != num_frames * num_segments:
            raise ValueError(f"{len(positions)} positions for {num_frames * num_segments} frames")
        return View(table(positions, grid, device, dtype), None, self.text, self.mask)


class Masked(Full):
    """A frame mask over the whole sequence (training on whole clips)."""

    def __init__(self, mask: FrameMask, positions=None):
        super().__init__(positions)
        self.mask = mask


class Cached:
    """The next span of a video over a cache (`Ring` or `Chunks`).

    Forwards with it leave committed frames as they are; `commit()` after the chunk's one context
    pass enters its keys and values.
    """

    def __init__(self, cache, span: Span):
        self.cache, self.plan = cache, cache.ledger.plan(span)
        self._angles = None  # the plan is the same for every pass of the chunk

    def open(self, num_frames: int, num_segments: int, table: RotaryTable, grid, device, dtype) -> View:
        """Returns the view of one forward over the span."""
        plan = self.plan
        if (num_frames, num_segments) != (len(plan.frames), 1):
            raise ValueError(f"{num_segments} x {num_frames} frames given for the span {plan.span}")
        if self._angles is None:
            keys = None
            if self.cache.ledger.config.rope == "read":
                keys = table(self.cache.key_positions(plan), grid, device, dtype)
            self._angles = (table(plan.positions, grid, device, dtype), keys)
        return View(*self._angles, self.cache.text, cache=self.cache.frozen_view(plan), plan=plan)

    def commit(self) -> None:
        """Enters the keys and values of the last forward; must have run without grad."""
        assert not torch.is_grad_enabled(), "the committing pass runs without grad"
        self.cache.commit(self.plan)


class Recached(Cached):
    """The latest frames of a window once more, under another condition: one forward in which all see each other."""

    def __init__(self, cache):
        self.cache, self.plan = cache, cache.ledger.plan_recache()
        self._angles = None
