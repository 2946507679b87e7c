"""Generated digits videos of a folder, with what their sidecar JSON says they should show."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.data.digits import Subject, all_prompts, parse_prompt
from utils.media_io import read_video


@dataclass
class Videos:
    """Clips uint8 [P, H, W, 3] of one length, their subjects, and facts for the record."""

    clips: list[np.ndarray]
    subjects: list[Subject]
    facts: dict


def load_videos(folder: Path, num_frames: int | None = None, partial: bool = False) -> Videos:
    """Reads every `*.mp4` of `folder` (sorted), cut to its first `num_frames` frames if given.

    Errors: ValueError for no videos, a missing or broken sidecar, a prompt that is not one clause of
    the grammar, unequal lengths, and, unless `partial`, for prompts that no video answers.
    """
    paths = sorted(p for p in Path(folder).glob("*.mp4") if not p.name.endswith(".partial.mp4"))
    if not paths:
        raise ValueError(f"{folder} holds no *.mp4; give the output folder of inference.py")
    sidecars = [_sidecar(path) for path in paths]
    subjects = [_subject(path, sidecar) for path, sidecar in zip(paths, sidecars, strict=True)]
    missing = sorted(set(all_prompts()) - {s.text() for s in subjects})
    if missing and not partial:
        raise ValueError(
            f"{folder} answers {240 - len(missing)} of the 240 prompts, {missing[0]!r} is missing; "
            "generate all of them, or measure what there is with --partial"
        )
    clips = [_read(path, num_frames) for path in paths]
    lengths = {len(clip): path.name for clip, path in zip(clips, paths, strict=True)}
    if len(lengths) > 1:
        raise ValueError(f"{folder} mixes lengths {lengths}; measure the shortest with --frames {min(lengths)}")
    seeds = sorted({str(sidecar["seed"]) for sidecar in sidecars})
    facts = {"folder": str(folder), "videos": len(paths), "prompts": 240 - len(missing), "seeds": seeds[:10]}
    return Videos(clips, subjects, facts)


def _sidecar(path: Path) -> dict:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise ValueError(f"{path} has no {beside.name} beside it; write one with at least prompt and seed")
    try:
        sidecar = json.loads(beside.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{beside} is no JSON ({error}); write an object with at least prompt and seed") from error
    lacking = [key for key in ("prompt", "seed") if not isinstance(sidecar, dict) or key not in sidecar]
    if lacking:
        raise ValueError(f"{beside} lacks {lacking}; write an object with at least prompt and seed")
    return sidecar


def _subject(path: Path, sidecar: dict) -> Subject:
    try:
        subjects = parse_prompt(sidecar["prompt"])
    except ValueError as error:
        raise ValueError(f"{path.with_suffix('.json')}: {error}") from error
    if len(subjects) > 1:
        raise ValueError(f"{path.name} shows {len(subjects)} digits; the metrics follow one, use one-digit prompts")
    return subjects[0]


def _read(path: Path, num_frames: int | None) -> np.ndarray:
    clip, _ = read_video(path)
    if num_frames and len(clip) < num_frames:
        raise ValueError(f"{path} has {len(clip)} frames, {num_frames} are asked; lower --frames")
    return clip[:num_frames]
