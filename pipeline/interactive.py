"""A film in conversation: made chunk by chunk while its prompt may be changed, rewound and forked at any chunk.

    session = Session(pipeline)
    session.start("a red three moves right", seed=1)
    chunk = session.step()                                    latents and pixels of the next chunk
    session.switch_prompt("a green three moves right")        from another thread, if you like
    before = session.snapshot(); session.step(); session.restore(before)

Every method may be called from any thread. `switch_prompt` never waits for a running `step`; the others do.
A film is a function of its prompts, the chunks at which they came, and the seed: a fork that goes on is bit by bit
the film that was never forked, where equal forwards give equal bits (on one machine, at one batch size).
"""

from __future__ import annotations

import threading
from dataclasses import replace

import torch

from pipeline.causal import Causal
from pipeline.decode import DECODED_TOGETHER
from pipeline.request import KeyedNoise, Request, check_words
from pipeline.rollout import Chunk
from pipeline.snapshot import pack, unpack
from pipeline.track import Live
from utils.data.prompts import check_prompt
from utils.rng import Rng
from wan.condition import Condition
from wan.geometry import Span

WHEN = ("now", "next")


class Session:
    """One film of a causal pipeline, which several sessions may share: it holds the model, they hold the films."""

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
        """Begins a film; one that is running ends here. Returns the chunks of given frames, as `step` does.

        seed, index: keys of the noise; with them the film is that of line `index` (from 0) of a prompt file.
        max_frames: latent frames at most, needed where no window bounds the cache.
        given: clean latents [1, F, C, h, w] that the film begins with (`pipeline.start.encode_start` makes them of a
        picture or a video); the first `step` goes on behind them.
        Errors: ValueError for a prompt or latents that cannot be used, or a cache that needs a length.
        """
        with self._busy:
            self._check_open()
            name = self._checked(prompt)
            latents = self._fitting(given, max_frames)
            self._keys = {"seed": seed, "index": index, "negative": negative}
            condition = self._condition(name, negative)
            largest = max(self.pipeline.config.chunk, self.pipeline.config.first_chunk)
            self._rollout.begin(1, largest, max_frames)
            track = Live(name, condition)
            self._begin(track, 0, None)
            chunks = [Chunk(s, latents[:, s.start : s.stop], True) for s in self.pipeline.given_spans(latents.shape[1])]
            chunks = [self._rollout.take(condition, chunk, self._noise) for chunk in chunks]
            self._next = latents.shape[1]
            return [self._decoded(chunk) for chunk in chunks]

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
        Errors: ValueError for a prompt that cannot be used, another `when`, or no running film.
        """
        if when not in WHEN:
            raise ValueError(f"when is {when!r}; write 'now' or 'next'")
        track = self._running()
        name = self._checked(text)
        track.switch(name, self._condition(name, self._keys["negative"]), when == "now")

    @torch.no_grad()
    def step(self) -> Chunk:
        """Returns the next chunk: latents [1, F, C, h, w] and, if decoded, pixels [1, P, 3, H, W] in [-1, 1].

        Errors: ValueError without a running film, or beyond its `max_frames`.
        """
        with self._busy:
            track, knobs = self._running(), self.pipeline.config
            length = (knobs.first_chunk or knobs.chunk) if self._next == 0 else knobs.chunk
            chunk = self._rollout.make(track, Span(self._next, self._next + length), self._noise)
            self._next += length
            return self._decoded(chunk)

    def snapshot(self) -> dict:
        """Returns the film so far: {"tensors": name -> copy, "book": numbers and texts that JSON can hold}.

        `restore` of any session of the same pipeline takes it.
        """
        with self._busy:
            track = self._running()
            snapshot = pack(self._rollout, self._vae_state, self._next)
            snapshot["book"] |= {"keys": dict(self._keys), "prompt": track.name}
            snapshot["book"]["waiting"] = [list(pair) for pair in track.waiting()]
            return snapshot

    def restore(self, snapshot: dict) -> None:
        """Goes back to a snapshot, of this session or of another one; what waits in line is what waited then.

        Errors: ValueError if it has been closed.
        """
        with self._busy:
            self._check_open()
            book = snapshot["book"]
            self._keys = dict(book["keys"])
            condition = self._condition(book["prompt"], self._keys["negative"])
            track = Live(book["prompt"], condition)
            for name, now in book["waiting"]:
                track.switch(name, self._condition(name, self._keys["negative"]), now)
            stream = unpack(snapshot, self._rollout, condition, self.pipeline.kit.device)
            self._begin(track, book["next_frame"], stream)

    def fork(self) -> Session:
        """Returns another session that goes on from here, on its own."""
        with self._busy:
            other = Session(self.pipeline, self.decode)
            other.restore(self.snapshot())
            return other

    def close(self) -> None:
        """Ends the film and lets go of its memory; every later call but this one raises ValueError."""
        with self._busy:
            self._closed, self._track, self._vae_state = True, None, None
            self._rollout = replace(self.pipeline.rollout)

    def _decoded(self, chunk: Chunk) -> Chunk:
        """Returns the chunk with its pixels, which are the next ones of the decoder's stream."""
        if not self.decode:
            return chunk
        parts, state = [], self._vae_state
        for latents in chunk.latents.split(DECODED_TOGETHER, 1):
            part, state = self.pipeline.kit.vae.decode_stream(latents, state)
            parts.append(part)
        self._vae_state = state
        return replace(chunk, pixels=torch.cat(parts, 1))

    def _fitting(self, given: torch.Tensor | None, max_frames: int | None) -> torch.Tensor:
        """Returns the given latents on the model's device, [1, 0, C, h, w] for none."""
        kit, shape = self.pipeline.kit, self.pipeline.rollout.geometry.latent_shape(1)[1:]
        if given is None:
            return torch.empty(1, 0, *shape)
        if given.dim() != 5 or len(given) != 1 or given.shape[2:] != shape or not given.shape[1]:
            raise ValueError(f"given latents are {list(given.shape)}; this film takes [1, F, {str(shape)[1:-1]}]")
        if max_frames is not None and given.shape[1] >= max_frames:
            raise ValueError(f"{given.shape[1]} latent frames are given and max_frames is {max_frames}; write more")
        return given.to(kit.device, kit.dtype)

    def _begin(self, track: Live, next_frame: int, vae_state: list | None) -> None:
        kit, keys = self.pipeline.kit, self._keys
        shape = self.pipeline.rollout.geometry.latent_shape(1)[1:]
        request = Request(track.name, keys["index"], 0, "")
        self._noise = KeyedNoise(Rng(keys["seed"]), [request], shape, kit.dtype)
        self._next, self._vae_state = next_frame, vae_state
        self._track = track  # last: from here on prompts can be switched

    def _condition(self, prompt: str, negative: str) -> Condition:
        """Returns the prompt's condition; its key is the prompt, so that the same one again is no switch."""
        null = None if self._rollout.sampler.guidance == 1 else negative
        return replace(self.pipeline.kit.condition([prompt], null), key=(prompt, negative))

    def _checked(self, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("the prompt is empty; write one")
        prompt = check_prompt(prompt, "the prompt")
        check_words(prompt, self.pipeline.kit.spec.name)
        return prompt

    def _running(self) -> Live:
        """Returns the track of the running film."""
        self._check_open()
        track = self._track
        if track is None:
            raise ValueError("no film is running; call start(prompt) first")
        return track

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this session is closed; make a new one")
