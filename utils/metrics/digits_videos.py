"""Generated digits videos of a folder, with what their sidecar JSON says they should show."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.data.digits import Subject, all_prompts, parse_prompt
from utils.data.prompts import read_prompts
from utils.media_io import read_video


@dataclass
class Videos:
    """Clips uint8 [P, H, W, 3] of one length, their subjects, and facts for the record."""

    clips: list[np.ndarray]
    subjects: list[Subject]
    facts: dict


def read_asked(path: Path | None) -> list[str]:
    """Returns the prompts that must be measured: those of a file, one a line, or all 240.

    Errors: ValueError naming file and line of a prompt that is not one clause of the grammar.
    """
    if path is None:
        return all_prompts()
    asked = []
    for row in read_prompts(path):
        try:
            subjects = parse_prompt(row.text)
        except ValueError as error:
            raise ValueError(f"{path}, line {row.line}: {error}") from error
        if len(subjects) > 1:
            raise ValueError(f"{path}, line {row.line} asks for {len(subjects)} digits; the metrics follow one")
        asked.append(subjects[0].text())
    return asked


def prompt_numbers(prompts: list[str]) -> list[int]:
    """Returns the place of each different prompt among the 240, ascending."""
    numbers = {prompt: number for number, prompt in enumerate(all_prompts())}
    return sorted({numbers[prompt] for prompt in prompts})


def load_videos(
    folder: Path, num_frames: int | None = None, partial: bool = False, prompts: list[str] | None = None
) -> Videos:
    """Reads the `*.mp4` of `folder` (sorted) that answer `prompts`, cut to the first `num_frames` frames if given.

    prompts: what must be there, by default all 240; a prompt that stands there twice needs two videos. Every video of
    these prompts is measured, so that no good ones can be picked; videos of other prompts are left out and counted.
    Errors: ValueError for no videos, a missing or broken sidecar, a prompt that is not one clause of
    the grammar, unequal lengths, and, unless `partial`, for prompts that no video answers.
    """
    prompts = prompts or all_prompts()
    paths = sorted(p for p in Path(folder).glob("*.mp4") if not p.name.endswith(".partial.mp4"))
    if not paths:
        raise ValueError(f"{folder} holds no *.mp4; give the output folder of inference.py")
    found = [(path, _sidecar(path)) for path in paths]
    found = [(path, sidecar, _subject(path, sidecar)) for path, sidecar in found]
    asked = Counter(prompts)
    kept = [entry for entry in found if entry[2].text() in asked]
    missing = asked - Counter(subject.text() for _, _, subject in kept)
    answered = len(prompts) - missing.total()
    if not kept or (missing and not partial):
        raise ValueError(
            f"{folder} answers {answered} of the {len(prompts)} prompts, {min(missing)!r} is missing; "
            "generate all of them, or measure what there is with --partial"
        )
    clips = [_read(path, num_frames) for path, _, _ in kept]
    lengths = {len(clip): path.name for clip, (path, _, _) in zip(clips, kept, strict=True)}
    if len(lengths) > 1:
        raise ValueError(f"{folder} mixes lengths {lengths}; measure the shortest with --frames {min(lengths)}")
    seeds = sorted({str(sidecar["seed"]) for _, sidecar, _ in kept})
    facts = {"folder": str(folder), "videos": len(kept), "prompts": answered, "seeds": seeds[:10]}
    if len(kept) < len(found):
        facts["left_out"] = len(found) - len(kept)
    return Videos(clips, [subject for _, _, subject in kept], facts)


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
