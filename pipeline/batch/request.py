"""Requests: one per video, as the command line and its lists ask for them; the noise of a batch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline.batch.listing import Requests
from pipeline.portrait import fit_size, parse_area
from pipeline.pose import check_pose
from utils.data.prompts import (
    PromptLine,
    check_prompt,
    file_stem,
    read_captioned,
    read_image_prompts,
    read_prompts,
    repeated,
    with_start,
)
from utils.data.schedules import ScheduleLine, parse_switch_frames, read_schedules
from utils.data.talk_list import is_talk_list, parse_files, read_talk_list
from utils.digits.speaking import parse_talk
from utils.digits.world import parse_prompt
from utils.media.audio import FileSound, MixedSound, SoundFrom, open_sound
from utils.media.image import image_size
from utils.media.sound_track import RATE
from utils.rng import Rng
from wan.geometry import Span

logger = logging.getLogger(__name__)
GRAMMARS = {"digits": parse_prompt, "digits-s2v": parse_talk}  # models that know certain prompts only


@dataclass(frozen=True)
class Avatar:
    """What a talking video is made of: a portrait, a sound for each speaker, and which part of the picture each is.

    pose: a video of skeletons that it follows. num_clip: clips at most, 0 = as the configuration says.
    """

    image: Path
    sounds: tuple[Path, ...]
    masks: tuple[Path, ...] = ()
    pose: Path | None = None
    num_clip: int = 0

    def open(self) -> list[FileSound | SoundFrom]:
        """Returns the sounds as they are heard. Errors: ValueError naming a file that cannot be used."""
        return [open_sound(path) for path in self.sounds]

    def check(self) -> None:
        """Raises ValueError naming a portrait, sound, mask or pose video that cannot be used, or too few masks."""
        self.open()
        for picture in (self.image, *self.masks):
            image_size(picture)
        if self.masks and len(self.masks) != len(self.sounds):
            given = ", ".join(map(str, self.masks))
            raise ValueError(
                f"{len(self.masks)} masks ({given}) for {len(self.sounds)} sounds; give one picture for each, or none "
                "(strips, left to right)"
            )
        if self.pose:
            check_pose(self.pose)

    def play(self) -> MixedSound:
        """Returns all of them together, as the video plays them."""
        return MixedSound(tuple(open_sound(path, RATE, channels=2) for path in self.sounds))


@dataclass(frozen=True)
class Request:
    """A requested video: prompt, place in the list (`index`), number among the prompt's samples (`sample`)."""

    prompt: str
    index: int
    sample: int
    stem: str  # file name without extension
    image: Path | None = None  # an image as its first frame
    script: ScheduleLine | None = None  # its line of a prompt schedule
    video: Path | None = None  # a video whose end it continues
    start_seconds: float = 0.0  # how much of that video; 0 = what the window holds
    avatar: Avatar | None = None  # portrait and sound of a talking video

    @property
    def prompts(self) -> list[str]:
        """All its prompts, in order."""
        return [cue.text for cue in self.script.cues] if self.script else [self.prompt]

    @property
    def start(self) -> Path | None:
        """The image or video that it starts from, or the portrait."""
        return self.image or self.video or (self.avatar.image if self.avatar else None)

    @property
    def schedule(self) -> tuple:
        """What the videos of a batch have in common; how many frames a start video fills is known once it is read."""
        start: object = (self.video, self.start_seconds) if self.video else bool(self.image)
        start = self.avatar or start  # its sounds tell the length, its portrait the size
        return self.script and self.script.schedule, start


def read_requests(data, output, num_samples: int, suffix: str = "", refused: list[str] | None = None) -> Requests:
    """Returns the requests of a run, in order. refused: collects the errors of a prompt schedule's bad lines, if given.

    Errors: ValueError if there is no prompt, or a file cannot be read.
    """
    if is_talk_list(data.path):
        return _talks(data, output, num_samples, suffix)
    if data.i2v and not data.path:
        raise ValueError("image-to-video needs --data_path, a folder of images with captions")
    scripts: list[ScheduleLine] = []
    if data.prompt:
        if not (prompt := check_prompt(data.prompt, "--prompt")):
            raise ValueError(f"--prompt is {data.prompt!r}, which is empty; write a prompt")
        lines = [PromptLine(prompt, 1)]
    elif data.i2v:
        lines = read_image_prompts(data.path)
    elif data.scheduled:
        scripts = read_schedules(data.path, parse_switch_frames(data.switch_frames), refused)
        lines = _started([PromptLine(s.text, s.line) for s in scripts], data)
        lines = [
            replace(x, image=s.image, video=s.video) if s.started else x for x, s in zip(lines, scripts, strict=True)
        ]
        return _requests(lines, data, output, num_samples, suffix, scripts)
    elif data.path:
        lines = read_prompts(data.path, data.extended_path or None)
    elif start := data.start_image or data.start_video:
        lines = read_captioned(start, "image" if data.start_image else "video")
    else:
        wanted = "--data_path FOLDER (images and captions)" if data.i2v else "--prompt TEXT or --data_path FILE"
        raise ValueError(f"nothing to do: write {wanted}")
    return _requests(_started(lines, data), data, output, num_samples, suffix)


def _talks(data, output, num_samples: int, suffix: str) -> Requests:
    """Returns the requests of a list of talking videos; what a line's samples share is all but their noise."""
    talks = read_talk_list(data.path)
    lines = [PromptLine(talk.name or talk.prompt, talk.line, extended=talk.prompt) for talk in talks]
    pose = Path(data.pose_video) if data.pose_video else None
    avatars = [Avatar(talk.image, talk.audio, talk.masks, talk.pose_video or pose, talk.num_clip) for talk in talks]
    return _requests(lines, data, output, num_samples, suffix, avatars=avatars)


def _started(lines: list[PromptLine], data) -> list[PromptLine]:
    """Returns the lines with the start files of the configuration."""
    for kind, path in (("image", data.start_image), ("video", data.start_video)):
        if path:
            lines = with_start(lines, path, kind)
    return lines


def _requests(lines, data, output, num_samples: int, suffix: str, scripts=(), avatars=()) -> Requests:
    """Returns the requests of the lines. scripts, avatars: one of each line, or none."""
    twice = set() if output.save_with_index else repeated(lines)
    sounds = parse_files(data.audio)
    pose = Path(data.pose_video) if data.pose_video else None
    alike = Avatar(Path(data.image), sounds, parse_files(data.masks), pose) if data.image and sounds else None

    def build(row: int, sample: int) -> Request:
        line, script = lines[row], scripts[row] if scripts else None
        return Request(
            script.cues[0].text if script else line.prompt,
            line.index,
            sample,
            file_stem(line.index, sample, line.text, suffix, output.save_with_index, line.index in twice),
            line.image,
            script,
            line.video,
            script.start_seconds if script and script.started else data.start_seconds,
            avatars[row] if avatars else alike,
        )

    file_stem(0, 0, "", suffix)  # a wrong suffix is told now
    return Requests(lines, num_samples, build, not (scripts or avatars or any(line.video for line in lines)))


def check_avatars(requests: Requests, size: str = "") -> None:
    """Raises ValueError for talking videos without a portrait or a sound, with one that cannot be used, or of no size.

    size: the area, where one is given.
    """
    for avatar in {request.avatar for request in ([requests[0]] if requests.uniform else requests.each_line())}:
        if avatar is None:
            raise ValueError("a talking video needs a portrait and a sound: write --image FILE --audio FILE")
        avatar.check()
        if size:
            height, width = image_size(avatar.image)
            fit_size(height, width, parse_area(size))


def check_grammar(requests: Sequence[Request], spec_name: str) -> None:
    """Raises ValueError for a prompt that the model does not know."""
    for request in requests:
        for number, prompt in enumerate(request.prompts):
            try:
                check_words(prompt, spec_name)
            except ValueError as error:
                where = f"{request.script.where}: prompts[{number}]: " if request.script else ""
                raise ValueError(f"{where}{error}") from error


def check_words(prompt: str, spec_name: str) -> None:
    """Raises ValueError if the model does not know the prompt."""
    if grammar := GRAMMARS.get(spec_name):
        grammar(prompt)


def prompt_places(requests: Iterable[Request], data, negative_prompt: str) -> Iterator[tuple[str, str]]:
    """Yields (where it is written, prompt) of all prompts of the requests, once for all samples; negative ones too."""
    if negative_prompt:
        yield "negative_prompt", negative_prompt
    file = data.extended_path or data.path
    captioned = Path(data.path).is_dir() or not (data.path or data.prompt)
    for request in requests:
        if request.sample:
            continue
        script = request.script
        if script is None:
            start = request.start if captioned else None
            where = f"{start.with_suffix('.txt')}" if start else f"{file}, line {request.index + 1}"
            yield "--prompt" if data.prompt else where, request.prompt
            continue
        yield from ((f"{script.where}: prompts[{n}]", prompt) for n, prompt in enumerate(request.prompts))
        if script.negative_prompt:
            yield f"{script.where}: negative_prompt", script.negative_prompt


def warn_unused_negatives(requests: Sequence[Request], negative_prompt: str, guidance: float) -> None:
    """Warns of negative prompts that nothing leads away from: without guidance no unconditional branch is computed."""
    if guidance != 1:
        return
    scripted = () if negative_prompt or getattr(requests, "uniform", False) else requests
    lines = [r.script.where for r in scripted if r.script and r.script.negative_prompt and not r.sample]
    if negative_prompt or lines:
        where = "" if negative_prompt else f" of {lines[0]}" + (f" and {len(lines) - 1} more" if lines[1:] else "")
        logger.warning(
            "negative_prompt%s has no effect at guidance 1 (sampler.guidance; a few-step model has no other): no "
            "unconditional branch is computed",
            where,
        )


class KeyedNoise:
    """Noise of a batch, noise(span, k): a function of seed, prompt index, sample, frame and step k alone.

    A line of a prompt schedule may have its own seed.
    """

    def __init__(self, rng: Rng, requests: Sequence[Request], frame_shape, dtype: torch.dtype, start=None):
        """frame_shape: (C, h, w). start: given noise [B, F, C, h, w] of step 0, from frame 0 on."""
        roots = [Rng(r.script.seed, *rng.key) if r.script and r.script.seed is not None else rng for r in requests]
        self._sources = [root.at("noise", r.index, r.sample) for root, r in zip(roots, requests, strict=True)]
        self._shape, self._dtype, self._start = tuple(frame_shape), dtype, start

    def __call__(self, span: Span, k: int) -> torch.Tensor:
        """Returns [B, F, C, h, w] normal noise on the CPU."""
        if k == 0 and self._start is not None:
            if span.stop > self._start.shape[1]:
                raise ValueError(f"the given noise has {self._start.shape[1]} frames, the video reaches {span.stop}")
            return self._start[:, span.start : span.stop].to(self._dtype)
        shape = (len(span), *self._shape)
        return torch.stack([s.normal(shape, span.start, k) for s in self._sources]).to(self._dtype)
