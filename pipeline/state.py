"""State of a video between two chunks: caches, the condition they were computed under, latest latents, next frame.

A `Rollout` holds knobs only, so a state can be forked, moved to the CPU while a video rests, and packed into a file.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from wan.cache import KVCache
from wan.codec.base import DecoderState
from wan.condition import Condition, select_frames
from wan.geometry import Span

# Of packed states. 1: without this field, one cache for each guidance branch. 2: files without checksums.
VERSION = 3
RECACHE_INCOMPLETE = object()  # in place of a condition's key: marks a recache that was interrupted


@dataclass(frozen=True)
class Committed:
    """A chunk in the caches. latents: [B, F, C, h, w]. inputs: what the committing pass of each cache saw of it.

    A recache runs these passes again: on the clean latents, or with same-step caches on x at every step.
    """

    span: Span
    latents: torch.Tensor
    inputs: tuple[torch.Tensor, ...]


def portrait_key(condition: Condition) -> object:
    """Returns what tells the pinned runs of two conditions apart: they are made from the text and the portrait."""
    return condition.key, condition.portrait_key


@dataclass
class RolloutState:
    """One batch of videos. Made by `Rollout.start`; the rollout's methods change it where a chunk is finished.

    sizes: the arguments of `start`. caches: [step][guidance branch], a single step where they hold clean frames.
    key: of the condition in force. portrait_key: of the portrait that is pinned. latest: the chunks that a recache may
    ask for. next_frame: the first one missing. first: the video's first latent frame, where a portrait is pinned: it
    may become its reference.
    """

    sizes: dict[str, int | None]
    caches: list[list[KVCache]]
    key: object = None
    portrait_key: object = None
    latest: list[Committed] = field(default_factory=list)
    next_frame: int = 0
    first: torch.Tensor | None = None

    def __post_init__(self):
        for branches in self.caches[1:]:  # keys of text and portrait do not depend on the step
            for cache, first in zip(branches, self.caches[0], strict=True):
                cache.share(first)

    @property
    def same_step(self) -> bool:
        """Whether each step has caches of its own."""
        return self.caches[0][0].ledger.config.content == "same_step"

    def remember(self, chunk: Committed, frames: int) -> None:
        """Enters a committed chunk; keeps those of the last `frames` frames, or all if that is -1."""
        if not chunk.span.start and self.caches[0][0].ledger.pinned:
            self.first = chunk.latents[:, :1].clone()
        first = 0 if frames == -1 else chunk.span.stop - frames
        self.latest = [known for known in self.latest if known.span.stop > first] + [chunk]
        self.next_frame = chunk.span.stop

    @property
    def num_inputs(self) -> int:
        """How many passes of each remembered chunk can run again."""
        return min(len(chunk.inputs) for chunk in self.latest)

    def inputs(self, step: int, frames: Sequence[int]) -> torch.Tensor:
        """Returns what the pass that commits cache `step` saw of these frames; they must be remembered."""
        first = self.latest[0].span.start
        whole = torch.cat([chunk.inputs[step] for chunk in self.latest], 1)
        return select_frames(whole, [frame - first for frame in frames])

    def fork(self) -> RolloutState:
        """Returns another state of the same video; they share nothing that later changes."""
        return replace(self, caches=[[c.fork() for c in branches] for branches in self.caches], latest=[*self.latest])

    def to(self, device) -> RolloutState:
        """Returns the state on a device; this one is used up."""
        moved = [[cache.to(device) for cache in branches] for branches in self.caches]
        latest = [Committed(c.span, c.latents.to(device), tuple(x.to(device) for x in c.inputs)) for c in self.latest]
        first = None if self.first is None else self.first.to(device)
        return replace(self, caches=moved, latest=latest, first=first)

    def snapshot(self, device=None) -> tuple[dict, dict[str, torch.Tensor]]:
        """Returns (book of numbers, tensors); copies, on `device` or where the state is. `Rollout.restore` reads it."""
        caches = [cache for branches in self.caches for cache in branches]
        book: dict[str, Any] = {"sizes": dict(self.sizes), "ledgers": [cache.ledger.state() for cache in caches]}
        book["latest"] = [[chunk.span.start, chunk.span.stop] for chunk in self.latest]
        if self.key is RECACHE_INCOMPLETE:
            book["torn"] = True
        tensors = {f"{n}.{name}": t for n, cache in enumerate(caches) for name, t in cache.snapshot(device).items()}
        if self.first is not None:
            tensors["first"] = self.first.to(device, copy=True)
        if self.latest:
            tensors["latest"] = torch.cat([chunk.latents for chunk in self.latest], 1).to(device)
            for step in range(self.num_inputs if self.same_step else 0):
                tensors[f"inputs.{step}"] = torch.cat([chunk.inputs[step] for chunk in self.latest], 1).to(device)
            book["inputs"] = self.num_inputs
        return book, tensors

    def load(self, book: dict, tensors: dict[str, torch.Tensor], condition: Condition, device) -> None:
        """Takes back what `snapshot` returned; for an empty state of the same sizes. condition: that in force then."""
        caches = [cache for branches in self.caches for cache in branches]
        for number, (cache, ledger) in enumerate(zip(caches, book["ledgers"], strict=True)):
            own = {name: t for whole, t in tensors.items() for n, _, name in [whole.partition(".")] if n == str(number)}
            cache.restore(ledger, own)
        self.first = tensors["first"].to(device, copy=True) if "first" in tensors else None
        spans = [Span(*borders) for borders in book["latest"]]
        if not spans:
            return
        self.portrait_key = portrait_key(condition)
        names = ["latest", *(f"inputs.{step}" for step in range(book["inputs"] if self.same_step else 0))]
        lengths = [len(span) for span in spans]
        parts = [tensors[name].to(device, copy=True).split(lengths, 1) for name in names]
        for span, latents, *inputs in zip(spans, *parts, strict=True):
            self.latest.append(Committed(span, latents, tuple(inputs) or (latents,)))
        self.next_frame = spans[-1].stop
        self.key = RECACHE_INCOMPLETE if book.get("torn") else condition.key


def pack(state: RolloutState, stream: DecoderState | None, next_frame: int, device=None) -> dict:
    """Returns the video so far: {"tensors": name -> copy, "book": numbers and texts that JSON can hold}.

    stream: the decoder's state; next_frame: the first one that it has not decoded. device: where the copies lie; by
    default where the tensors do.
    """
    book, tensors = state.snapshot(device)
    kinds: list | None = None if stream is None else []
    for number, entry in enumerate(stream or ()):
        if isinstance(entry, torch.Tensor):
            tensors[f"vae.{number}"] = entry.to(device or entry.device, copy=True)
        # diffusers marks entries that hold no tensor by a text, or None
        kinds.append("tensor" if isinstance(entry, torch.Tensor) else entry)
    book = {"version": VERSION, "rollout": book, "vae": kinds, "next_frame": next_frame}
    return {"tensors": tensors, "book": book}


def unpack(snapshot: dict, rollout, condition: Condition, device) -> tuple[RolloutState, DecoderState | None]:
    """Returns (the state that was packed, the decoder's state on `device`). condition: that in force then."""
    tensors, book = snapshot["tensors"], snapshot["book"]
    state = rollout.restore(book["rollout"], tensors, condition)
    if book["vae"] is None:
        return state, None
    entries = (tensors[f"vae.{n}"].to(device) if kind == "tensor" else kind for n, kind in enumerate(book["vae"]))
    return state, tuple(entries)


def check_version(book: dict) -> None:
    """Raises ValueError for a snapshot of another version of this program."""
    if (found := book.get("version", 1)) != VERSION:
        raise ValueError(f"the snapshot has format {found} and this version reads {VERSION}; start the video anew")


def checksums(tensors: dict[str, torch.Tensor]) -> dict[str, list]:
    """Returns of each tensor on the CPU its type, shape and CRC-32, as JSON can hold them; one bit changes them."""
    return {name: [str(t.dtype), list(t.shape), zlib.crc32(_bytes(t))] for name, t in tensors.items()}


def check_tensors(tensors: dict[str, torch.Tensor], written: dict[str, list]) -> None:
    """Raises ValueError naming a tensor that is not what `checksums` saw."""
    if lost := sorted(tensors.keys() ^ written.keys()):
        raise ValueError(f"tensor {lost[0]} is missing or not its own")
    for name, found in checksums(tensors).items():
        if found != written[name]:
            raise ValueError(f"tensor {name} has changed since it was written")


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Returns the bytes of a tensor on the CPU."""
    return memoryview(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
