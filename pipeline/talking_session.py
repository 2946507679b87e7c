"""An interactive video that talks: a portrait, and sound that arrives while the video is made.

    session = TalkingSession(pipeline)                        # a pipeline `audio_driven`
    session.start("a woman speaks", portrait=picture)
    session.hear(samples, 48_000)                             # from another thread, as they come
    chunk = session.step()                                    # waits for the sound of its frames

Sound is no prompt switch: `switch_prompt`, `snapshot`, `restore` and `fork` work as in `Session`. A fork and a snapshot
go on with the same sound, which is kept for ten minutes. What the last frame of a chunk hears must have arrived, and
what the audio encoder looks ahead (`pipeline.audio.look_ahead`).
"""

from __future__ import annotations

import torch

from pipeline.audio_driven import AudioClips, AudioDriven, AudioTrack, Voice
from pipeline.rollout import Chunk
from pipeline.session import Session
from pipeline.track import Live, Track
from utils.media.audio import LiveSound
from wan.audio.features import EXTRA, RATE, Samples
from wan.codec.base import StreamingDecoder
from wan.geometry import Span

STARVE = ("wait", "silence")


class SoundMissing(RuntimeError):
    """The sound of the next chunk has not arrived in time."""


class TalkingSession(Session):
    """One talking video of a pipeline that hears."""

    pipeline: AudioDriven

    def __init__(self, pipeline: AudioDriven, decode: bool = True, starve: str = "wait", patience: float | None = None):
        """starve: what a step does whose sound has not arrived: `wait`, or go on in `silence`. patience: in seconds.

        Errors: ValueError for a pipeline that does not hear as it goes, or another `starve`.
        """
        if not isinstance(pipeline, AudioDriven) or isinstance(pipeline, AudioClips):
            raise ValueError("a talking session needs pipeline.name=audio_driven, with clip_frames 0")
        if pipeline.config.audio.window != "chunk":
            raise ValueError("pipeline.audio.window is file, and live sound has no end; write chunk")
        if starve not in STARVE:
            raise ValueError(f"starve is {starve!r}; write wait or silence")
        super().__init__(pipeline, decode)
        self.starve, self.patience = starve, patience
        self._sound: Samples | None = None
        self._heard: AudioTrack | None = None
        self._voice: Voice | None = None
        self._rate = 0.0

    @torch.no_grad()
    def start(self, prompt: str, seed: int = 0, negative: str = "", *, portrait=None, audio=None, fps=0.0, **options):
        """Begins a video. portrait: [3, H, W] in [-1, 1], of the pipeline's size. audio: a sound at 16 kHz that is
        there already (utils/media/audio.py); None: `hear` brings it. fps: 0 = the model's own. Others as in `Session`.

        Errors: ValueError without a portrait, or for one of another size.
        """
        geometry = self.pipeline.geometry
        wanted = (3, geometry.height, geometry.width)
        if not isinstance(portrait, torch.Tensor) or tuple(portrait.shape) != wanted:
            found = list(portrait.shape) if isinstance(portrait, torch.Tensor) else type(portrait).__name__
            raise ValueError(f"the portrait is {found}; give a tensor {list(wanted)} in [-1, 1]")
        if options.get("given") is not None:
            raise ValueError("a talking video starts from its portrait; leave given latents out")
        with self._busy:
            self._sound = LiveSound() if audio is None else audio
            self._rate = fps or self.pipeline.bundle.spec.fps
            self._voice = self.pipeline.voice(_Nothing(), portrait[None], [[self._sound]], self._rate)
            self._heard = None
            return super().start(prompt, seed, negative, **options)

    def hear(self, samples, rate: int) -> None:
        """Takes samples [N] or [N, channels] at their rate, from any thread; they follow those before.

        Errors: ValueError for samples that are no sound, or a video whose sound is a file.
        """
        if not isinstance(self._sound, LiveSound):
            raise ValueError("no video waits for sound; start one without audio to bring it by hear()")
        self._sound.append(samples, rate)

    def end_sound(self) -> None:
        """Says that no more sound comes: steps go on in silence."""
        if isinstance(self._sound, LiveSound):
            self._sound.close()

    @torch.no_grad()
    def step_ahead(self):
        """As in `Session`; first sees that the sound of the chunk is there. Errors: SoundMissing after `patience`."""
        self._running()
        if isinstance(self._sound, LiveSound) and not self._undecoded():
            self._await(self._sound, self._needed(self._next_span()))
        return super().step_ahead()

    def _another(self) -> TalkingSession:
        other = TalkingSession(self.pipeline, self.decode, self.starve, self.patience)
        other._sound, other._rate, other._voice = self._sound, self._rate, self._voice
        return other

    def _needed(self, span: Span) -> int:
        """Returns the samples that must have arrived for a chunk."""
        frames = self.pipeline.geometry.pixel_frames(span.stop) + self.pipeline.config.audio.lead
        return round(frames * RATE / self._rate) + round(self.pipeline.config.audio.look_ahead * RATE) + EXTRA

    def _await(self, sound: LiveSound, samples: int) -> None:
        if self.starve == "silence":
            sound.append_silence(samples)
        elif not sound.wait_for(samples, self.patience):
            there = sound.length / RATE
            raise SoundMissing(f"{there:.2f} s of sound have arrived and the next chunk needs {samples / RATE:.2f} s")

    def _conditions(self, track: Live) -> AudioTrack:
        """Returns the prompts of the session with its portrait and sound."""
        if self._heard is None or self._heard.inner is not track:
            assert self._voice is not None, "a video that runs has a voice"
            self._heard = self._voice.track.over(track)
            self._heard.first = self._state.first
        return self._heard

    def _made(self, chunk: Chunk) -> None:
        self._conditions(self._running()).note(chunk)

    def _pixels(self) -> StreamingDecoder:
        return self._voice.decoder if self._voice else super()._pixels()


class _Nothing(Track):
    """In place of the prompts while a voice is made."""
