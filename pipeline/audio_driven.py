"""A talking video: the causal rollout with a portrait that every chunk sees and the sound of each chunk's frames.

    pipeline = AudioDriven(...)
    voice = pipeline.voice(condition, portraits, sounds)        # track, decoder
    for chunk in pipeline.generate(voice.track, noise, batch, total): ...   # voice.decoder makes the pixels

Sound is no prompt switch: it goes on under one condition's key. Features are made chunk by chunk and kept as long as a
recache may ask for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.bundle import ModelBundle
from pipeline.causal import Causal
from pipeline.config import AudioDrivenConfig
from pipeline.rollout import Chunk
from pipeline.state import RolloutState
from pipeline.track import Fixed, Track
from wan.audio.features import FeatureStream, stack_speakers
from wan.audio.motion import MOTION_FRAMES
from wan.codec.base import StreamingDecoder
from wan.codec.still import PrimedDecoder, steady_latent
from wan.condition import FEATURES_HEARD, FEATURES_PER_FRAME, Condition
from wan.generation import GenerationConfig
from wan.geometry import Span

BEFORE = -(-(FEATURES_HEARD - FEATURES_PER_FRAME) // FEATURES_PER_FRAME)  # latent frames that a first frame also hears


@dataclass(frozen=True)
class Voice:
    """What one batch of talking videos is made with: the condition of each chunk, and the decoder of its pixels."""

    track: AudioTrack
    decoder: StreamingDecoder


class AudioTrack(Track):
    """Another track's condition with portrait and sound. streams: of each video, of each of its speakers."""

    def __init__(self, inner: Track, streams: Sequence[Sequence[FeatureStream]], portrait: dict, generation):
        self.inner, self.streams, self.portrait, self.generation = inner, streams, portrait, generation
        self._first: torch.Tensor | None = None  # latent frame of the video, once it is made
        self._features: dict[int, torch.Tensor] = {}  # of each chunk, by its start
        window = generation.cache.window_frames
        self._reach = None if window == -1 else max(window, generation.cache.recache_frames) + BEFORE

    def at(self, span: Span) -> Condition:
        """Returns the condition of a chunk: text in force, portrait, and the sound from as far back as is asked for."""
        base = self.inner.at(span)
        if span.start not in self._features:
            first, last = span.start * FEATURES_PER_FRAME, span.stop * FEATURES_PER_FRAME
            self._features[span.start] = torch.cat([stack_speakers(own, first, last) for own in self.streams])
        if self._reach is not None:
            kept = {start: f for start, f in self._features.items() if self._stop(start, f) > span.start - self._reach}
            self._features = kept
        starts = sorted(start for start in self._features if start <= span.start)
        audio = torch.cat([self._features[start] for start in starts], 2).to(base.text)
        chunk = self.generation.audio_chunk
        parts = {**self.portrait, "audio": audio, "audio_start": starts[0], "audio_chunk": chunk}
        return replace(base, **parts, **self._refreshed(span))

    def note(self, chunk: Chunk) -> None:
        """Takes the video's first latent frame, which may become its reference."""
        if self._first is None and chunk.span.start == 0:
            self._first = chunk.latents[:, :1].clone()

    def preempt_requested(self) -> bool:
        """Asks the inner track."""
        return self.inner.preempt_requested()

    def _refreshed(self, span: Span) -> dict:
        number = self.generation.portrait.refresh
        if not number or self._first is None or span.start < number * self.generation.chunk:
            return {}
        return {"reference": self._first.to(self.portrait["reference"]), "portrait_key": "refreshed"}

    def _stop(self, start: int, features: torch.Tensor) -> int:
        return start + features.shape[2] // FEATURES_PER_FRAME


def audio_driven(config: AudioDrivenConfig, generation, bundle: ModelBundle, sampler, geometry, seed: int = 0):
    """Returns the pipeline of an `AudioDrivenConfig`."""
    return AudioDriven(config, generation, bundle, sampler, geometry, seed)


class AudioDriven(Causal):
    """The causal pipeline of a model that hears."""

    def __init__(self, config, generation: GenerationConfig, bundle: ModelBundle, sampler, geometry, seed: int = 0):
        super().__init__(generation, bundle, sampler, geometry, seed)
        self.config, self.geometry, self.hears = config, geometry, bundle.hear(config.encoder)

    @torch.no_grad()
    def voice(
        self, condition: Condition | Track, portraits_B3HW: torch.Tensor, sounds, fps: float, masks=None
    ) -> Voice:
        """Returns track and decoder of a batch. sounds: of each video, of each of its speakers, at 16 kHz.

        masks: [B, A, rows, columns] in [0, 1], how much of a speaker's part each token takes; needed for several.
        """
        still = steady_latent(self.bundle.vae, portraits_B3HW.to(self.bundle.device))
        reference = still.to(self.bundle.dtype)
        portrait = {"reference": reference, "motion": reference.expand(-1, MOTION_FRAMES, -1, -1, -1)}
        if masks is not None:
            portrait["speakers"] = masks[:, :, None].to(reference)
        streams = [[FeatureStream(self.hears, sound, self.config.audio, fps) for sound in own] for own in sounds]
        track = condition if isinstance(condition, Track) else Fixed(condition)
        return Voice(AudioTrack(track, streams, portrait, self.generation), PrimedDecoder(self.bundle.decoder, still))

    def length(self, avatar, fps: float, most: float = 0.0) -> int:
        """Returns the latent frames, in whole chunks, that last as long as the longest sound, or `most` seconds."""
        seconds = max(sound.length / sound.rate for sound in avatar.open())
        return self.round_up(self.geometry.latent_frames_for(min(seconds, most or seconds), fps))

    def generate(self, condition, noise, batch: int, total: int, given=None, state: RolloutState | None = None):
        """Yields the chunks; condition: the `track` of a `Voice`."""
        return self._noted(condition, super().generate(condition, noise, batch, total, given, state))

    def _noted(self, track, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            track.note(chunk)
            yield chunk
