"""What `evaluate.py avatar` measures against what: videos, portraits, sounds, recorded truths and face boxes.

All of it is looked at before a weight is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.measure.compare import SUFFIXES, video_names
from utils.config.field import raise_all
from utils.data.media_kinds import media_kind
from utils.data.prompts import safe_name
from utils.data.sample_list import Sample, read_sample_list
from utils.json_reader import get, read_json
from utils.media.audio import FileSound, MixedSound, SoundFrom, sound_of_video
from utils.media.image import open_image
from utils.media.video import has_sound, open_timed
from utils.metrics.mfcc import RATE
from utils.metrics.syncnet import Box, check_box

LEAST_SECONDS = 1.0  # of a video, and of its sound


@dataclass(frozen=True)
class Subject:
    """One video and what it is held against; `sounds` are heard where it has no sound track of its own."""

    name: str
    video: Path
    reference: Path | None = None
    sounds: tuple[Path, ...] = ()
    truth: Path | None = None
    face: Box | None = None

    def heard(self) -> str:
        """Returns which sound that is, in words."""
        return "its own track" if has_sound(self.video) else ", ".join(map(str, self.sounds))

    def open_sound(self) -> SoundFrom | MixedSound:
        """Returns what is heard with its pictures, one channel at 16 kHz. Errors: ValueError for none."""
        if has_sound(self.video):
            return sound_of_video(self.video, RATE)
        if not self.sounds:
            raise ValueError(f"{self.video} has no sound track; name its sound in --sample_list (audio)")
        return MixedSound(tuple(FileSound(path, RATE) for path in self.sounds))


def find_subjects(args) -> list[Subject]:
    """Returns what the flags ask for. Errors: ValueError for no videos, or samples without one (unless --partial)."""
    videos = [path for given in args.videos for path in _videos(given)]
    if args.sample_list is None:
        found = [_of_sidecar(path) for path in videos]
    else:
        found = _of_list(read_sample_list(args.sample_list), videos, args.partial)
    shared = replace(Sample(""), image=args.image, truth=args.truth, face=args.face and tuple(args.face))
    return [_told(subject, shared) for subject in _distinct(found)]


def _videos(path: Path) -> list[Path]:
    if path.is_dir():
        if found := sorted(path / name for name in video_names(path)):
            return found
        raise ValueError(f"{path} holds no video ({', '.join(SUFFIXES)})")
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give videos or folders of videos")
    return [path]


def _of_list(samples: list[Sample], videos: list[Path], partial: bool) -> list[Subject]:
    """Returns the videos of each sample: `<name>.mp4`, or as generation names them, `<name>-<sample>.mp4`."""
    found, lost = [], []
    for sample in samples:
        ours = re.compile(rf"{re.escape(safe_name(sample.name))}(~\d+)?-\d+(_[\w-]+)?")
        mine = [path for path in videos if path.stem == sample.name or ours.fullmatch(path.stem)]
        lost += [] if mine else [sample.name]
        found += [Subject(path.stem, path, sample.image, sample.audio, sample.truth, sample.face) for path in mine]
    if lost and not (partial and found):
        raise ValueError(
            f"{len(lost)} of {len(samples)} samples have no video: {', '.join(lost[:5])}; make them (a video is called "
            "as its sample, with -0 behind it or not), or measure what there is with --partial"
        )
    return found


def _of_sidecar(path: Path) -> Subject:
    """Returns a video with the portrait and sounds that the JSON next to it names, where these are still there."""
    sidecar = path.with_suffix(".json")
    facts = read_json(sidecar) if sidecar.is_file() else {}
    start = Path(get(facts, "start", str, str(sidecar), ""))
    sounds = tuple(Path(str(sound)) for sound in get(facts, "sounds", list, str(sidecar), []))
    portrait = start if start.is_file() and media_kind(start) == "image" else None
    return Subject(path.stem, path, portrait, sounds if all(sound.is_file() for sound in sounds) else ())


def _distinct(subjects: list[Subject]) -> list[Subject]:
    """Returns them with names of their own: the whole path where two videos share one."""
    counts = [sum(other.name == subject.name for other in subjects) for subject in subjects]
    return [replace(s, name=str(s.video)) if n > 1 else s for s, n in zip(subjects, counts, strict=True)]


def _told(subject: Subject, shared: Sample) -> Subject:
    """Returns it with what the flags say of all videos, which goes before what a list says."""
    truth = shared.truth
    if truth is not None and truth.is_dir():
        truth = truth / subject.video.name
        truth = truth if truth.is_file() else None
    return replace(
        subject,
        reference=shared.image or subject.reference,
        truth=truth or subject.truth,
        face=shared.face or subject.face,
    )


def check_subjects(subjects: Sequence[Subject], sync: bool) -> None:
    """Looks at every file before a weight is read. Errors: ValueError with a line for each video that is no use."""
    bad = []
    for subject in subjects:
        try:
            _check(subject, sync)
        except (ValueError, OSError) as error:
            bad.append(f"{subject.name}: {error}")
    raise_all("videos to be measured", bad)


def _check(subject: Subject, sync: bool) -> None:
    with open_timed(subject.video) as (frames, clock):
        time, frame = next(frames)
        while time + clock.step < LEAST_SECONDS - 1e-6 and (later := next(frames, None)):
            time, frame = later
    if time + clock.step < LEAST_SECONDS - 1e-6:
        raise ValueError(f"{subject.video} shows {time + clock.step:.3g} s; measured is {LEAST_SECONDS:g} s or more")
    if subject.face is not None:
        check_box(subject.face, *frame.shape[:2])
    if subject.reference is not None:
        open_image(subject.reference)
    if sync and subject.face is None:
        raise ValueError(
            "SyncNet needs the face: give --face LEFT TOP RIGHT BOTTOM in the video's pixels, or `face` in the list"
        )
    if sync and (heard := subject.open_sound().length / RATE) < LEAST_SECONDS:
        raise ValueError(f"{heard:.3g} s of sound are heard with its pictures; measured is {LEAST_SECONDS:g} s or more")
    if subject.truth is None:
        return
    with open_timed(subject.truth) as (frames, other):
        shape = next(frames)[1].shape
    if shape != frame.shape or other.rate != clock.rate:
        sizes = [f"{w} x {h} pixels at {float(c.rate):g}" for (h, w, _), c in ((shape, other), (frame.shape, clock))]
        raise ValueError(f"the truth {subject.truth} has {sizes[0]} a second, the video {sizes[1]}; make them alike")
