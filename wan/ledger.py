"""Which frames of a film are kept, read and evicted, at which positions. Integers only.

The window is all that a query may see: sink + history + its own chunk. The sink is the film's
first frames and is never evicted; the history is the latest `window - sink - chunk` frames before
the chunk, whatever the chunk's own length.

Slots: committed frames lie in slots 0.. : the sink in 0..S-1, the history in S.., where a frame
that is evicted hands its slot to a newer one. Once the window is full no address changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from wan.geometry import Span


@dataclass
class CacheConfig:
    """Knobs of the cache; lengths in latent frames.

    window_frames: sink + history + own chunk; -1 = everything, which needs a known length.
    rope: `write` = keys are rotated at their frame's own position when written;
    `read` = positions are the ranks among the kept frames, so films have no end.
    """

    window_frames: int = -1
    sink_frames: int = 0
    rope: str = "write"  # write | read

    def check(self):
        if self.rope not in ("write", "read"):
            raise ValueError(f"cache.rope is {self.rope!r}; write 'write' or 'read'")
        if self.sink_frames < 0:
            raise ValueError(f"cache.sink_frames is {self.sink_frames}; write 0 or more")
        if self.window_frames != -1 and self.window_frames < 1:
            raise ValueError(f"cache.window_frames is {self.window_frames}; write -1 (everything) or a length")


@dataclass(frozen=True)
class Plan:
    """What one forward over `span` reads and where everything lies; frames in time order."""

    span: Span
    read: tuple[int, ...]  # committed frames that the queries see
    slots: tuple[int, ...]  # the slot of each of them
    positions: range  # rotary positions of the span
    read_positions: tuple[int, ...]  # rotary positions of `read`
    writes: tuple[tuple[int, int], ...]  # (index in the span, slot) that a commit stores
    evict: tuple[int, ...]  # frames that a commit drops


class Ledger:
    """The book of one cache: `plan(span)` before a forward, `commit(plan)` after the last one of a chunk."""

    def __init__(self, config: CacheConfig, chunk_frames: int, max_frames: int | None = None):
        """`chunk_frames`: the rollout's largest chunk. `max_frames`: the film's length, if known.

        Errors: ValueError for a window smaller than sink + chunk, or neither window nor length.
        """
        config.check()
        window, sink = config.window_frames, config.sink_frames
        if window == -1 and max_frames is None:
            raise ValueError("cache.window_frames is -1 and the film has no known length; set a window, e.g. 21")
        if window != -1 and window < sink + chunk_frames:
            raise ValueError(
                f"cache.window_frames {window} is smaller than sink_frames {sink} + chunk {chunk_frames}; "
                f"write at least {sink + chunk_frames}"
            )
        self.config, self.chunk_frames = config, chunk_frames
        kept = max_frames if window == -1 else window - chunk_frames
        self.sink_frames = min(sink, kept)
        self.history_frames = kept - self.sink_frames
        self.slot_of: dict[int, int] = {}  # committed frame -> slot, in time order
        self.next_frame = 0

    @property
    def num_slots(self) -> int:
        """Slots for committed frames: sink + history."""
        return self.sink_frames + self.history_frames

    def plan(self, span: Span) -> Plan:
        """Returns what a forward over `span` reads, and what committing it would store and drop.

        Errors: ValueError if the span does not start at the next frame or is longer than a chunk.
        """
        if span.start != self.next_frame:
            raise ValueError(f"span {span} does not start at the next frame {self.next_frame}")
        if not 0 < len(span) <= self.chunk_frames:
            raise ValueError(f"span {span} must hold 1 to {self.chunk_frames} frames (the rollout's chunk)")
        if self.config.window_frames == -1 and span.stop > self.num_slots:
            raise ValueError(
                f"span {span} goes beyond the film's length of {self.num_slots} frames and cache.window_frames is -1; "
                "give a longer length or set a window"
            )
        read = tuple(self.slot_of)
        if self.config.rope == "read":
            read_positions = tuple(range(len(read)))
            positions = range(len(read), len(read) + len(span))
        else:
            read_positions, positions = read, range(span.start, span.stop)
        writes, evict = self._writes(span)
        return Plan(span, read, tuple(self.slot_of.values()), positions, read_positions, writes, evict)

    def commit(self, plan: Plan) -> None:
        """Enters the span of `plan` as the newest committed frames."""
        assert plan.span.start == self.next_frame, "a plan is committed once, in order"
        for frame in plan.evict:
            del self.slot_of[frame]
        for index, slot in plan.writes:
            self.slot_of[plan.span.start + index] = slot
        self.next_frame = plan.span.stop

    def _writes(self, span: Span):
        """Returns (writes, evicted frames): fill the sink, then free slots, then the oldest history's."""
        frames = list(range(span.start, span.stop))
        in_sink = [f for f in frames if f < self.sink_frames]
        history = [f for f in self.slot_of if f >= self.sink_frames]
        after = (history + [f for f in frames if f >= self.sink_frames])[-self.history_frames :]
        if not self.history_frames:
            after = []
        evict = tuple(f for f in history if f not in after)
        used = {self.slot_of[f] for f in history if f in after}
        # oldest freed slots first, then never-used ones: keeps the filled part contiguous
        freed = [self.slot_of[f] for f in evict]
        fresh = [s for s in range(self.sink_frames, self.num_slots) if s not in used and s not in freed]
        targets = iter(freed + fresh)
        writes = [(f - span.start, f) for f in in_sink]
        writes += [(f - span.start, next(targets)) for f in frames if f in after]
        return tuple(writes), evict

    def state(self) -> dict:
        """Returns the book as plain integers; `load_state` takes it back."""
        return {"next_frame": self.next_frame, "slot_of": list(self.slot_of.items())}

    def load_state(self, state: dict) -> None:
        """Restores what `state` returned."""
        self.next_frame = state["next_frame"]
        self.slot_of = {int(f): int(s) for f, s in state["slot_of"]}
