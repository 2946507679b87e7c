"""An interactive video: generated chunk by chunk while its prompt may change; can be rewound and forked at any chunk.

    session = Session(pipeline)
    session.start("a red three moves right", seed=1)
    chunk = session.step()                                    latents and pixels of the next chunk
    session.switch_prompt("a green three moves right")        from another thread, if you like
    before = session.snapshot(); session.step(); session.restore(before)
    chunk, pixels = session.step_ahead()                      does not wait for the pixels: `pixels.result()` does

Every method may be called from any thread. `switch_prompt` never waits for a running `step`; the others do.
Where the decoder has a device of its own (`vae.device`), it decodes there while the next chunk is generated.
A video is a function of its prompts, the chunks at which they came, and the seed: a fork that goes on is bit by bit
the video that was never forked, where equal forwards give equal bits (on one machine, at one batch size). So is one
whose `step` failed (out of memory, say) and was called again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from numbers import Integral

import torch

from pipeline.batch.provenance import session_facts
from pipeline.batch.request import KeyedNoise, Request, check_words
from pipeline.causal import Causal
from pipeline.decoder import Decoder
from pipeline.rollout import Chunk
from pipeline.state import RolloutState, check_version, pack, unpack
from pipeline.track import Live, Track
from utils.data.prompts import check_prompt
from utils.diff import describe
from utils.rng import Rng
from wan.codec.base import DecoderState, StreamingDecoder
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
        self._executor = pipeline.executor
        self._state: RolloutState | None = None
        self._track: Live | None = None
        self._decoder: Decoder | None = None
        self._pending: tuple[tuple[Chunk, Future | None], ...] = ()  # generated, not known to be decoded; None: failed
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
            knobs, condition = self.pipeline.generation, self._condition(name, negative)
            largest = knobs.largest_chunk
            Ledger(knobs.cache, largest, max_frames)  # raises for a cache that needs a length
            self._end()  # the running video's cache is freed before this one's is allocated
            rollout = self._executor.rollout
            state = rollout.start(1, largest, max_frames)
            noise, decoder, made = self._make_noise(name, keys), self._open_decoder(), []
            for span in knobs.given_spans(latents.shape[1]):
                chunk = Chunk(span, latents[:, span.start : span.stop], given=True)
                chunk = rollout.commit_given(state, condition, chunk, noise)
                made.append((chunk, decoder.submit(chunk.latents) if decoder else None))
            chunks = [replace(chunk, pixels=pixels and pixels.result()) for chunk, pixels in made]
            self._begin(state, Live(name, condition), keys, latents.shape[1], decoder)
            return chunks

    @property
    def prompt(self) -> str:
        """The prompt in force."""
        return self._running().name

    @property
    def next_frame(self) -> int:
        """The latent frame at which the next chunk starts; one that could not be decoded comes again."""
        self._running()
        undecoded = self._undecoded()
        return undecoded[0].span.start if undecoded else self._next

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
            chunk, pixels = self.step_ahead()
            chunk = replace(chunk, pixels=pixels and pixels.result())
            self._settle()
            return chunk

    @torch.no_grad()
    def step_ahead(self) -> tuple[Chunk, Future | None]:
        """Returns the next chunk without waiting for its pixels, and their future (None for a session without pixels).

        A reader that does not ask for pixels holds nothing up; a decoder that is slower than the generation does: it
        is at most `pipeline.decoder.WAITING` chunks behind. Without a device of its own it decodes before this returns.
        Where decoding failed, that chunk and those behind it come again, from the next call on.
        Errors: as `step`.
        """
        with self._busy:
            track = self._running()
            self._settle()
            if undecoded := self._undecoded():
                chunk = undecoded[0]
            else:
                chunk = self._executor.generate_chunk(
                    self._state, self._conditions(track), self._next_span(), self._noise
                )
                self._made(chunk)
                self._next = chunk.span.stop
                if self._decoder is None:
                    return chunk, None
                self._pending += ((chunk, None),)
            pixels = self._decoder.submit(chunk.latents)
            self._pending = tuple((made, pixels if made is chunk else other) for made, other in self._pending)
            self._settle()
            return chunk, pixels

    def snapshot(self) -> dict:
        """Returns the video so far: {"tensors": name -> copy, "book": numbers and texts that JSON can hold}.

        `restore` takes it in any session whose pipeline has the same weights and knobs, and which decodes if this does.
        """
        with self._busy:
            track = self._running()
            undecoded, border, stream = self._decoded()
            snapshot = pack(self._state, stream, border)
            snapshot["tensors"] |= {f"undecoded.{n}": chunk.latents.clone() for n, chunk in enumerate(undecoded)}
            snapshot["book"]["undecoded"] = [[chunk.span.start, chunk.span.stop] for chunk in undecoded]
            facts = session_facts(self.pipeline, self.decode, snapshot["tensors"])
            snapshot["book"] |= {"facts": facts, "keys": dict(self._keys), "prompt": track.name}
            snapshot["book"]["waiting"] = [list(pair) for pair in track.waiting()]
            # True if the next chunk has its prompt already: its generation failed
            snapshot["book"]["tried"] = track.latest_start == self._next
            return snapshot

    def restore(self, snapshot: dict) -> None:
        """Goes back to a snapshot, of this session or of another one; what waits in line is what waited then.

        Errors: ValueError if it has been closed, for a snapshot of another pipeline, or one that was changed; the
        running video stays.
        """
        with self._busy:
            self._check_open()
            try:
                check_version(snapshot["book"])
                facts = session_facts(self.pipeline, self.decode, snapshot["tensors"])
                if names := describe(snapshot["book"]["facts"], facts):
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
            track, other = self._running().fork(), self._another()
            undecoded, _, stream = self._decoded()
            decoder = other._open_decoder(stream)
            other._begin(self._state.fork(), track, dict(self._keys), self._next, decoder, undecoded)
            return other

    def close(self) -> None:
        """Ends the video and frees its memory; every later call but this one raises ValueError."""
        with self._busy:
            self._closed = True
            self._end()

    def _conditions(self, track: Live) -> Track:
        """Returns the track that the executor asks; a talking session adds sound and portrait."""
        return track

    def _another(self) -> Session:
        """Returns a new session of the same kind."""
        return Session(self.pipeline, self.decode)

    def _made(self, chunk: Chunk) -> None:
        """Takes a chunk that has been generated."""

    def _pixels(self) -> StreamingDecoder:
        """Returns what makes the pixels of the session's videos."""
        return self.pipeline.bundle.decoder

    def _end(self) -> None:
        """Ends the running video."""
        if self._decoder is not None:
            self._decoder.close()
        self._track, self._state, self._decoder, self._pending = None, None, None, ()

    def _next_span(self) -> Span:
        """Returns where the next chunk lies. Errors: ValueError beyond the video's `max_frames`."""
        span, most = self.pipeline.generation.next_span(self._next), self._state.sizes["max_frames"]
        if most is not None and span.stop > most:
            raise ValueError(
                f"the next chunk, {span}, goes beyond the video's length: max_frames is {most}; start a longer one, or "
                "without max_frames where a window bounds the cache"
            )
        return span

    def _open_decoder(self, state: DecoderState | None = None) -> Decoder | None:
        """Returns the decoder of a video that stands at this state, or None for a session without pixels."""
        model = self._pixels()
        return Decoder(model, model.own_device, state) if self.decode else None

    def _decoded(self) -> tuple[list[Chunk], int, DecoderState | None]:
        """Waits for the decoder; returns (chunks that it could not decode, the frame it stands at, its state)."""
        wait([pixels for _, pixels in self._pending if pixels])
        undecoded = self._undecoded()
        border = undecoded[0].span.start if undecoded else self._next
        return undecoded, border, self._decoder.state if self._decoder else None

    def _undecoded(self) -> list[Chunk]:
        """Returns the chunks that were generated and must be given to the decoder again, since it failed."""
        decoder, pending = self._decoder, self._pending
        failed = decoder is not None and decoder.failed
        return [chunk for chunk, pixels in pending if pixels is None or (failed and not _succeeded(pixels))]

    def _settle(self) -> None:
        """Lets go of chunks that are decoded; if one could not be, opens the decoder anew in front of it."""
        if self._decoder is not None and self._decoder.failed:
            self._decoder.close()
            undecoded = self._undecoded()
            self._decoder, self._pending = self._open_decoder(self._decoder.state), tuple((c, None) for c in undecoded)
        self._pending = tuple((chunk, pixels) for chunk, pixels in self._pending if not (pixels and _succeeded(pixels)))

    def _unpacked(self, snapshot: dict) -> tuple:
        """Returns the video of a snapshot as `_begin` takes it."""
        book, keys = snapshot["book"], _keys(**snapshot["book"]["keys"])
        names = [book["prompt"], *(name for name, _ in book["waiting"])]
        condition, *later = [self._condition(self._checked(name), keys["negative"]) for name in names]
        spans = [Span(start, stop) for start, stop in book["undecoded"]]
        border = spans[-1].stop if spans else book["next_frame"]
        track = Live(book["prompt"], condition, border if book["tried"] else -1)
        for (name, now), other in zip(book["waiting"], later, strict=True):
            track.switch(name, other, now)
        device = self.pipeline.bundle.device
        state, stream = unpack(snapshot, self._executor.rollout, condition, device)
        last = state.latest[-1].span if state.latest else Span(0, 0)
        if [book["next_frame"], *(span.stop for span in spans)] != [*(span.start for span in spans), last.stop]:
            raise KeyError("next_frame")
        undecoded = [
            Chunk(span, snapshot["tensors"][f"undecoded.{n}"].to(device, copy=True)) for n, span in enumerate(spans)
        ]
        kept = sum(name.startswith("vae.") for name in snapshot["tensors"])
        if kept != (book["vae"] or []).count("tensor"):
            raise KeyError("vae")
        return state, track, keys, border, self._open_decoder(stream), undecoded

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
        state: RolloutState,
        track: Live,
        keys: dict,
        next_frame: int,
        decoder: Decoder | None,
        undecoded: Sequence[Chunk] = (),
    ) -> None:
        """Makes a video the running one. next_frame: behind all that is generated; undecoded: the end of that."""
        self._end()
        self._noise = self._make_noise(track.name, keys)
        self._state, self._keys, self._next, self._decoder = state, keys, next_frame, decoder
        self._pending = tuple((chunk, None) for chunk in undecoded)
        self._track = track  # last: from here on prompts can be switched

    def _condition(self, prompt: str, negative: str) -> Condition:
        """Returns the prompt's condition; its key is the prompt, so that the same one again is not a switch."""
        null = None if self.pipeline.rollout.sampler.guidance == 1 else negative
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


def _succeeded(pixels: Future) -> bool:
    return pixels.done() and not pixels.cancelled() and pixels.exception() is None


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
