"""Timestep-forcing pipeline parallelism: ranks hold consecutive steps of every chunk, and a chunk goes through them.

Needs same-step caches: pass k reads what pass k left, so rank r begins the next chunk while the following ranks still
work on this one. The first rank asks the track and owns whatever the videos are conditioned on; all else travels with
the chunk: span, latents, the solver's state, and of the condition what the chunk's passes need. Draws are keyed by
(chunk, step), so no rank tells another its randomness.
Source: Live-Avatar (arXiv 2512.04677), section 3.3; there with exactly one step a rank, and a drain at each refresh.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from pipeline.executor import PlainExecutor
from pipeline.rollout import Chunk, Rollout
from pipeline.solver import StepState
from pipeline.state import RECACHE_INCOMPLETE, RolloutState, portrait_key
from pipeline.track import Track
from utils.parallel.pipe import Message, Pipe
from wan.condition import Condition
from wan.geometry import Span

CONDITIONS_KEPT = 8  # whose text and portrait each rank keeps, so that one that comes back is not sent again
DECODE_COST = 0.25  # of a decode in passes of the network; decides where the decoder goes (27.5 of 121 TF for 14B)


@dataclass(frozen=True)
class Stages:
    """Which steps each rank runs. own_decoder: the last rank runs none and decodes."""

    num_steps: int
    world: int
    own_decoder: bool

    @classmethod
    def plan(cls, num_steps: int, world: int, decoder_rank: str = "auto") -> Stages:
        """Returns the stages. decoder_rank: own | shared (with the last steps) | auto (what is faster).

        Errors: ValueError for more ranks than steps, or a decoder rank that cannot be.
        """
        least, most = (2, num_steps + 1) if decoder_rank == "own" else (1, num_steps + (decoder_rank == "auto"))
        if not least <= world <= most:
            what = f"{world} ranks cannot share {num_steps} steps with executor.decoder_rank={decoder_rank}"
            raise ValueError(f"{what}; start {least} to {most}, or write executor.name=plain")
        own = world > num_steps or (decoder_rank == "own")
        if decoder_rank == "auto" and 1 < world <= num_steps:
            own = -(-num_steps // (world - 1)) <= max(-(-num_steps // world), num_steps // world + DECODE_COST)
        return cls(num_steps, world, own)

    def steps(self, place: int) -> range:
        """Returns the steps of a rank: consecutive, the earlier ranks have more where they do not divide."""
        holders = self.world - self.own_decoder
        if place >= holders:
            return range(0)
        each, more = divmod(self.num_steps, holders)
        begin = place * each + min(place, more)
        return range(begin, begin + each + (place < more))


class ConditionSender:
    """The first rank's side: what of a condition the ranks behind it do not have yet."""

    def __init__(self):
        self._known: OrderedDict[object, int] = OrderedDict()
        self._count = 0

    def pack(self, condition: Condition, first: int, stop: int) -> tuple[dict, dict[str, torch.Tensor]]:
        """Returns (facts, tensors) for passes over frames [first, stop): text and portrait only the first time."""
        key = (condition.key, condition.portrait_key)
        new = key not in self._known
        if new:
            self._known[key] = self._count
            self._count += 1
        number = self._known[key]
        remember(self._known, key, number)
        part = condition.between(first, stop)
        still, going = part.parts()
        tensors = {f"going.{name}": t for name, t in going.items()}
        tensors |= {f"still.{name}": t for name, t in still.items()} if new else {}
        numbers = {name: getattr(part, name) for name in ("audio_start", "frames_start", "audio_chunk")}
        return {"condition": number, **numbers}, tensors


class ConditionReceiver:
    """The other ranks' side: puts the conditions together again."""

    def __init__(self):
        self._known: OrderedDict[object, dict] = OrderedDict()

    def unpack(self, facts: dict, tensors: dict[str, torch.Tensor]) -> Condition:
        """Returns the condition of a chunk."""
        number = facts["condition"]
        still = {n.removeprefix("still."): t for n, t in tensors.items() if n.startswith("still.")}
        remember(self._known, number, still or self._known[number])
        going = {n.removeprefix("going."): t for n, t in tensors.items() if n.startswith("going.")}
        numbers = {name: facts[name] for name in ("audio_start", "frames_start", "audio_chunk")}
        return Condition(**self._known[number], **going, **numbers, key=("tpp", number), portrait_key=number)


def remember(known: OrderedDict, key: object, value: object) -> None:
    """Makes this the latest entry and drops the oldest beyond `CONDITIONS_KEPT`: alike on all ranks."""
    known[key] = value
    known.move_to_end(key)
    while len(known) > CONDITIONS_KEPT:
        known.popitem(last=False)


@dataclass(frozen=True)
class TPPExecutor(PlainExecutor):
    """Runs this rank's steps of every chunk; all ranks call `run`, each on a state of its own.

    Made by `build`. On the first rank `track`, `spans` and `given` say what is made, elsewhere they
    are not asked. Each rank yields every chunk when it is done with it, with the latents that it passes on; on the last
    rank these are the finished ones. Closing the first rank's iterator abandons the video: the others' end.
    """

    stages: Stages
    pipe: Pipe
    sender: ConditionSender = field(default_factory=ConditionSender)
    receiver: ConditionReceiver = field(default_factory=ConditionReceiver)

    @classmethod
    def build(cls, rollout: Rollout, stages: Stages, pipe: Pipe) -> TPPExecutor:
        """Returns the executor of this rank, whose rollout runs its steps alone."""
        return cls(replace(rollout, steps=stages.steps(pipe.place)), stages, pipe)

    def start(self, batch: int, chunk_frames: int, max_frames: int | None) -> RolloutState | None:
        """Returns this rank's share of a video before its first frame; None where no steps run."""
        return self.rollout.start(batch, chunk_frames, max_frames) if self.rollout.steps else None

    def run(
        self, state: RolloutState | None, track: Track, spans: Sequence[Span], noise, given: Sequence[Chunk] = ()
    ) -> Iterator[Chunk]:
        """Yields the chunks as `PlainExecutor.run` does, in every rank of the chain. state: None where no steps run."""
        if self.pipe.place:
            return self._follow(state, noise)
        return self._lead(state, track, spans, noise, given)

    def _lead(self, state, track, spans, noise, given) -> Iterator[Chunk]:
        """Yields what the first rank makes, and sends it on."""
        whole = False
        try:
            yield from super().run(state, track, spans, noise, given)
            whole = True
        except (GeneratorExit, OSError, ValueError):
            raise
        except BaseException:
            whole = None  # this rank ends, and with it the others
            raise
        finally:
            if whole is not None and self.pipe.last:
                self.pipe.send(Message("end", {"whole": whole}))

    def _follow(self, state: RolloutState | None, noise) -> Iterator[Chunk]:
        """Yields what this rank makes of what arrives."""
        while (message := self.pipe.receive()).kind == "chunk":
            yield self._continue(state, message, noise)
        if self.pipe.place < self.pipe.last:
            self.pipe.send(message)

    def generate_chunk(self, state: RolloutState, track: Track, span: Span, noise) -> Chunk:
        """Returns the first rank's part of the next chunk, committed and sent on.

        A prompt that comes now restarts it while it is here: what has gone on goes its way.
        """
        before = state.key, state.portrait_key, oldest(state, span)
        condition, done, seconds = self.make_chunk(state, track, span, noise)
        chunk = Chunk(span, done.latents, recache_seconds=seconds)
        self._pass_on(before, condition, chunk, done.solver)
        return chunk

    def commit_given(self, state: RolloutState, condition: Condition, chunk: Chunk, noise) -> Chunk:
        """Commits a conditioning chunk and sends it on."""
        before = state.key, state.portrait_key, oldest(state, chunk.span)
        done = super().commit_given(state, condition, chunk, noise)
        self._pass_on(before, condition, done, StepState())
        return done

    def _pass_on(self, before: tuple, condition: Condition, chunk: Chunk, steps: StepState) -> None:
        """Sends a chunk to the next rank. before: keys in force before it, and the oldest frame that was remembered."""
        if not self.pipe.last:
            return
        key, portrait, first = before
        switched = key != condition.key or chunk.recache_seconds is not None
        pinned = portrait != portrait_key(condition)
        facts = {"span": [chunk.span.start, chunk.span.stop], "given": chunk.given, "seconds": chunk.recache_seconds}
        facts |= {"switched": switched, "pinned": pinned}
        tensors = {"x": chunk.latents, **solver_tensors(steps, facts)}
        if self.stages.steps(self.pipe.place + 1):
            more, parts = self.sender.pack(condition, first if switched else chunk.span.start, chunk.span.stop)
            facts |= more
            tensors |= parts
        self.pipe.send(Message("chunk", facts, tensors))

    def _continue(self, state: RolloutState | None, message: Message, noise) -> Chunk:
        """Returns the chunk that arrived, after this rank's steps; it is committed here and sent on."""
        facts, tensors, span = message.facts, message.tensors, Span(*message.facts["span"])
        chunk = Chunk(span, tensors["x"], facts["given"], facts["seconds"])
        if not self.rollout.steps:
            return chunk
        condition = self.receiver.unpack(facts, tensors)
        # The first rank decides: keys of conditions mean nothing here, the less behind a snapshot.
        state.key = RECACHE_INCOMPLETE if facts["switched"] else condition.key
        state.portrait_key = None if facts["pinned"] else portrait_key(condition)
        if chunk.given:
            super().commit_given(state, condition, chunk, noise)
        else:
            self.rollout.set_condition(state, condition)
            steps = self.rollout.sampler.at(span).start()
            steps.load_state_dict(solver_state(facts, tensors))
            done = self.denoise(state, condition, span, noise, begun=(chunk.latents, steps))
            self.commit(state, condition, span, done, noise)
            chunk = replace(chunk, latents=done.latents)
            tensors = {n: t for n, t in tensors.items() if not n.startswith("solver.")}
            tensors |= {"x": chunk.latents, **solver_tensors(steps, facts)}
        if self.pipe.place < self.pipe.last:
            if not self.stages.steps(self.pipe.place + 1):
                tensors = {"x": tensors["x"]}
            self.pipe.send(Message("chunk", facts, tensors))
        return chunk


def oldest(state: RolloutState, span: Span) -> int:
    """Returns the first frame that a recache before this chunk may ask for."""
    return state.latest[0].span.start if state.latest else span.start


def solver_tensors(steps: StepState, facts: dict) -> dict[str, torch.Tensor]:
    """Returns the tensors of a solver's state; its numbers go into `facts`."""
    held = steps.state_dict()
    facts["solver"] = {name: value for name, value in held.items() if not isinstance(value, torch.Tensor)}
    return {f"solver.{name}": value for name, value in held.items() if isinstance(value, torch.Tensor)}


def solver_state(facts: dict, tensors: dict[str, torch.Tensor]) -> dict:
    """Returns the state dictionary of which `solver_tensors` made these."""
    found = {n.removeprefix("solver."): t for n, t in tensors.items() if n.startswith("solver.")}
    return {**facts["solver"], **found}
