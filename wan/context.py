"""What a query may attend to: `Full`, `Masked`, `Cached`; `Prefill` writes a cache's pinned runs.

A context opens one `View` per forward: layouts and angles are computed there, once, and each layer calls
`view.attend(layer, q, k, v, config)`. Whether keys are rotated when written or when read is decided here and
nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from wan.attention.call import AttentionCall
from wan.attention.config import AttentionConfig
from wan.attention.dispatch import attend
from wan.attention.masks import FrameMask
from wan.attention.selector import cached_classes, clip_classes
from wan.cache import KVCache, TextKVCache
from wan.geometry import Span
from wan.ledger import Plan
from wan.rope import RotaryTable, rotate
from wan.sequence import index
from wan.tokens import Run, TokenLayout


class View:
    """Self-attention of one forward: rotates q and k, extends k and v by the cache, then calls the kernel.

    selector: makes it sparse (`wan.attention.selector`), or None. selections: where a selector may keep what holds for
    all passes over a chunk, or None.
    """

    selections: dict | None = None

    def __init__(self, queries: TokenLayout, query_angles, text: TextKVCache, mask: FrameMask | None = None):
        self._queries, self._query_angles = queries, query_angles
        self._mask, self.text = mask, text
        self.selector: Any = None

    def attend(self, layer: int, q, k, v, config: AttentionConfig) -> torch.Tensor:
        """[B, L, N, E] of the layer's own tokens in; returns the attention output [B, L, N, E]."""
        if self._query_angles is not None:  # else positions are in the tokens
            q, k = rotate(q, *self._query_angles), rotate(k, *self._query_angles)
        return self._read(AttentionCall(q, k, v, layer, self._queries, self._queries, self._mask), config)

    def classes(self, config):
        """Returns what each key frame is to each query frame (`wan.attention.selector`)."""
        return clip_classes(self._queries, config, self._mask)

    def _read(self, call: AttentionCall, config: AttentionConfig) -> torch.Tensor:
        """Returns the attention output; of keys in padded blocks only the real ones are read."""
        if self.selector is not None:
            call = self.selector(call, self.classes)
        if call.selection is None and call.mask is None and call.keys.padded:
            places = index(call.keys, "real_places", call.k.device)
            call = replace(call, k=call.k.index_select(1, places), v=call.v.index_select(1, places))
        return attend(call, config)


class Full:
    """Every token sees every other. positions: of the frames (of each run that does not bring its own), 0.. if None.

    reference: the frame before which a portrait's reference does not stand; None = where it was pinned.
    """

    cached = False  # are the run's keys written to a cache?
    mask: FrameMask | None = None

    def __init__(self, positions: Sequence[float] | None = None):
        self.positions, self.text = positions, TextKVCache()
        self.reference: int | None = None

    def times(self, num_frames: int) -> Sequence[float]:
        """Returns the positions of the frames of a run."""
        positions = range(num_frames) if self.positions is None else self.positions
        if len(positions) != num_frames:
            raise ValueError(f"{len(positions)} positions for {num_frames} frames")
        return positions

    def place(self, portrait: Sequence) -> tuple:
        """Returns the runs of a portrait (`RunInput`) where they stand in this forward."""
        if self.reference is None:
            return tuple(portrait)
        return tuple(
            replace(run, positions=(tuple(max(t, self.reference) for t in run.positions[0]), *run.positions[1:]))
            if run.kind == "reference"
            else run
            for run in portrait
        )

    def open(self, layout: TokenLayout, table: RotaryTable, device, dtype) -> View:
        """Returns the view of one forward."""
        return View(layout, table.angles(layout, device, dtype), self.text, self.mask)


class Masked(Full):
    """A frame mask over the whole sequence (training on whole clips)."""

    def __init__(self, mask: FrameMask, positions: Sequence[float] | None = None):
        super().__init__(positions)
        self.mask = mask


class CachedView(View):
    """A view over a cache: keys are rotated when they are written (`key_angles` None), or all of them when read."""

    def __init__(self, queries, keys, query_angles, key_angles, pinned_angles, cache: KVCache, plan, kept: _Kept):
        super().__init__(queries, query_angles, cache.text)
        self._kept, self.selections = kept, kept.selections
        self._keys, self._key_angles = keys, key_angles
        self._pinned = () if pinned_angles is None else (pinned_angles,)
        self._cache, self._plan = cache, plan

    def attend(self, layer: int, q, k, v, config: AttentionConfig) -> torch.Tensor:
        """[B, L, N, E] of the layer's own tokens in; returns the attention output [B, L, N, E]."""
        q = rotate(q, *self._query_angles)
        if self._key_angles is None:  # rotated when written: keys share the queries' positions
            k = rotate(k, *self._query_angles)
        k, v = self._cache.write(layer, self._plan, k, v, *self._pinned)
        if self._key_angles is not None:  # rotated when read: one fused copy of the keys in view
            k = rotate(k, *self._key_angles)
        return self._read(AttentionCall(q, k, v, layer, self._queries, self._keys), config)

    def classes(self, config):
        """Returns what each key frame is to each query frame (`wan.attention.selector`); made once for a chunk."""
        if self._kept.classes is None:
            cache, plan = self._cache, self._plan
            sink = (cache.ledger.first_frame, cache.ledger.sink_frames)
            self._kept.classes = cached_classes(plan, cache.key_frames(plan), *sink, config)
        return self._kept.classes


@dataclass
class _Kept:
    """What holds for every pass over one chunk. selections: layer -> selection."""

    classes: Any = None
    selections: dict = field(default_factory=dict)


class Cached:
    """The next span of a video over a cache (`Ring` or `Chunks`).

    Forwards with it leave committed frames as they are; `commit()` after the chunk's one context
    pass enters its keys and values.
    pinned: the pinned runs at other positions than those of their prefill pass (a reference that moves along).
    """

    cached = True

    def __init__(self, cache: KVCache, span: Span, pinned: Sequence[Run] | None = None):
        self._start(cache, cache.ledger.plan(span), pinned)

    def _start(self, cache: KVCache, plan: Plan, pinned: Sequence[Run] | None) -> None:
        self.cache = cache
        self.plan = plan if pinned is None else cache.ledger.with_pinned(plan, pinned)
        self._kept = _Kept()
        self._opened: Any = None  # layouts and angles: the plan is the same for every pass of the chunk

    def times(self, num_frames: int) -> Sequence[float]:
        """Returns the positions of the span's frames."""
        if num_frames != len(self.plan.frames):
            raise ValueError(f"{num_frames} frames given for the span {self.plan.span}")
        return self.plan.positions

    def open(self, layout: TokenLayout, table: RotaryTable, device, dtype) -> View:
        """Returns the view of one forward over the span."""
        if len(layout.runs) != 1:
            kinds = [run.kind for run in layout.runs]
            raise ValueError(
                f"runs {kinds} given; a cached forward takes the frames of the span {self.plan.span} alone"
            )
        if self._opened is None:
            self._opened = self._layouts_and_angles(layout, table, device, dtype)
        keys, query_angles, key_angles, pinned_angles = self._opened
        frozen = self.cache.frozen_view(self.plan)
        return CachedView(layout, keys, query_angles, key_angles, pinned_angles, frozen, self.plan, self._kept)

    def _layouts_and_angles(self, layout: TokenLayout, table: RotaryTable, device, dtype):
        """Returns the keys' layout, and the angles of queries, of all keys (or None), of pinned keys (or None)."""
        plan = self.plan
        keys = TokenLayout(self.cache.key_runs(plan, layout.runs[0]), layout.order)
        queries = table.angles(layout, device, dtype)
        if self.cache.ledger.config.rope == "read":
            return keys, queries, table.angles(keys, device, dtype), None
        pinned = table.angles(TokenLayout(plan.pinned, layout.order), device, dtype) if plan.pinned else None
        return keys, queries, None, pinned

    def commit(self) -> None:
        """Enters the keys and values of the last forward; must have run without grad."""
        assert not torch.is_grad_enabled(), "the committing pass runs without grad"
        self.cache.commit(self.plan)


class Recached(Cached):
    """The latest frames of a window once more, under another condition: one forward in which all see each other."""

    def __init__(self, cache: KVCache, pinned: Sequence[Run] | None = None):
        self._start(cache, cache.ledger.plan_recache(), pinned)


class PrefillView(View):
    """Attention among the pinned runs alone; their keys go to the cache as they are, not rotated."""

    def __init__(self, layout: TokenLayout, angles, caches: Sequence[KVCache]):
        super().__init__(layout, angles, caches[0].text)
        self._caches = caches

    def attend(self, layer: int, q, k, v, config: AttentionConfig) -> torch.Tensor:
        """[B, L, N, E] of the layer's own tokens in; returns the attention output [B, L, N, E]."""
        for cache in self._caches:
            cache.pin(layer, k, v)
        return super().attend(layer, q, k, v, config)


class Prefill:
    """The one pass that writes the pinned runs of caches; they attend to each other. Without grad, then `commit()`.

    Once before the first chunk, and again where the condition changes. Several caches (those of the steps) keep what
    one pass made: pinned runs have no noise level that depends on the step.
    """

    cached = True

    def __init__(self, *caches: KVCache):
        self.caches = caches

    def times(self, num_frames: int) -> Sequence[float]:
        """Raises ValueError: pinned runs bring their positions."""
        raise ValueError("a pinned run has no frame of the video: give it positions")

    def open(self, layout: TokenLayout, table: RotaryTable, device, dtype) -> View:
        """Returns the view of the pass; until it is committed the cache cannot be read."""
        assert not torch.is_grad_enabled(), "a prefill pass runs without grad"
        for cache in self.caches:
            cache.ledger.begin_prefill(layout.runs)
        return PrefillView(layout, table.angles(layout, device, dtype), self.caches)

    def commit(self) -> None:
        """Lets chunks read what the pass wrote."""
        for cache in self.caches:
            cache.commit_prefill()
