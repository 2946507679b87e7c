"""Talking clips: latents with text, portrait and sound; a step sees a window of each clip."""

from __future__ import annotations

from dataclasses import replace

import torch

from model.base import Sample
from trainer.sources.config import TalkingConfig, TalkingRolloutConfig
from trainer.sources.latents import Source, check_length, epoch_row
from trainer.sources.rollout import RolloutSource
from utils.data.talking import FEATURES_PER_FRAME, TalkingClip, TalkingFolder
from wan.condition import FEATURES_HEARD, Condition
from wan.generation import GenerationConfig
from wan.geometry import Span

BEFORE = -(-(FEATURES_HEARD - FEATURES_PER_FRAME) // FEATURES_PER_FRAME)  # latent frames that a first frame also hears
MOTION_FRAMES = 19


class Talking(Source):
    """Windows of clean talking clips; fills latents, condition, spans and, where some frames do not count, the mask."""

    def __init__(self, config: TalkingConfig, generation: GenerationConfig):
        self.config, self.generation = config, generation
        self.clips = TalkingFolder(config.path, config.on_bad)
        self.clips.check_heard(vars(config.audio), generation.chunk)
        self.spans = generation.spans(config.frames)
        check_length(config.path, self.clips.shortest, config.frames)

    def next(self, step: int, roles, rng, with_grad: bool = True, index: range | None = None) -> Sample:
        """Returns the batch of one step: clips drawn with replacement, some without their prompt, some silent."""
        config, index = self.config, self.index(step) if index is None else index
        draw = rng.at("sample", step, "talking").uniform_batch((5,), index)
        clips = [self.clips.clip(int(u * len(self.clips))) for u in draw[:, 0]]
        starts = [
            self.start(clip, place, early < config.starts)
            for clip, early, place in zip(clips, *draw.T[1:3], strict=True)
        ]
        prompts = ["" if u < config.dropout else clip.prompt for clip, u in zip(clips, draw[:, 3], strict=True)]
        cut = [clip.latents[s : s + config.frames] for clip, s in zip(clips, starts, strict=True)]
        latents = torch.stack(cut).float().to(roles.device)
        text = roles.condition(prompts, null=False)
        condition = portrait_and_sound(text, clips, starts, config.frames, self.generation, config.motion == "past")
        condition = corrupt_motion(condition, config.corruption, rng.at("sample", step, "motion"), index)
        audio = condition.audio * (draw[:, 4] >= config.silence).to(condition.audio)[:, None, None, None, None]
        mask = self.counted(starts) if config.motion == "still" and any(starts) else None
        return Sample(
            step,
            latents,
            replace(condition, audio=audio),
            index,
            self.spans,
            prompts,
            None if mask is None else mask.to(roles.device),
        )

    def start(self, clip: TalkingClip, place: float, at_start: bool) -> int:
        """Returns the latent frame at which a window begins, a multiple of the chunk."""
        choices = (len(clip.latents) - self.config.frames) // self.generation.chunk
        return 0 if at_start or not choices else self.generation.chunk * (1 + int(float(place) * choices))

    def counted(self, starts: list[int]) -> torch.Tensor:
        """Returns [B, F]: behind a still, the first chunk of a window from a clip's middle has no past to continue."""
        frames = torch.arange(self.config.frames)
        late = frames >= self.spans[0].stop
        return torch.stack([late if start else torch.ones_like(late) for start in starts])


class TalkingRollout(RolloutSource):
    """Rollouts of the generator on the texts, portraits and sounds of talking clips, from their start on."""

    clips: TalkingFolder

    def __init__(self, config: TalkingRolloutConfig, generation: GenerationConfig):
        self.config, self.generation = config, generation
        self.clips, self.prompts = TalkingFolder(config.clips, config.on_bad), []
        self.clips.check_heard(vars(config.audio), generation.chunk)
        check_length(config.clips, self.clips.shortest, config.frames_max or config.frames)

    def condition(self, roles, prompts: list[str], index, rng) -> Condition:
        """Returns text, portrait and sound of these samples' clips."""
        clips = [self.clips.clip(epoch_row(i, len(self.clips), rng)) for i in index]
        frames = self.config.frames_max or self.config.frames
        return portrait_and_sound(
            roles.condition(prompts), clips, [0] * len(clips), frames, self.generation, past=False
        )

    def seen(self, condition: Condition, step: int, index, rng) -> Condition:
        """Returns the condition with the motion that the generator sees."""
        return corrupt_motion(condition, self.config.corruption, rng.at("sample", step, "motion"), index)

    def window(self, made: torch.Tensor, condition: Condition, roles, head: int):
        """Returns what is scored: the last latents, with those before them as their motion; all of them count."""
        first = made.shape[1] - self.config.loss_frames
        scored = condition.cut(Span(first, made.shape[1]))
        motion = torch.cat((condition.motion, made[:, :first].detach()), 1)[:, -MOTION_FRAMES:]
        return made[:, first:], None, replace(scored, motion=motion)


def corrupt_motion(condition: Condition, most: float, source, index) -> Condition:
    """Returns the condition with motion latents mixed with noise, each sample's at a level drawn from 0 to `most`."""
    if not most:
        return condition
    motion = condition.motion
    level = most * source.uniform_batch((1, 1, 1, 1), index, "level").to(motion)
    noise = source.normal_batch(motion.shape[1:], index, "noise").to(motion)
    return replace(condition, motion=(1 - level) * motion + level * noise)


def portrait_and_sound(
    text: Condition, clips: list[TalkingClip], starts: list[int], frames: int, generation: GenerationConfig, past: bool
) -> Condition:
    """Returns the condition of windows of clips: text, reference, motion and the sound from two frames before them.

    past: motion are the latents before a window, else the still ones of the reference.
    """
    audio, motion = [], []
    for clip, start in zip(clips, starts, strict=True):
        first = (start - BEFORE) * FEATURES_PER_FRAME
        sound = clip.audio[:, max(first, 0) : (start + frames) * FEATURES_PER_FRAME]
        audio.append(torch.cat((sound[:, :1].expand(-1, max(-first, 0), -1, -1), sound), 1))
        still = clip.reference.expand(MOTION_FRAMES, -1, -1, -1)
        motion.append(torch.cat((still, clip.latents[:start]))[-MOTION_FRAMES:] if past else still)
    reference = torch.stack([clip.reference for clip in clips])
    parts = {"audio": torch.stack(audio), "motion": torch.stack(motion), "reference": reference}
    parts = {name: tensor.to(text.text.device, text.text.dtype) for name, tensor in parts.items()}
    return replace(text, **parts, audio_start=-BEFORE, audio_chunk=generation.audio_chunk)
