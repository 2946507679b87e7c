"""The gradient of the ancestor's in-place cache, for recordings that hold it.

A chunk's exit pass writes its keys into slots of the cache with their history; later passes without gradient replace
the values there, and roll them on, but leave the history in its slot. So a later exit pass that reads the slot sends
gradient to the earlier chunk's keys: the values of one pass, the gradient of another.
"""

from __future__ import annotations

import torch

from wan.cache import Chunks


class Leak:
    """While entered, `Chunks` has this leak. One video at a time, without checkpointing."""

    def __init__(self, room: int, fresh: int = 0):
        """room: frames of the cache. fresh: frames that a recache not from the video's start leaves in it, 0 = all."""
        self.room, self.fresh, self.filled = room, fresh, 0
        self.span, self.kept = None, {}  # (layer, slot) -> (k, v) of one frame, with gradient

    def __enter__(self):
        self.original = write = Chunks.write
        Chunks.write = lambda cache, layer, plan, k, v: self.write(write, cache, layer, plan, k, v)
        return self

    def __exit__(self, *error):
        Chunks.write = self.original

    def write(self, write, cache, layer: int, plan, k, v):
        """Returns what `put` does, with the history of the slots that are read."""
        if plan.span != self.span:
            self.enter(plan, cache.ledger)
        pair = write(cache, layer, plan, k, v)
        if not (torch.is_grad_enabled() and k.requires_grad):
            return pair
        unit, none = cache.shape.frame_tokens, torch.zeros_like(k[:, : cache.shape.frame_tokens])
        slots = [self.slot(frame, plan, cache.ledger) for frame in plan.read]
        history = [self.kept.get((layer, slot), (none, none)) for slot in slots]
        for n, frame in enumerate(plan.frames):
            where = slice(n * unit, (n + 1) * unit)
            self.kept[layer, self.slot(frame, plan, cache.ledger)] = (k[:, where], v[:, where])
        leaks = [torch.cat([h[i] - h[i].detach() for h in history] + [torch.zeros_like(k)], 1) for i in (0, 1)]
        return tuple(tensor + leak for tensor, leak in zip(pair, leaks, strict=True))

    def enter(self, plan, ledger) -> None:
        """The first pass of a chunk makes room: with gradient (an exit at step 0) the history moves along."""
        self.span = plan.span
        if plan.recache:
            self.filled = self.fresh if self.fresh and plan.span.start > 0 else self.filled
            return
        over = max(0, self.filled + len(plan.span) - self.room)
        self.filled += len(plan.span) - over
        if over and torch.is_grad_enabled():
            sink = ledger.sink_frames
            kept = {
                (n, s if s < sink else s - over): pair
                for (n, s), pair in self.kept.items()
                if not sink <= s < sink + over
            }
            self.kept = kept

    def slot(self, frame: int, plan, ledger) -> int:
        """Returns where a frame lies: the sink's in front, the others up to the pass's own."""
        sink = frame - ledger.first_frame
        return sink if sink < ledger.sink_frames else self.filled - (plan.span.stop - frame)

    def forget(self) -> None:
        """Drops all history: a critic's turn does."""
        self.kept = {}
