"""Knobs of the sources of samples, without torch: a configuration is read and checked before anything heavy loads.

`fills` of a source names the fields of `Sample` that it fills; `generates`: its latents are the generator's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from model.config import mask_problems
from utils.bounds import bounded
from utils.config.field import collect_error, file_path
from utils.data.records import check_on_bad
from utils.data.schedules import frame_list
from wan.audio.config import AudioConfig
from wan.config import BATCH, LARGEST_SIDE, LONGEST, Buildable
from wan.generation import GenerationConfig


class SourceConfig(Buildable):
    """What the configurations of sources share."""

    generates = False

    @property
    def bidirectional(self) -> bool:
        """Whether it generates whole clips, every frame of which attends to every other."""
        return False

    def problems_with(self, generation: GenerationConfig) -> Iterator[str]:
        """Yields what does not go together with how the model will generate."""
        return iter(())


@dataclass
class EncodedTextConfig:
    """Prompts that were encoded before (`scripts/encode_prompts.py`): no text encoder is loaded."""

    path: str = file_path()

    def problems(self) -> Iterator[str]:
        if not self.path:
            yield "text.path is empty; write the folder that scripts/encode_prompts.py filled"


@dataclass
class LatentsConfig(SourceConfig):
    """Encoded clips from a folder (`scripts/encode_latents.py`) or LMDB, cut to `frames` latent frames.

    The codec is causal, so the first frames of a longer clip are a clip.
    """

    consumer = "trainer.sources.latents:Latents"
    fills = frozenset({"latents", "condition", "spans"})

    path: str = file_path()
    batch: int = bounded(8, 1, BATCH)  # clips in the global batch
    frames: int = bounded(21, 1, LONGEST)
    dropout: float = bounded(0.1, 0, 1)  # share of samples that see the empty prompt
    growing: bool = False  # look for new shards every 100 steps (an encoder still fills the folder)
    on_bad: str = "stop"  # stop | skip a record that cannot be used

    def problems(self) -> Iterator[str]:
        yield from collect_error(check_on_bad, self.on_bad)
        if self.dropout == 1:
            yield "dropout is 1: no sample would see its prompt; write less"
        if not self.path:
            yield "path is empty; write the folder that scripts/encode_latents.py filled"

    def problems_with(self, generation: GenerationConfig) -> Iterator[str]:
        yield from collect_error(generation.check_length, self.frames)


@dataclass
class TalkingConfig(SourceConfig):
    """Encoded talking clips (`scripts/encode_latents.py talking`), a window of `frames` latent frames of each.

    starts: share of windows that begin where the clip does, behind its still; the others begin at a chunk within it.
    motion: `still` = before every window stands the portrait, as a stream runs (the first chunk of a window from
    the middle has no past and does not count then); `past` = the latents before it, as clips follow one another.
    dropout: share of samples that see the empty prompt; silence: share that hear nothing (published: .15).
    corruption: largest noise level of the motion latents, the history that is seen as latents; each sample draws its
    own from 0 on (history corruption; Live-Avatar publishes that it is done, not how).
    audio: how the model will hear; shards that were heard otherwise, or by other chunks, are refused.
    """

    consumer = "trainer.sources.talking:Talking"
    fills = frozenset({"latents", "condition", "spans"})

    path: str = file_path()
    batch: int = bounded(8, 1, BATCH)  # clips in the global batch
    frames: int = bounded(12, 1, LONGEST)
    starts: float = bounded(0.5, 0, 1)
    motion: str = "still"  # still | past
    dropout: float = bounded(0.1, 0, 1)
    silence: float = bounded(0.15, 0, 1)
    corruption: float = bounded(0.0, 0, 1)
    audio: AudioConfig = field(default_factory=AudioConfig)
    on_bad: str = "stop"  # stop | skip a record that cannot be used

    def problems(self) -> Iterator[str]:
        yield from collect_error(check_on_bad, self.on_bad)
        if 1 in (self.dropout, self.silence):
            yield "dropout or silence is 1: no sample would see its prompt, or hear; write less"
        if self.motion not in ("still", "past"):
            yield f"motion is {self.motion!r}; write still or past"
        if not self.path:
            yield "path is empty; write the folder that scripts/encode_latents.py talking filled"

    def problems_with(self, generation: GenerationConfig) -> Iterator[str]:
        yield from collect_error(generation.check_length, self.frames)


@dataclass
class RolloutConfig(SourceConfig):
    """Rollouts of the generator on prompts.

    prompts: a text file, one per line. clips: a folder or LMDB of encoded clips instead; their prompts are
    used and their latents are the real ones (GAN). frames: length in latent frames; {min: 21, max: 60}, or
    frames_max too: drawn per step in whole chunks. loss_frames: how many of the last are scored.
    given: so many first frames are those of the clips (image to video: 1); they do not count in the loss.
    """

    consumer = "trainer.sources.rollout:RolloutSource"
    generates = True

    prompts: str = file_path()
    clips: str = file_path()
    batch: int = bounded(8, 1, BATCH)
    frames: Any = bounded(21, 1, LONGEST)
    frames_max: int = bounded(0, 0, LONGEST)
    loss_frames: int = bounded(21, 1, LONGEST)
    given: int = bounded(0, 0, LONGEST)
    height: int = bounded(0, 0, LARGEST_SIDE)
    width: int = bounded(0, 0, LARGEST_SIDE)
    exit_per_chunk: bool = False  # an exit step for each chunk instead of one for all
    last_step_only: bool = False
    on_bad: str = "stop"  # stop | skip a clip that cannot be used

    @property
    def fills(self) -> frozenset[str]:
        """The fields of `Sample` that it fills; the real latents are those of the clips."""
        return frozenset({"latents", "condition", "null", "spans"} | ({"real"} if self.clips else set()))

    def __post_init__(self):
        ranged = isinstance(self.frames, dict) and self.frames.keys() == {"min", "max"} and not self.frames_max
        if ranged and all(type(frames) is int for frames in self.frames.values()):
            if self.frames["min"] <= self.frames["max"]:  # else it stays as it is, and is refused
                self.frames, self.frames_max = self.frames["min"], self.frames["max"]

    def problems(self) -> Iterator[str]:
        if any(type(frames) is not int for frames in (self.frames, self.frames_max)):
            message = f"frames is {self.frames!r} and frames_max {self.frames_max!r}"
            yield f"{message}; write frames: 21, or frames: {{min: 21, max: 60}} alone (latent frames)"
            return
        yield from collect_error(check_on_bad, self.on_bad)
        if bool(self.prompts) == bool(self.clips):
            yield "write either prompts (a text file) or clips (a folder of encoded clips)"
        if self.given and not self.clips:
            yield "given frames come from clips; write clips (a folder of encoded clips) instead of prompts"
        if self.frames_max and self.frames_max < self.frames:
            yield f"frames_max {self.frames_max} is smaller than frames {self.frames}; write {{min: 21, max: 60}}"
        longest = self.frames_max or self.frames
        if self.loss_frames > longest:
            yield f"loss_frames {self.loss_frames} is more than a rollout's {longest} frames; write at most that"

    def problems_with(self, generation: GenerationConfig) -> Iterator[str]:
        yield from generation.steps.problems_if_none("a rollout")
        if self.given and generation.first_chunk != self.given:
            yield f"the {self.given} given frames are the first chunk; write generation.first_chunk={self.given}"
        lengths = [self.frames, self.frames_max or self.frames, self.loss_frames]
        for length in dict.fromkeys(length for length in lengths if type(length) is int):
            yield from collect_error(generation.check_length, length)
        if generation.cache.content == "same_step" and self.exit_per_chunk and not self.last_step_only:
            yield (
                "generation.cache.content is same_step and exit_per_chunk true: a chunk that stops early leaves the "
                "caches of later steps without its frames; write exit_per_chunk=false, or last_step_only=true"
            )


@dataclass
class TalkingRolloutConfig(RolloutConfig):
    """Rollouts on talking clips: `clips` gives texts, portraits and sounds. Of a longer rollout the last `loss_frames`
    are scored, with the latents before them as their motion. corruption: as in `TalkingConfig`, of what the generator
    sees; teacher and critic see the motion as it is. audio: as there.
    """

    consumer = "trainer.sources.talking:TalkingRollout"

    corruption: float = bounded(0.0, 0, 1)
    audio: AudioConfig = field(default_factory=AudioConfig)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.prompts or self.given or not self.clips:
            yield "a talking rollout takes all from clips (encode_latents.py talking); leave prompts and given out"


@dataclass
class TrajectoryConfig(SourceConfig):
    """The generator's whole path of few steps on prompts, without gradient, and one step of it with (TDM).

    prompts: a text file, one per line. frames: length in latent frames. mode: `bidirectional` = whole clips, and a step
    for each sample, which the generator takes once more with gradient; `causal` = chunk by chunk through the cache, and
    one step for all samples of an update, taken with gradient in every chunk on the way. One path serves the updates
    of generator and critic in a step.
    """

    consumer = "trainer.sources.trajectory:TrajectorySource"
    fills = frozenset({"latents", "interval", "condition", "null", "spans"})
    generates = True

    prompts: str = file_path()
    batch: int = bounded(8, 1, BATCH)
    frames: int = bounded(21, 1, LONGEST)
    height: int = bounded(0, 0, LARGEST_SIDE)
    width: int = bounded(0, 0, LARGEST_SIDE)
    mode: str = "bidirectional"  # bidirectional | causal

    @property
    def bidirectional(self) -> bool:
        return self.mode == "bidirectional"

    def problems(self) -> Iterator[str]:
        if not self.prompts:
            yield "prompts is empty; write a text file with one prompt per line"
        if self.mode not in ("bidirectional", "causal"):
            yield f"mode is {self.mode!r}; write bidirectional or causal"

    def problems_with(self, generation: GenerationConfig) -> Iterator[str]:
        yield from generation.steps.problems_if_none("a trajectory")
        if generation.steps.first_steps:
            yield "a trajectory has the same steps in all chunks; write generation.steps.first_steps=[]"
        if self.mode == "causal":
            yield from collect_error(generation.check_length, self.frames)


@dataclass
class StreamConfig(SourceConfig):
    """Videos of up to `max_frames` (a list: one is drawn for each video), segment by segment; lengths in latent frames.

    prompts: a text file, one per line. switch_prompts: another one, line by line: what the video changes to, at a frame
    that is drawn for each video from switch_frames, or from switch_range (first, last) in steps of a chunk; the switch
    comes with the first chunk that starts there or later, and not at all in a video that ends before.
    loss_frames: length of the first stretch and of the loss window. min_new_frames: the shortest later stretch; each
    is drawn from there to a chunk below loss_frames. train_first_chunk: false = a video's first stretch is not scored.
    save_videos: whether a checkpoint holds the running videos with their caches (for Wan-1.3B 2.6 GB each); false:
    they begin anew at a resume.
    """

    consumer = "trainer.sources.stream:StreamSource"
    fills = frozenset({"latents", "condition", "null", "spans"})
    generates = True

    prompts: str = file_path()
    switch_prompts: str = file_path()
    switch_frames: Any = ()  # [21, 39], "21, 39" or 21
    switch_range: tuple[int, ...] = ()
    batch: int = bounded(8, 1, BATCH)
    max_frames: Any = bounded(240, 1, LONGEST)  # or a list
    loss_frames: int = bounded(21, 1, LONGEST)
    min_new_frames: int = bounded(18, 1, LONGEST)
    train_first_chunk: bool = True
    height: int = bounded(0, 0, LARGEST_SIDE)
    width: int = bounded(0, 0, LARGEST_SIDE)
    exit_per_chunk: bool = False  # an exit step for each chunk instead of one for all
    last_step_only: bool = False
    save_videos: bool = True

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of which each video has one."""
        return frame_list("max_frames", self.max_frames)

    @property
    def frames(self) -> int:
        """The longest video: the length of a preview."""
        return max(self.lengths)

    def switches(self, chunk: int) -> tuple[int, ...]:
        """Returns the frames of which each video's switch has one; none without switch_prompts."""
        if self.switch_range:
            return tuple(range(self.switch_range[0], self.switch_range[1] + 1, chunk))
        return frame_list("switch_frames", self.switch_frames)

    def problems(self) -> Iterator[str]:
        if not self.prompts:
            yield "prompts is empty; write a text file with one prompt per line"
        shortest = self.loss_frames + (0 if self.train_first_chunk else self.min_new_frames)
        if min(self.lengths, default=0) < shortest:
            yield f"max_frames is {self.max_frames}; write at least {shortest}, the first scored stretch's end"
        given = bool(self.switch_frames) + bool(self.switch_range)
        if given != bool(self.switch_prompts):
            yield (
                "a switch needs switch_prompts (a text file, line by line with prompts) and one of switch_frames and "
                "switch_range; write these two, or none of the three"
            )
        if self._range_is_bad:
            yield f"switch_range is {list(self.switch_range)}; write [first, last], e.g. [21, 201]"

    @property
    def _range_is_bad(self) -> bool:
        return bool(self.switch_range) and (len(self.switch_range) != 2 or self.switch_range[0] > self.switch_range[1])

    def problems_with(self, generation: GenerationConfig) -> Iterator[str]:
        yield from generation.steps.problems_if_none("a stream")
        if generation.first_chunk:
            yield "a stream has chunks of one length; write generation.first_chunk=0"
        if generation.first_chunk or any(self.problems()):
            return
        named = [("loss_frames", self.loss_frames), ("min_new_frames", self.min_new_frames)]
        for name, length in [*named, *(("max_frames", length) for length in self.lengths)]:
            yield from (f"{name}: {text}" for text in collect_error(generation.check_length, length))
        if self.min_new_frames >= self.loss_frames:
            yield (
                f"min_new_frames {self.min_new_frames} leaves no overlap in a loss window of {self.loss_frames}; write "
                f"at most {self.loss_frames - generation.chunk}"
            )
        first = min(() if self._range_is_bad else self.switches(generation.chunk), default=1)
        last = self.frames - generation.chunk
        if not 1 <= first <= last:
            yield (
                f"no video reaches a switch: the first is asked for at frame {first}; write frames from 1 to {last}, "
                f"where the last chunk of {self.frames} frames starts"
            )
        if generation.cache.content == "same_step" and not self.last_step_only:
            yield (
                "generation.cache.content is same_step and last_step_only false: a segment that stops early leaves the "
                "caches of later steps without its frames; write last_step_only=true"
            )


@dataclass
class NoisedDataConfig(SourceConfig):
    """Clean clips, each chunk noised to one drawn step, and the generator's x0 of them in one masked forward.

    clips: a folder or LMDB of encoded clips, cut to `frames` latent frames. teacher_forcing:
    chunks see the clean chunks before them, else the noised ones.
    """

    consumer = "trainer.sources.recorded:NoisedData"
    fills = frozenset({"latents", "condition", "null", "spans", "real"})
    generates = True

    clips: str = file_path()
    batch: int = bounded(8, 1, BATCH)  # clips in the global batch
    frames: int = bounded(21, 1, LONGEST)
    clean_step: bool = False  # also draw sigma 0: chunks that others see as the context pass shows them
    teacher_forcing: bool = False
    on_bad: str = "stop"  # stop | skip a clip that cannot be used

    def problems(self) -> Iterator[str]:
        yield from collect_error(check_on_bad, self.on_bad)
        if not self.clips:
            yield "clips is empty; write a folder or LMDB of encoded clips"

    def problems_with(self, generation: GenerationConfig) -> Iterator[str]:
        yield from generation.steps.problems_if_none("noised data")
        yield from collect_error(generation.check_length, self.frames)
        yield from mask_problems(generation.cache)


@dataclass
class OdePairsConfig(SourceConfig):
    """A teacher's recorded trajectories (`scripts/make_ode_pairs.py`, or an LMDB in Self-Forcing's layout)."""

    consumer = "trainer.sources.recorded:OdePairs"
    fills = frozenset({"trajectory", "condition", "spans"})

    path: str = file_path()
    batch: int = bounded(8, 1, BATCH)  # pairs in the global batch
    frames: int = bounded(21, 1, LONGEST)  # latent frames; longer pairs are cut
    on_bad: str = "stop"  # stop | skip a pair that cannot be used

    def problems(self) -> Iterator[str]:
        yield from collect_error(check_on_bad, self.on_bad)
        if not self.path:
            yield "path is empty; write the folder that scripts/make_ode_pairs.py filled"

    def problems_with(self, generation: GenerationConfig) -> Iterator[str]:
        yield from collect_error(generation.check_length, self.frames)
