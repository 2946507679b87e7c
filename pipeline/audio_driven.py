"""A talking video: the causal rollout with a portrait that every chunk sees and the sound of each chunk's frames.

    pipeline = AudioDriven(...)
    voice = pipeline.voice(condition, portraits, sounds)        # track, decoder
    for chunk in pipeline.generate(voice.track, noise, batch, total): ...   # voice.decoder makes the pixels

Sound is no prompt switch: it goes on under one condition's key. Features are made chunk by chunk and kept as long as a
recache may ask for them.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.bundle import ModelBundle
from pipeline.causal import Causal
from pipeline.config import AudioDrivenConfig
from pipeline.pose import PoseStream
from pipeline.rollout import Chunk, guided
from pipeline.sampler import sample
from pipeline.state import Committed, RolloutState
from pipeline.track import Fixed, Track
from wan.audio.features import FeatureStream, stack_speakers
from wan.audio.motion import MOTION_FRAMES
from wan.codec.base import StreamingDecoder
from wan.codec.still import PrimedDecoder, steady_latent
from wan.condition import FEATURES_HEARD, FEATURES_PER_FRAME, Condition
from wan.context import Full
from wan.generation import GenerationConfig
from wan.geometry import Span
from wan.ledger import CacheConfig

logger = logging.getLogger(__name__)
BEFORE = -(-(FEATURES_HEARD - FEATURES_PER_FRAME) // FEATURES_PER_FRAME)  # latent frames that a first frame also hears


@dataclass(frozen=True)
class Voice:
    """What one batch of talking videos is made with: the condition of each chunk, and the decoder of its pixels."""

    track: AudioTrack
    decoder: StreamingDecoder


class AudioTrack(Track):
    """Another track's condition with portrait and sound. streams: of each video, of each of its speakers.

    piece: latent frames whose sound is heard together, as the model was trained; what is longer is heard in pieces.
    pose: the one pose video of all of them, or None.
    """

    def __init__(
        self,
        inner: Track,
        streams: Sequence[Sequence[FeatureStream]],
        portrait: dict,
        generation,
        piece: int,
        pose: PoseStream | None = None,
    ):
        self.inner, self.streams, self.portrait, self.generation = inner, streams, portrait, generation
        self.piece, self.pose = piece, pose
        self.ask_first: Callable[[], torch.Tensor] | None = None  # where another rank makes it
        self.first: torch.Tensor | None = None  # latent frame of the video, once it is made
        self._made: dict[int, dict[str, torch.Tensor]] = {}  # sound and pose of each chunk, by its start
        window = generation.cache.window_frames
        self._reach = None if window == -1 else max(window, generation.cache.recache_frames) + BEFORE

    def at(self, span: Span) -> Condition:
        """Returns the condition of a chunk: text in force, portrait, and the sound from as far back as is asked for."""
        base = self.inner.at(span)
        seen = [*self._before(span.start), span]
        self._made = {own.start: self._made.get(own.start) or self._make(own) for own in seen}
        first, made = seen[0].start, list(self._made.values())
        parts = {**self.portrait, "audio_start": first, "audio_chunk": self.generation.audio_chunk}
        parts["audio"] = torch.cat([own["audio"] for own in made], 2).to(base.text)
        if self.pose is not None:
            pose = torch.cat([own["pose"] for own in made], 1).to(base.text)
            parts |= {"pose": pose.expand(len(base.text), -1, -1, -1, -1), "frames_start": first}
        return replace(base, **(parts | self._refreshed(span)))

    def _before(self, start: int) -> list[Span]:
        """Returns the chunks before a frame whose sound a pass may ask for, in order: a function of the frame alone."""
        least, found = 0 if self._reach is None else max(start - self._reach, 0), []
        head, chunk = self.generation.head, self.generation.chunk
        while start > least:
            begin = max(start - chunk, head) if start > head else 0
            found.append(Span(begin, start))
            start = begin
        return found[::-1]

    def _make(self, span: Span) -> dict[str, torch.Tensor]:
        """Returns the features [B, A, P, L, C] of a chunk, and the latents [1, F, C, h, w] of its pose."""
        made = {"audio": torch.cat([self._hear(own, span) for own in self.streams])}
        return made if self.pose is None else made | {"pose": self.pose.latents(span)}

    def _hear(self, streams: Sequence[FeatureStream], span: Span) -> torch.Tensor:
        """Returns the features [1, A, P, L, C] of a span of one video."""
        borders = [*range(span.start, span.stop, self.piece), span.stop]
        pieces = [(a * FEATURES_PER_FRAME, b * FEATURES_PER_FRAME) for a, b in itertools.pairwise(borders)]
        return torch.cat([stack_speakers(streams, a, b) for a, b in pieces], 2)

    def over(self, inner: Track) -> AudioTrack:
        """Returns a track with the same portrait and sound over another one's conditions."""
        return AudioTrack(inner, self.streams, self.portrait, self.generation, self.piece, self.pose)

    def note(self, chunk: Chunk) -> None:
        """Takes the video's first latent frame, which may become its reference."""
        if self.first is None and chunk.span.start == 0 and self.ask_first is None:
            self.first = chunk.latents[:, :1].clone()

    def preempt_requested(self) -> bool:
        """Asks the inner track."""
        return self.inner.preempt_requested()

    def _refreshed(self, span: Span) -> dict:
        number = self.generation.portrait.refresh
        if not number or span.start < number * self.generation.chunk:
            return {}
        if self.first is None and self.ask_first is not None:
            self.first = self.ask_first()
        if self.first is None:  # of a run that is resumed, before its state is there
            return {}
        return {"reference": self.first.to(self.portrait["reference"]), "portrait_key": "refreshed"}


def audio_driven(config: AudioDrivenConfig, generation, bundle: ModelBundle, sampler, geometry, seed: int = 0):
    """Returns the pipeline of an `AudioDrivenConfig`."""
    made = AudioClips if config.clip_frames else AudioDriven
    return made(config, generation, bundle, sampler, geometry, seed)


class AudioDriven(Causal):
    """The causal pipeline of a model that hears."""

    def __init__(self, config, generation: GenerationConfig, bundle: ModelBundle, sampler, geometry, seed: int = 0):
        super().__init__(generation, bundle, sampler, geometry, seed)
        self.config, self.geometry, self.sampler, self.piece = config, geometry, sampler, generation.chunk

    @torch.no_grad()
    def voice(
        self, condition: Condition | Track, portraits_B3HW: torch.Tensor, sounds, fps: float, masks=None, pose=None
    ) -> Voice:
        """Returns track and decoder of a batch. sounds: of each video, of each of its speakers, at 16 kHz.

        masks: [B, A, rows, columns] in [0, 1], how much of a speaker's part each token takes; needed for several.
        pose: the file of a pose video, or None.
        """
        still = self.still(portraits_B3HW)
        reference = still.to(self.bundle.dtype)
        portrait = {"reference": reference, "motion": reference.expand(-1, MOTION_FRAMES, -1, -1, -1)}
        if masks is not None:
            portrait["speakers"] = masks[:, :, None].to(reference)
        hears = self.bundle.hear(self.config.encoder)
        streams = [[FeatureStream(hears, sound, self.config.audio, fps) for sound in own] for own in sounds]
        track = condition if isinstance(condition, Track) else Fixed(condition)
        if pose is not None:
            pose = PoseStream(self.bundle.vae, pose, self.geometry, fps, self.config.audio.lead)
        made = AudioTrack(track, streams, portrait, self.generation, self.piece, pose)
        return Voice(made, PrimedDecoder(self.bundle.decoder, still))

    @torch.no_grad()
    def still(self, portraits_B3HW: torch.Tensor) -> torch.Tensor:
        """Returns the latents [B, 1, C, h, w] of portraits at rest."""
        return steady_latent(self.bundle.vae, portraits_B3HW.to(self.bundle.device))

    def length(self, avatar, fps: float, most: float = 0.0) -> int:
        """Returns the latent frames, in whole chunks, that last as long as the longest sound, or `most` seconds.

        Not more than the clips of `num_clip`, of the video or of all.
        """
        seconds, least = (
            max(s.length / s.rate for s in avatar.open()),
            self.geometry.pixel_frames(self.round_up(1)) / fps,
        )
        if seconds < least:
            files = ", ".join(map(str, avatar.sounds))
            logger.warning("%s: %.3g s of sound, and a chunk lasts %.3g s; silence follows", files, seconds, least)
        total = self.round_up(self.geometry.latent_frames_for(min(seconds, most or seconds), fps))
        clips = avatar.num_clip or self.config.num_clip
        return min(total, self.round_up(clips * self.config.clip_length(self.generation))) if clips else total

    def generate(self, condition, noise, batch: int, total: int, given=None, state: RolloutState | None = None):
        """Yields the chunks; condition: the `track` of a `Voice`."""
        condition.first = condition.first if state is None else state.first
        return self._noted(condition, super().generate(condition, noise, batch, total, given, state))

    def _noted(self, track, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            track.note(chunk)
            yield chunk


class AudioClips(AudioDriven):
    """Clips one after another, each as a whole: every frame sees every other, and the latents before as its motion."""

    def __init__(self, config, generation: GenerationConfig, bundle: ModelBundle, sampler, geometry, seed: int = 0):
        whole = replace(generation, chunk=config.clip_frames, first_chunk=0, cache=CacheConfig(config.clip_frames))
        super().__init__(config, whole, bundle, sampler, geometry, seed)
        self.piece = generation.chunk

    @torch.no_grad()
    def generate(self, condition, noise, batch: int, total: int, given=None, state: RolloutState | None = None):
        """Yields the clips. state: its latest latents are the motion of the next clip."""
        state = self.start(batch, total) if state is None else state
        for span in [span for span in self.spans(total) if span.start >= state.next_frame]:
            whole = condition.at(span)
            past = [whole.motion, *(chunk.latents.to(whole.motion) for chunk in state.latest)]
            own = replace(whole.cut(span), motion=torch.cat(past, 1)[:, -MOTION_FRAMES:])
            predict = guided(self.bundle.denoiser, own, [Full(), Full()], self.sampler.guidance)
            latents = sample(
                self.sampler.at(span),
                noise(span, 0).to(self.bundle.device),
                predict,
                lambda k, span=span: noise(span, k),
            )
            state.remember(Committed(span, latents, (latents,)), MOTION_FRAMES)
            yield Chunk(span, latents)
