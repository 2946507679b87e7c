"""What a window holds after each kind of recache, in both storages, for hundreds of schedules.

Numbered frames take the place of a network: each frame of each pass has its own number, and what a pass sees is
compared with a dict that drops nothing (tests/contract/oracle.py). `test_recache.py` does it with the network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.oracle import Book, Window
from wan.cache import CacheShape, Chunks, Ring
from wan.context import Cached, Recached
from wan.geometry import Span
from wan.ledger import CacheConfig, Ledger
from wan.tokens import Run

SHAPE = CacheShape(num_layers=1, batch=2, num_heads=1, head_dim=1, frame_tokens=2)
RUN = Run("video", range(0), range(1), range(SHAPE.frame_tokens))
KINDS = ("bidirectional", "causal", "reset", "none")


@st.composite
def schedules(draw):
    """Returns (config, largest chunk, steps): chunks, abandoned ones, switches of any kind, snapshots and rewinds."""
    chunk, sink, history = draw(st.integers(1, 4)), draw(st.integers(0, 6)), draw(st.integers(0, 6))
    window = draw(st.sampled_from([-1, sink + chunk + history, sink + chunk + history]))
    length = st.integers(1, chunk)
    switch = st.tuples(st.sampled_from(KINDS), st.booleans())
    step = st.one_of(
        *[st.tuples(st.just("chunk"), length)] * 4,
        st.tuples(st.just("abandon"), length),
        *[st.tuples(st.just("switch"), switch)] * 2,
        st.tuples(st.sampled_from(["snapshot", "restore", "fork"]), st.none()),
    )
    steps = [("chunk", chunk), *draw(st.lists(step, min_size=2, max_size=14))]
    return CacheConfig(window, sink, draw(st.sampled_from(["write", "read"]))), chunk, steps


@dataclass
class Numbered:
    """A cache whose keys are numbers instead of a network's: each frame of each pass has its own."""

    cache: object
    spans: list

    @classmethod
    def of(cls, make, config, chunk):
        """Returns an empty one; a new ring is full of not-a-number."""
        cache = make(Ledger(replace(config), chunk, 400), SHAPE)
        for store in (cache.keys, cache.values) if make is Ring else ():
            store.fill_(torch.nan)
        return cls(cache, [])

    def fork(self):
        """Returns another one that goes on from here."""
        ledger = self.cache.ledger
        other = Numbered.of(type(self.cache), ledger.config, ledger.chunk_frames)
        other.restore(self.snapshot())
        return other

    def snapshot(self):
        """Returns all that it holds."""
        return self.cache.ledger.state(), self.cache.snapshot(), list(self.spans)

    def restore(self, state):
        """Goes back to a snapshot."""
        self.cache.restore(*state[:2])
        self.spans = list(state[2])

    @torch.no_grad()
    def show(self, context, numbers):
        """Runs a pass of these numbers; returns the sorted (number, position) that it sees."""
        plan = context.plan
        rows = torch.tensor(numbers, dtype=torch.float32).repeat_interleave(SHAPE.frame_tokens)
        k = torch.stack((rows, -rows))[..., None, None]
        seen_k, seen_v = self.cache.write(0, plan, k, k + 0.5)
        assert torch.equal(seen_k + 0.5, seen_v), "a key without its value, or one that was never written"
        assert torch.equal(seen_k[0], -seen_k[1]), "rows of the batch were mixed"
        frames = seen_k[0, :: SHAPE.frame_tokens, 0, 0].tolist()
        positions = [time for run in self.cache.key_runs(plan, RUN) for time in run.times]
        return sorted(zip(map(int, frames), positions, strict=True))

    @torch.no_grad()
    def chunk(self, span, number, commit=True):
        """One pass over a chunk, committed or abandoned."""
        context = Cached(self.cache, span)
        seen = self.show(context, [number + f for f in range(span.start, span.stop)])
        if commit:
            context.commit()
            self.spans.append(span)
        return [seen]

    @torch.no_grad()
    def switch(self, kind, keep, number):
        """A recache; returns what each of its passes sees."""
        self.cache.ledger.config.keep_sink = keep
        if kind == "reset":
            self.cache.reset()
        if kind == "bidirectional":
            context = Recached(self.cache)
            span = context.plan.span
            seen = self.show(context, [number + f for f in range(span.start, span.stop)])
            context.commit()
            return [seen]
        if kind != "causal":
            return []
        start = self.cache.rewind().start
        parts = [Span(max(s.start, start), s.stop) for s in self.spans if s.stop > start]
        before, seen = list(self.spans), []
        for part in parts:
            seen += self.chunk(part, number)
        self.spans = before
        return seen


class Naive:
    """The same by the definition of the window and a dict of numbers."""

    def __init__(self, config, chunk):
        self.rope = config.rope
        self.window = Window(Book(config.window_frames, config.sink_frames, chunk))
        self.number, self.spans = {}, []

    def snapshot(self):
        """Returns all that it knows."""
        window = self.window
        return window.first, list(window.there), window.end, dict(self.number), list(self.spans)

    def restore(self, state):
        """Goes back to a snapshot."""
        self.window.first, there, self.window.end, number, spans = state
        self.window.there, self.number, self.spans = list(there), dict(number), list(spans)

    def see(self, seen, own, number):
        """Returns the sorted (number, position) of a pass."""
        frames = [*seen, *own]
        places = range(len(frames)) if self.rope == "read" else frames
        numbers = [self.number[f] for f in seen] + [number + f for f in own]
        return sorted(zip(numbers, places, strict=True))

    def keep(self, own, number):
        """A pass is committed."""
        self.number |= {f: number + f for f in own}

    def chunk(self, span, number, commit=True):
        """One pass over a chunk."""
        own = range(span.start, span.stop)
        seen = self.see(self.window.seen(), own, number)
        if commit:
            self.keep(own, number)
            self.window.add(span)
            self.spans.append(span)
        return [seen]

    def switch(self, kind, keep, number):
        """A recache."""
        if kind == "reset":
            self.window.reset(keep)
        if kind not in ("bidirectional", "causal") or self.window.first == self.window.end:
            return []
        kept, frames = self.window.again(keep)
        if kind == "bidirectional":
            seen = [self.see(kept, frames, number)]
            self.keep(frames, number)
            self.window.replace(kept, frames)
            return seen
        self.window.replace(kept, frames[:1])
        self.window.there = kept
        before, seen = list(self.spans), []
        for span in before:
            part = Span(max(span.start, frames[0]), span.stop)
            seen += self.chunk(part, number) if part.stop > part.start else []
        self.spans = before
        return seen


def follow(player, steps, fork: bool = True):
    """Returns what every pass of a schedule sees, in order, and the player that made the last one."""
    saved, seen = player.snapshot(), []
    for number, (name, value) in enumerate(steps, 1):
        start = player.spans[-1].stop if player.spans else 0
        if name in ("chunk", "abandon"):
            seen += player.chunk(Span(start, start + value), 1000 * number, commit=name == "chunk")
        elif name == "switch" and start > first_prompts(player):
            seen += player.switch(*value, 1000 * number)
        elif name == "snapshot":
            saved = player.snapshot()
        elif name == "restore":
            player.restore(saved)
        elif name == "fork" and fork:
            other = player.fork()
            other.chunk(Span(start, start + 1), -5000)  # the other video goes its own way
            player = player.fork()
    return seen, player


def first_prompts(player) -> int:
    """The first frame of the video since it was last emptied: there is nothing to recache right after."""
    return player.window.first if isinstance(player, Naive) else player.cache.ledger.first_frame


def disagreement(schedule) -> str:
    """Returns where a storage sees something else than the definition says, or an empty text."""
    config, chunk, steps = schedule
    wanted, held = follow(Naive(config, chunk), steps, fork=False), []
    for make in (Ring, Chunks):
        player = Numbered.of(make, config, chunk)
        given, last = follow(player, steps)
        for number, (a, b) in enumerate(zip(given, wanted[0], strict=True)):
            if a != b:
                return f"{make.__name__}, pass {number}: sees {a}, should see {b}"
        held.append(last.snapshot())
        if make is Chunks and last.cache._kept[0].keys() != last.cache.ledger.slot_of.keys():
            return "Chunks holds frames that the ledger does not name"
    (book, ring, _), (other, chunks, _) = held
    equal = book == other and ring.keys() == chunks.keys() and all(torch.equal(ring[n], chunks[n]) for n in ring)
    return "" if equal else "the storages hold different frames at the end"


@settings(max_examples=800, deadline=None, derandomize=True)
@given(schedules())
def test_both_storages_see_what_the_definition_says(schedule):
    assert disagreement(schedule) == ""


def always_keep(monkeypatch):
    original = Ledger.recached

    def recached(self):
        config, self.config = self.config, replace(self.config, keep_sink=True)
        found = original(self)
        self.config = config
        return found

    monkeypatch.setattr(Ledger, "recached", recached)


def never_keep(monkeypatch):
    original = Ledger.recached

    def recached(self):
        config, self.config = self.config, replace(self.config, keep_sink=False)
        found = original(self)
        self.config = config
        return found

    monkeypatch.setattr(Ledger, "recached", recached)


def forget_the_new_sink(monkeypatch):
    original = Ledger.commit

    def commit(self, plan):
        first = self.first_frame
        original(self, plan)
        self.first_frame = first

    monkeypatch.setattr(Ledger, "commit", commit)


def keep_references(monkeypatch):
    monkeypatch.setattr(Chunks, "prune", lambda self: None)


def one_frame_less(monkeypatch):
    original = Ledger.plan_recache

    def plan(self):
        made = original(self)
        return replace(made, writes=made.writes[:-1])

    monkeypatch.setattr(Ledger, "plan_recache", plan)


def recached_by_scratch_alone(monkeypatch):
    """Stores what fits into the scratch only, as an ordinary pass does."""
    monkeypatch.setattr(Ring, "commit", lambda self, plan: self.ledger.commit(plan))


def restore_in_slot_order(monkeypatch):
    original = Ring.snapshot

    def snapshot(self):
        book = self.ledger.slot_of
        self.ledger.slot_of = dict(sorted(book.items(), key=lambda pair: pair[1]))
        made = original(self)
        self.ledger.slot_of = book
        return made

    monkeypatch.setattr(Ring, "snapshot", snapshot)


def alias_snapshots(monkeypatch):
    """A fork that shares its parent's memory."""

    def restore(self, book, tensors):
        self.ledger.load_state(book)
        self.keys, self.values = shared.get(id(tensors.get("keys")), (self.keys, self.values))

    shared: dict = {}
    original = Ring.snapshot

    def snapshot(self):
        made = original(self)
        shared[id(made.get("keys"))] = (self.keys, self.values)
        kept.append(made)
        return made

    kept: list = []
    monkeypatch.setattr(Ring, "restore", restore)
    monkeypatch.setattr(Ring, "snapshot", snapshot)


EXAMPLES = [  # window 9 = sink 2 + history 4 + chunk 3, and one whose sink is longer than a chunk
    (
        CacheConfig(window, sink, rope),
        3,
        [
            *[("chunk", n) for n in (3, 3, 2, 3, 1, 3)],
            ("switch", (kind, keep)),
            *[("chunk", 3), ("chunk", 2), ("fork", None), ("chunk", 3), ("snapshot", None), ("chunk", 3)],
            ("switch", (kind, keep)),
            *[("restore", None), ("chunk", 3), ("chunk", 3), ("chunk", 3)],
        ],
    )
    for window, sink in ((9, 2), (12, 5))
    for rope in ("write", "read")
    for kind in KINDS
    for keep in (True, False)
]
MUTATIONS = [
    always_keep,
    never_keep,
    forget_the_new_sink,
    keep_references,
    one_frame_less,
    recached_by_scratch_alone,
    restore_in_slot_order,
    alias_snapshots,
]


def test_the_examples_agree():
    assert [disagreement(example) for example in EXAMPLES] == [""] * len(EXAMPLES)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda m: m.__name__)
def test_mutations_are_seen(mutate, monkeypatch):
    mutate(monkeypatch)

    def broken(example) -> bool:
        try:
            return bool(disagreement(example))
        except (AssertionError, KeyError, RuntimeError, ValueError):
            return True

    assert any(broken(example) for example in EXAMPLES)
