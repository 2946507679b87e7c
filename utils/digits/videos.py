"""Reads generated digits videos of a folder, with what their sidecar JSON says they should show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.data.prompts import read_prompts
from utils.data.schedules import read_schedules
from utils.digits.world import Subject, all_prompts, parse_prompt
from utils.json_reader import get, read_json
from utils.media.video import read_video


@dataclass
class Videos:
    """Holds clips uint8 [P, H, W, 3] of one length, their subjects, and facts for the record."""

    clips: list[np.ndarray]
    subjects: list[Subject]
    facts: dict


def read_requested(path: Path | None) -> list[str]:
    """Returns the prompts that must be measured: those of a file, one a line, or all 240.

    Errors: ValueError naming file and line of a prompt that is not one clause of the grammar.
    """
    if path is None:
        return all_prompts()
    requested = []
    for row in read_prompts(path):
        try:
            subjects = parse_prompt(row.text)
        except ValueError as error:
            raise ValueError(f"{path}, line {row.line}: {error}") from error
        if len(subjects) > 1:
            raise ValueError(f"{path}, line {row.line} asks for {len(subjects)} digits; the metrics follow one")
        requested.append(subjects[0].text())
    return requested


def prompt_numbers(prompts: list[str]) -> list[int]:
    """Returns the place of each different prompt among the 240, ascending."""
    numbers = {prompt: number for number, prompt in enumerate(all_prompts())}
    return sorted({numbers[prompt] for prompt in prompts})


def load_videos(
    folder: Path, num_frames: int | None = None, partial: bool = False, prompts: list[str] | None = None
) -> Videos:
    """Reads the videos of `folder` that `find_videos` names, cut to the first `num_frames` frames if given.

    Errors: ValueError for videos of unequal lengths, and those of `find_videos`.
    """
    kept, facts = find_videos(folder, partial, prompts)
    clips = [_read(path, num_frames) for path, _ in kept]
    lengths = {len(clip): path.name for clip, (path, _) in zip(clips, kept, strict=True)}
    if len(lengths) > 1:
        raise ValueError(f"{folder} mixes lengths {lengths}; measure the shortest with --frames {min(lengths)}")
    return Videos(clips, [subject for _, subject in kept], facts)


def load_windows(
    folder: Path, ends: Sequence[int], window: int, partial: bool = False, prompts: list[str] | None = None
) -> dict[int, Videos]:
    """Returns {end: the `window` frames of each video before pixel frame `end`}; a video is read and let go.

    Errors: ValueError for ends that no window fits before, videos that are shorter, and those of `find_videos`.
    """
    if not ends or min(ends) < window:
        raise ValueError(f"windows of {window} frames end at {list(ends)}; write ends of at least {window}")
    kept, facts = find_videos(folder, partial, prompts)
    clips: dict[int, list[np.ndarray]] = {end: [] for end in ends}
    for path, _ in kept:
        video = _read(path, max(ends))
        for end in ends:
            clips[end].append(video[end - window : end].copy())
    subjects = [subject for _, subject in kept]
    return {end: Videos(own, subjects, facts) for end, own in clips.items()}


def find_videos(folder: Path, partial: bool = False, prompts: list[str] | None = None):
    """Returns ([(path, subject)] of the `*.mp4` of `folder`, sorted, that answer `prompts`; facts for the record).

    prompts: what must be there, by default all 240; a prompt that stands there twice needs two videos. Every video of
    these prompts is measured, so that no good ones can be picked; videos of other prompts are left out and counted.
    Errors: ValueError for no videos, a missing or broken sidecar, a prompt that is not one clause of
    the grammar, and, unless `partial`, for prompts that no video answers.
    """
    prompts = prompts or all_prompts()
    found = [(path, record, _subject(path.with_suffix(".json"), record["prompt"])) for path, record in _videos(folder)]
    requested = Counter(prompts)
    kept = [entry for entry in found if entry[2].text() in requested]
    missing = requested - Counter(subject.text() for _, _, subject in kept)
    answered = len(prompts) - missing.total()
    if not kept or (missing and not partial):
        raise ValueError(
            f"{folder} answers {answered} of the {len(prompts)} prompts, {min(missing)!r} is missing; "
            "generate all of them, or measure what there is with --partial"
        )
    facts = {"folder": str(folder), "videos": len(kept), "prompts": answered, "seeds": _seeds(kept)}
    if len(kept) < len(found):
        facts["left_out"] = len(found) - len(kept)
    return [(path, subject) for path, _, subject in kept], facts


def find_scheduled(folder: Path, schedules: Path, partial: bool = False):
    """Returns ([(path, cues)] of the videos of `folder` that answer a file of prompt schedules; facts for the record).

    cues: (subject, latent frame from which on it was in force, from the video's JSON) of each prompt. Every line
    must be answered, unless `partial`. Errors: ValueError as `find_videos`, for schedules of more than one digit, and
    for videos that were not made by schedules.
    """
    videos = [(path, sidecar, _cues(path, sidecar)) for path, sidecar in _videos(folder)]
    lines = [tuple(_subject(line.where, cue.text) for cue in line.cues) for line in read_schedules(schedules)]
    requested = Counter(lines)
    kept = [video for video in videos if _requested(video) in requested]
    missing = requested - Counter(_requested(video) for video in kept)
    if not kept or (missing and not partial):
        texts = [subject.text() for subject in next(iter(missing), ())]
        raise ValueError(
            f"{folder} answers {len(lines) - missing.total()} of the {len(lines)} schedules of {schedules}, {texts} is "
            "missing; generate all of them, or measure what there is with --partial"
        )
    facts = {"folder": str(folder), "videos": len(kept), "scripts": len(lines), "seeds": _seeds(kept)}
    return [(path, cues) for path, _, cues in kept], facts


def _requested(video) -> tuple[Subject, ...]:
    return tuple(subject for subject, _ in video[2])


def _cues(path: Path, sidecar: dict) -> list[tuple[Subject, int]]:
    where = path.with_suffix(".json")
    if not sidecar.get("switches"):
        raise ValueError(f"{where} names no switches; give videos that inference.py made of prompt schedules")
    return [(_subject(where, switch["text"]), switch["frame"]) for switch in sidecar["switches"]]


def _videos(folder: Path) -> list[tuple[Path, dict]]:
    """Returns the finished videos of a folder, sorted, with their sidecars."""
    paths = sorted(p for p in Path(folder).glob("*.mp4") if not p.name.endswith(".partial.mp4"))
    if not paths:
        raise ValueError(f"{folder} holds no *.mp4; give the output folder of inference.py")
    return [(path, _sidecar(path)) for path in paths]


def _seeds(kept) -> list[str]:
    return sorted({str(sidecar["seed"]) for _, sidecar, _ in kept})[:10]


def _sidecar(path: Path) -> dict:
    sidecar_path = path.with_suffix(".json")
    if not sidecar_path.is_file():
        raise ValueError(f"{path} has no {sidecar_path.name} next to it; write one with at least prompt and seed")
    sidecar = read_json(sidecar_path)
    get(sidecar, "prompt", str, str(sidecar_path))
    get(sidecar, "seed", int, str(sidecar_path))
    return sidecar


def _subject(where: str | Path, prompt: str) -> Subject:
    try:
        subjects = parse_prompt(prompt)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if len(subjects) > 1:
        raise ValueError(f"{where} shows {len(subjects)} digits; the metrics follow one, use one-digit prompts")
    return subjects[0]


def _read(path: Path, num_frames: int | None) -> np.ndarray:
    clip, _ = read_video(path)
    if num_frames and len(clip) < num_frames:
        raise ValueError(f"{path} has {len(clip)} frames, {num_frames} are requested; lower --frames")
    return clip[:num_frames]
