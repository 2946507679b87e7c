"""A video in conversation: made chunk by chunk while its prompt may be changed, rewound and forked at any chunk.

    session = Session(pipeline)
    session.start("a red three moves right", seed=1)
    chunk = session.step()                                    latents and pixels of the next chunk
    session.switch_prompt("a green three moves right")        from another thread, if you like
    before = session.snapshot(); session.step(); session.restore(before)

Every method may be called from any thread. `switch_prompt` never waits for a running `step`; the others do.
A video is a function of its prompts, the chunks at which they came, and the seed: a fork that goes on is bit by bit
the video that was never forked, where equal forwards give equal bits (on one machine, at one batch size). So is one
whose `step` failed (out of memory, say) and was called again.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from numbers import Integral

import torch

from pipeline.batch.request import KeyedNoise, Request, check_words
from pipeline.batch.resume import describe_changes, pack, pipeline_facts, shapes, unpack
from pipeline.batch.writer import DECODED_TOGETHER
from pipeline.causal import Causal
from pipeline.rollout import Chunk, Rollout
from pipeline.track import Live
from utils.data.prompts import check_prompt
from utils.rng import Rng
from wan.condition import Condition
from wan.geometry import Span
from wan.ledger import Ledger

WHEN = ("now", "next")


class Session:
    """One video of a causal pipeline, which several sessions may share: it holds the model, they hold the videos."""

    def __init__(self, pipeline: Causal, decode: bool = True):
        """decode: whether chunks come with pixels."""
        self.pipeline, self.decode = pipeline, decode
        self._busy = threading.RLock()
        self._rollout = replace(pipeline.rollout)  # the same knobs, caches of its own
        self._track: Live | None = None
        self._closed = False

    @torch.no_grad()
    def start(
        self,
        prompt: str,
        seed: int = 0,
        negative: str = "",
        index: int = 0,
        max_frames: int | None = None,
        given: torch.Tensor | None = None,
    ) -> list[Chunk]:
        """Begins a video; one that is running ends here. Returns the chunks of given frames, as `step` does.

        seed, index: keys of the noise; with them the video is that of line `index` (from 0) of a prompt file.
        max_frames: latent frames at most, or None; needed where no window bounds the cache.
        given: clean latents [1, F, C, h, w] that the video begins with (`encode_start` makes them of a
        picture or a video); the first `step` goes on behind them.
        Errors: ValueError for an argument that cannot be used, or a cache that needs a length; the running video stays.
        """
        with self._busy:
            self._check_open()
            name, keys = self._checked(prompt), _keys(seed, index, negative)
            max_frames = None if max_frames is None else _whole("max_frames", max_frames, 1)
            latents = self._fitting(given, max_frames)
            knobs, condition = self.pipeline.config, self._condition(name, negative)
            largest = max(knobs.chunk, knobs.first_chunk)
            Ledger(knobs.cache, largest, max_frames)  # raises for a cache that needs a length
            self._track, self._made, self._stream = None, None, None  # the running video ends: its cache is let go of
            self._rollout = rollout = replace(self._rollout)
            rollout.start(1, largest, max_frames)
            noise, stream, chunks = self._make_noise(name, keys), None, []
            for span in self.pipeline.given_spans(latents.shape[1]):
                chunk = rollout.commit_given(condition, Chunk(span, latents[:, span.start : span.stop], True), noise)
                chunk, stream = self._decoded(chunk, stream)
                chunks.append(chunk)
            self._begin(rollout, Live(name, condition), keys, latents.shape[1], stream)
            return chunks

    @property
    def prompt(self) -> str:
        """The prompt in force."""
        return self._running().name

    @property
    def next_frame(self) -> int:
        """The latent frame at which the next chunk starts."""
        self._running()
        return self._next

    def switch_prompt(self, text: str, when: str = "next") -> None:
        """Changes the prompt, with the cache policy's recache.

        when: "next" = from the next chunk on; several wait in line, one a chunk. "now" = the chunk in the making is
        given up between two steps and begun anew from the same noise; what waits in line is dropped.
        Errors: ValueError for a prompt that cannot be used, another `when`, or no running video.
        """
        if when not in WHEN:
            raise ValueError(f"when is {when!r}; write 'now' or 'next'")
        track = self._running()
        name = self._checked(text)
        track.switch(name, self._condition(name, self._keys["negative"]), when == "now")

    @torch.no_grad()
    def step(self) -> Chunk:
        """Returns the next chunk: latents [1, F, C, h, w] and, if decoded, pixels [1, P, 3, H, W] in [-1, 1].

        Where it fails it may be called again: the video is the one that it would have been.
        Errors: ValueError without a running video, or beyond its `max_frames`.
        """
        with self._busy:
            track = self._running()
            if self._made is None:
                self._made = self._rollout.generate_chunk(track, self._next_span(), self._noise)
            chunk, self._stream = self._decoded(self._made, self._stream)
            self._made, self._next = None, chunk.span.stop
            return chunk

    def snapshot(self) -> dict:
        """Returns the video so far: {"tensors": name -> copy, "book": numbers and texts that JSON can hold}.

        `restore` takes it in any session whose pipeline has the same weights and knobs, and which decodes if this does.
        """
        with self._busy:
            track = self._running()
            snapshot = pack(self._rollout, self._stream, self._next)
            facts = self._facts(snapshot["tensors"])
            snapshot["book"] |= {"facts": facts, "keys": dict(self._keys), "prompt": track.name}
            snapshot["book"]["waiting"] = [list(pair) for pair in track.waiting()]
            snapshot["book"]["tried"] = (
                track.latest_start == self._next
            )  # the next chunk has its prompt: its making failed
            return snapshot

    def restore(self, snapshot: dict) -> None:
        """Goes back to a snapshot, of this session or of another one; what waits in line is what waited then.

        Errors: ValueError if it has been closed, for a snapshot of another pipeline, or one that was changed; the
        running video stays.
        """
        with self._busy:
            self._check_open()
            try:
                if names := describe_changes(snapshot["book"]["facts"], self._facts(snapshot["tensors"])):
                    advice = "restore it in a session like the one that it is of"
                    raise ValueError(f"the snapshot does not fit: {names}; {advice}")
                video = self._unpacked(snapshot)
            except (AttributeError, IndexError, KeyError, TypeError) as error:
                raise ValueError(
                    f"the snapshot cannot be read ({type(error).__name__}: {error}); give what `snapshot` returned"
                ) from error
            self._begin(*video)

    def fork(self) -> Session:
        """Returns another session that goes on from here, on its own."""
        with self._busy:
            other = Session(self.pipeline, self.decode)
            other.restore(self.snapshot())
            return other

    def close(self) -> None:
        """Ends the video and lets go of its memory; every later call but this one raises ValueError."""
        with self._busy:
            self._closed, self._track, self._made, self._stream = True, None, None, None
            self._rollout = replace(self.pipeline.rollout)

    def _next_span(self) -> Span:
        """Returns where the next chunk lies. Errors: ValueError beyond the video's `max_frames`."""
        knobs, most = self.pipeline.config, self._rollout.sizes["max_frames"]
        span = Span(self._next, self._next + (knobs.chunk if self._next else knobs.first_chunk or knobs.chunk))
        if most is not None and span.stop > most:
            raise ValueError(
                f"the next chunk, {span}, goes beyond the video's length: max_frames is {most}; start a longer one, or "
                "without max_frames where a window bounds the cache"
            )
        return span

    def _decoded(self, chunk: Chunk, stream: list | None) -> tuple[Chunk, list | None]:
        """Returns (the chunk with its pixels, the decoder's state behind it); stream: the state before."""
        if not self.decode:
            return chunk, None
        parts = []
        for latents in chunk.latents.split(DECODED_TOGETHER, 1):
            part, stream = self.pipeline.bundle.vae.decode_stream(latents, stream)
            parts.append(part)
        return replace(chunk, pixels=torch.cat(parts, 1)), stream

    def _facts(self, tensors: dict[str, torch.Tensor]) -> dict:
        """Returns what a snapshot of these tensors must have in common with a session that takes it."""
        return pipeline_facts(self.pipeline) | {"decode": self.decode, "tensors": shapes(tensors)}

    def _unpacked(self, snapshot: dict) -> tuple:
        """Returns the video of a snapshot as `_begin` takes it."""
        book, keys = snapshot["book"], _keys(**snapshot["book"]["keys"])
        names = [book["prompt"], *(name for name, _ in book["waiting"])]
        condition, *later = [self._condition(self._checked(name), keys["negative"]) for name in names]
        track = Live(book["prompt"], condition, book["next_frame"] if book["tried"] else -1)
        for (name, now), other in zip(book["waiting"], later, strict=True):
            track.switch(name, other, now)
        rollout = replace(self._rollout)
        stream = unpack(snapshot, rollout, condition, self.pipeline.bundle.device)
        last = rollout.latest[-1][0] if rollout.latest else Span(0, 0)
        if book["next_frame"] not in (last.start, last.stop):
            raise KeyError("next_frame")
        kept = sum(name.startswith("vae.") for name in snapshot["tensors"])
        if kept != (book["vae"] or []).count("tensor"):
            raise KeyError("vae")
        ahead = last.stop > book["next_frame"]  # made, but its decoding failed
        return rollout, track, keys, book["next_frame"], stream, Chunk(*rollout.latest[-1]) if ahead else None

    def _fitting(self, given: torch.Tensor | None, max_frames: int | None) -> torch.Tensor:
        """Returns the given latents on the model's device, [1, 0, C, h, w] for none."""
        bundle, shape = self.pipeline.bundle, self.pipeline.rollout.geometry.latent_shape(1)[1:]
        if given is None:
            return torch.empty(1, 0, *shape)
        if not isinstance(given, torch.Tensor):
            raise ValueError(f"given latents are of type {type(given).__name__}; write a tensor [1, F, C, h, w]")
        if given.dim() != 5 or len(given) != 1 or given.shape[2:] != shape or not given.shape[1]:
            raise ValueError(f"given latents are {list(given.shape)}; this video takes [1, F, {str(shape)[1:-1]}]")
        if max_frames is not None and given.shape[1] >= max_frames:
            raise ValueError(f"{given.shape[1]} latent frames are given and max_frames is {max_frames}; write more")
        latents = given.to(bundle.device, bundle.dtype)
        if not latents.isfinite().all():
            raise ValueError(
                f"given latents are not all finite in {bundle.dtype}; write numbers around 0, as a VAE does"
            )
        return latents

    def _make_noise(self, prompt: str, keys: dict) -> KeyedNoise:
        shape = self.pipeline.rollout.geometry.latent_shape(1)[1:]
        request = Request(prompt, keys["index"], 0, "")
        return KeyedNoise(Rng(keys["seed"]), [request], shape, self.pipeline.bundle.dtype)

    def _begin(
        self,
        rollout: Rollout,
        track: Live,
        keys: dict,
        next_frame: int,
        stream: list | None,
        made: Chunk | None = None,
    ) -> None:
        """Makes a video the running one. stream: the decoder's state; made: a chunk that it has not decoded yet."""
        self._noise = self._make_noise(track.name, keys)
        self._rollout, self._keys, self._next, self._stream, self._made = rollout, keys, next_frame, stream, made
        self._track = track  # last: from here on prompts can be switched

    def _condition(self, prompt: str, negative: str) -> Condition:
        """Returns the prompt's condition; its key is the prompt, so that the same one again is no switch."""
        null = None if self._rollout.sampler.guidance == 1 else negative
        return replace(self.pipeline.bundle.condition([prompt], null), key=(prompt, negative))

    def _checked(self, prompt: str) -> str:
        if not isinstance(prompt, str):
            raise ValueError(f"the prompt is {prompt!r}, not a text; write one")
        prompt = check_prompt(prompt, "the prompt")
        if not prompt:
            raise ValueError("the prompt is empty; write one")
        check_words(prompt, self.pipeline.bundle.spec.name)
        return prompt

    def _running(self) -> Live:
        """Returns the track of the running video."""
        self._check_open()
        track = self._track
        if track is None:
            raise ValueError("no video is running; call start(prompt) first")
        return track

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this session is closed; make a new one")


def _keys(seed: int, index: int, negative: str) -> dict:
    """Returns the keys of a video. Errors: ValueError for one that is of no use."""
    if not isinstance(negative, str):
        raise ValueError(f"the negative prompt is {negative!r}, not a text; write one, or '' for none")
    return {"seed": _whole("seed", seed, 0), "index": _whole("index", index, 0), "negative": negative}


def _whole(name: str, value: int, least: int) -> int:
    """Returns the whole number. Errors: ValueError for what is none, or below `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; write a whole number, {least} or more")
    return int(value)
