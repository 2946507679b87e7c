"""Which frames of a video are kept, read and evicted, at which positions. Integers only.

The window is all that a query may see: sink + history + its own chunk. The sink is the video's
first frames and is never evicted; the history is the latest `window - sink - chunk` frames before
the chunk, whatever the chunk's own length.

Slots: committed frames lie in slots 0.. : the sink in 0..S-1, the history in S.., where a frame
that is evicted hands its slot to a newer one. Once the window is full no address changes.

A recache (the condition changed) computes the window's latest frames anew: the last W frames, or all
there are. Where the sink is kept and they would not reach its first frame, they are the last W - S, and
the sink stays as it is; else their first S frames are the new sink. A recache may reach further back than
the window (`recache_frames`): then the new sink is the first S frames of that reach.

Pinned runs (a reference image, motion) are no frames of the video: one prefill pass writes them, every pass
attends to them, at positions of their own that may change from chunk to chunk, and nothing evicts them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from utils.bounds import bounded
from wan.config import LONGEST, raise_first
from wan.geometry import Span
from wan.tokens import Run

RECACHES = ("bidirectional", "causal", "reset", "none")
CONTENTS = ("clean", "same_step")


@dataclass
class CacheConfig:
    """Knobs of the cache; lengths in latent frames.

    window_frames: sink + history + own chunk; -1 = everything, which needs a known length.
    rope: `write` = keys are rotated at their frame's own position when written;
    `read` = positions are the ranks among the kept frames, so videos have no end.
    recache: what happens where the condition changes. `bidirectional` = the window's latest frames in one
    forward in which all see each other (LongLive); `causal` = the same frames chunk by chunk, as models
    with causal masks know them; `reset` = the history is dropped; `none` = only the condition changes.
    keep_sink: whether the sink outlives that. recache_frames: how far back a recache reaches, 0 = as far as the
    window; further (LongLive's training: 21) moves where a new sink begins, and from when on an old one is kept.
    content: which keys are kept. `clean` = those of a context pass over the finished chunk, one cache for all steps;
    `same_step` = one cache for each step with the keys of that step's pass: earlier frames are seen at its noise level.
    """

    window_frames: int = bounded(-1, -1, LONGEST)
    sink_frames: int = bounded(0, 0, LONGEST)
    rope: str = "write"  # write | read
    recache: str = "causal"  # bidirectional | causal | reset | none
    keep_sink: bool = True
    recache_frames: int = bounded(0, 0, LONGEST)
    content: str = "clean"  # clean | same_step

    def problems(self) -> Iterator[str]:
        if self.content not in CONTENTS:
            yield f"cache.content is {self.content!r}; write one of {', '.join(CONTENTS)}"
        if self.content == "same_step" and self.recache not in ("causal", "none"):
            yield (
                f"cache.content is same_step and cache.recache {self.recache}: the keys of a step come from its pass "
                "over one chunk, so they can only be computed again chunk by chunk; write causal or none"
            )
        if self.recache not in RECACHES:
            yield f"cache.recache is {self.recache!r}; write one of {', '.join(RECACHES)}"
        if self.rope not in ("write", "read"):
            yield f"cache.rope is {self.rope!r}; write 'write' or 'read'"
        if self.sink_frames < 0:
            yield f"cache.sink_frames is {self.sink_frames}; write 0 or more"
        if self.window_frames != -1 and self.window_frames < 1:
            yield f"cache.window_frames is {self.window_frames}; write -1 (everything) or a length"
        if self.recache_frames and not 1 <= self.window_frames <= self.recache_frames:
            yield (
                f"cache.recache_frames is {self.recache_frames}; write 0 (the window) or at least "
                f"cache.window_frames, {self.window_frames}, which must be a length"
            )

    def chunk_problems(self, chunk: int) -> Iterator[str]:
        """Yields a window that has no room for sink and chunk."""
        window, sink = self.window_frames, self.sink_frames
        if window != -1 and window < sink + chunk:
            yield (
                f"cache.window_frames {window} is smaller than sink_frames {sink} + chunk {chunk}; "
                f"write at least {sink + chunk}"
            )


@dataclass(frozen=True)
class Plan:
    """What one forward over `span` reads and where everything lies; frames in time order.

    recache: the forward computes committed frames anew and writes them to their slots at once.
    frames: those that the forward computes: the span's, but for a recache whose new sink lies apart.
    """

    span: Span
    frames: Sequence[int]
    read: tuple[int, ...]  # committed frames that the queries see
    slots: tuple[int, ...]  # the slot of each of them
    positions: Sequence[int]  # rotary positions of `frames`
    read_positions: tuple[int, ...]  # rotary positions of `read`
    writes: tuple[tuple[int, int], ...]  # (index in `frames`, slot) that a commit stores
    evict: tuple[int, ...]  # frames that a commit drops
    recache: bool = False
    pinned: tuple[Run, ...] = ()  # at the positions that they have in this forward

    @property
    def scratch(self) -> tuple[int, ...]:
        """Indices in `frames` of those that lie in the scratch during the forward."""
        stored = {index for index, _ in self.writes} if self.recache else set()
        return tuple(i for i in range(len(self.frames)) if i not in stored)


class Ledger:
    """Bookkeeping of one KV cache: `plan(span)` before a forward, `commit(plan)` after the last one of a chunk.

    Where the condition changes: `plan_recache` and `commit`, or `rewind` and the chunks again, or `reset`.
    """

    def __init__(
        self,
        config: CacheConfig,
        chunk_frames: int,
        max_frames: int | None = None,
        pinned: Sequence[Run] = (),
        pinned_tokens: int | None = None,
    ):
        """`chunk_frames`: the rollout's largest chunk. `max_frames`: the video's length, if known.

        pinned: the runs that a prefill pass will write; their sizes are fixed, their positions are not. pinned_tokens:
        how many a cache keeps of them, where that is more than they have (`Denoiser.pinned_tokens`).

        Errors: ValueError for a window smaller than sink + chunk, or neither window nor length.
        """
        raise_first(config.problems())
        window, sink = config.window_frames, config.sink_frames
        if window == -1 and max_frames is None:
            raise ValueError("cache.window_frames is -1 and the video has no known length; set a window, e.g. 21")
        raise_first(config.chunk_problems(chunk_frames))
        self.config, self.chunk_frames = config, chunk_frames
        kept = max_frames if window == -1 else window - chunk_frames
        self.sink_frames = min(sink, kept)
        self.history_frames = kept - self.sink_frames
        self.slot_of: dict[int, int] = {}  # committed frame -> slot, in time order
        self.next_frame = 0
        self.first_frame = 0  # of the sink, or where it will begin
        self.pinned = tuple(
            replace(run, cached=True) for run in pinned
        )  # at their default positions: those of the prefill pass
        self.prefilled = not pinned
        self.pinned_tokens = sum(run.num_tokens for run in self.pinned) if pinned_tokens is None else pinned_tokens

    @property
    def num_slots(self) -> int:
        """Slots for committed frames: sink + history."""
        return self.sink_frames + self.history_frames

    def begin_prefill(self, runs: Sequence[Run]) -> None:
        """Notes the positions of a prefill pass; until `prefilled` is set again nothing can be read.

        Errors: ValueError if the runs are not those that the cache was made for.
        """
        self.pinned, self.prefilled = self._checked(runs), False

    def plan(self, span: Span) -> Plan:
        """Returns what a forward over `span` reads, and what committing it would store and drop.

        Errors: ValueError if the span does not start at the next frame or is longer than a chunk, or if pinned runs
        were not written.
        """
        if span.start != self.next_frame:
            raise ValueError(f"span {span} does not start at the next frame {self.next_frame}")
        if not 0 < len(span) <= self.chunk_frames:
            raise ValueError(f"span {span} must hold 1 to {self.chunk_frames} frames (the rollout's chunk)")
        if self.config.window_frames == -1 and span.stop > self.num_slots:
            raise ValueError(
                f"span {span} goes beyond the video's length of {self.num_slots} frames and cache.window_frames is -1; "
                "give a longer length or set a window"
            )
        read = tuple(self.slot_of)
        writes, evict = self._writes(span)
        return self._plan(span, read, writes, evict)

    def with_pinned(self, plan: Plan, runs: Sequence[Run]) -> Plan:
        """Returns the plan with the pinned runs at other positions than those of the prefill pass.

        Errors: ValueError if they are not the cache's.
        """
        return replace(plan, pinned=self._checked(runs))

    def commit(self, plan: Plan) -> None:
        """Enters the span of `plan` as the newest committed frames."""
        if plan.recache:
            assert plan.span.stop == self.next_frame, "a recache is committed before the next chunk"
            if not plan.read:
                self.first_frame = plan.span.start
        else:
            assert plan.span.start == self.next_frame, "a plan is committed once, in order"
        for frame in plan.evict:
            del self.slot_of[frame]
        for index, slot in plan.writes:
            self.slot_of[plan.frames[index]] = slot
        self.next_frame = plan.span.stop

    def recached(self) -> tuple[Span, tuple[int, ...]]:
        """Returns (the frames that a recache computes anew, the sink's frames that it leaves as they are)."""
        window, end = self.config.window_frames, self.next_frame
        reach = max(window, self.config.recache_frames)
        start = self.first_frame if window == -1 else max(self.first_frame, end - reach)
        sink = self._sink() if self.config.keep_sink and start > self.first_frame else ()
        return Span(end - window + len(sink) if sink else start, end), sink

    def plan_recache(self) -> Plan:
        """Returns the plan of one forward over all recached frames, in which they see each other and a kept sink."""
        span, sink = self.recached()
        first = range(span.start, span.start if sink else min(span.start + self.sink_frames, span.stop))
        seen = len(span) if self.config.window_frames == -1 else self.config.window_frames - self.sink_frames
        rest = range(max(first.stop, span.stop - seen), span.stop)
        frames = range(span.start, span.stop) if first.stop == rest.start else (*first, *rest)
        slots = {f: slot for slot, f in enumerate(first)}
        slots |= {f: self.sink_frames + i for i, f in enumerate(rest[max(0, len(rest) - self.history_frames) :])}
        writes = tuple((frames.index(f), slot) for f, slot in slots.items())
        evict = tuple(f for f in self.slot_of if f not in sink)
        return self._plan(span, sink, writes, evict, frames)

    def rewind(self, end: int | None = None) -> Span:
        """Empties the window, but for a kept sink, and steps back: returns the frames to commit again.

        end: the video's, if some of these frames were not committed again after an earlier rewind (a pass failed).
        """
        self.next_frame = self.next_frame if end is None else end
        span, sink = self.recached()
        self._keep(sink, span.start)
        return span

    def reset(self) -> None:
        """Empties the window, but for the sink if it is to be kept; a new one begins with the next frame."""
        self._keep(self._sink() if self.config.keep_sink else (), self.next_frame)

    def _keep(self, sink: tuple[int, ...], next_frame: int) -> None:
        self.slot_of = {f: self.slot_of[f] for f in sink}
        if not sink:
            self.first_frame = next_frame
        self.next_frame = next_frame

    def _sink(self) -> tuple[int, ...]:
        """Returns the committed frames of the sink."""
        return tuple(f for f in self.slot_of if self._in_sink(f))

    def _in_sink(self, frame: int) -> bool:
        return frame < self.first_frame + self.sink_frames

    def _checked(self, runs: Sequence[Run]) -> tuple[Run, ...]:
        """Returns the runs as those of a cache. Errors: ValueError if their sizes are not those of the pinned runs."""
        given, wanted = ([run.size for run in those] for those in (runs, self.pinned))
        if given != wanted:
            raise ValueError(f"pinned runs {given} (kind, frames, grid) given to a cache that was made for {wanted}")
        return tuple(replace(run, sigma=(), cached=True) for run in runs)

    def _plan(self, span: Span, read: tuple[int, ...], writes, evict, again: Sequence[int] | None = None) -> Plan:
        """Returns the plan with its positions; `again`: the frames that a recache computes."""
        if not self.prefilled:
            raise ValueError(f"the pinned runs {[run.kind for run in self.pinned]} are not written: run Prefill first")
        frames: Sequence[int] = range(span.start, span.stop) if again is None else again
        positions, read_positions = frames, read
        if self.config.rope == "read":
            read_positions = tuple(range(len(read)))
            positions = range(len(read), len(read) + len(frames))
        slots = tuple(self.slot_of[f] for f in read)
        return Plan(span, frames, read, slots, positions, read_positions, writes, evict, again is not None, self.pinned)

    def _writes(self, span: Span):
        """Returns (writes, evicted frames): fill the sink, then free slots, then the oldest history's."""
        frames = list(range(span.start, span.stop))
        in_sink = [f for f in frames if self._in_sink(f)]
        history = [f for f in self.slot_of if not self._in_sink(f)]
        after = (history + [f for f in frames if not self._in_sink(f)])[-self.history_frames :]
        if not self.history_frames:
            after = []
        evict = tuple(f for f in history if f not in after)
        used = {self.slot_of[f] for f in history if f in after}
        # oldest freed slots first, then never-used ones: keeps the filled part contiguous
        freed = [self.slot_of[f] for f in evict]
        fresh = [s for s in range(self.sink_frames, self.num_slots) if s not in used and s not in freed]
        targets = iter(freed + fresh)
        writes = [(f - span.start, f - self.first_frame) for f in in_sink]
        writes += [(f - span.start, next(targets)) for f in frames if f in after]
        return tuple(writes), evict

    def state(self) -> dict:
        """Returns the book as plain numbers; `load_state` takes it back. Pinned runs are in it if there are any."""
        state: dict = {
            "next_frame": self.next_frame,
            "first_frame": self.first_frame,
            "slot_of": [list(pair) for pair in self.slot_of.items()],
        }
        if self.pinned and self.prefilled:
            state["pinned"] = [[list(run.times), list(run.rows), list(run.columns)] for run in self.pinned]
        return state

    def load_state(self, state: dict) -> None:
        """Restores what `state` returned."""
        self.next_frame, self.first_frame = state["next_frame"], state["first_frame"]
        self.slot_of = {int(f): int(s) for f, s in state["slot_of"]}
        self.prefilled = not self.pinned or "pinned" in state
        if "pinned" in state:
            positions = zip(self.pinned, state["pinned"], strict=True)
            moved = [replace(run, times=t, rows=r, columns=c) for run, (t, r, c) in positions]
            self.pinned = self._checked(moved)
