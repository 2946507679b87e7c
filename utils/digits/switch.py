"""Measures how a digits video answers a change of its prompt: when it shows, what is lost, whether the video jumps.

| number | meaning |
|---|---|
| chunks | number of the chunk, from 1 = the first under the new prompt, that shows the new value and so does the next |
| reached | whether there is such a chunk before the next change |
| kept | share of the frames after the change that show the attributes that did not change (NaN: all did) |
| jump | largest way of the digit's centre from one frame to the next, pixels, in the JUMP chunks after the change |
| usual | the same in as many chunks before it; a real video has 2 in both |
| flicker | frame difference over the border, as a multiple of the usual one (a new colour at once raises it, too) |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.digits.metrics import LAG, MIN_INK, circular_centroid, interval, measure_frames, measure_ink, torus_steps
from utils.digits.world import Subject
from utils.metrics.video import flicker

ATTRIBUTES = ("colour", "direction", "digit")
NUMBERS = ("reached", "chunks", "kept", "jump", "usual", "flicker")
JUMP = 3  # chunks before and after a change
MAJORITY = 0.5  # share of a chunk's frames that must show a value


@dataclass(frozen=True)
class Switch:
    """Describes a change of one attribute: to what, at which pixel frame; `stop`: the next change or the end.

    kept: the attributes that the prompt did not change there.
    """

    attribute: str
    kept: tuple[str, ...]
    wanted: Subject
    at: int
    stop: int


def find_switches(cues: Sequence[tuple[Subject, int]], num_frames: int) -> list[Switch]:
    """Returns the changes of a video of `num_frames` pixel frames, each attribute's own where several change at once.

    cues: (what is requested, from which pixel frame on). Errors: ValueError for a prompt that changes nothing.
    """
    found = []
    for number, ((before, _), (after, at)) in enumerate(zip(cues, cues[1:], strict=False), 1):
        kept = tuple(name for name in ATTRIBUTES if vars(before)[name] == vars(after)[name])
        if kept == ATTRIBUTES:
            raise ValueError(f"prompts[{number}] asks for {after.text()!r} again; write one that changes something")
        stop = cues[number + 1][1] if number + 1 < len(cues) else num_frames
        found += [Switch(name, kept, after, at, stop) for name in ATTRIBUTES if name not in kept]
    return found


def respond(clip: np.ndarray, switch: Switch, chunk_frames: int) -> dict:
    """Returns {attribute, curve, and NUMBERS} of one change in a uint8 clip [P, H, W, 3].

    chunk_frames: pixel frames of a chunk. curve: share of frames that show the new value, chunk by chunk, from JUMP
    chunks before the change on. NaN: `chunks` where the value is never reached, `jump` where nothing is seen.
    Errors: ValueError for a change with fewer than JUMP chunks (and the metrics' look back) before or after it.
    """
    begin, after = switch.at - JUMP * chunk_frames, (switch.stop - switch.at) // chunk_frames
    if begin < LAG or after < JUMP or switch.stop > len(clip):
        raise ValueError(
            f"the {switch.attribute} changes at pixel frame {switch.at} of {len(clip)} and is followed until "
            f"{switch.stop}; a response needs {JUMP} chunks of {chunk_frames} before and after, and {LAG} frames more"
        )
    stop = switch.at + after * chunk_frames
    hits = {name: row[0, LAG:] for name, row in measure_frames([clip[begin - LAG : stop]], [switch.wanted]).items()}
    curve = hits[switch.attribute].reshape(-1, chunk_frames).mean(1)
    first = first_lasting(curve[JUMP:] >= MAJORITY)
    others = [hits[name][JUMP * chunk_frames :] for name in switch.kept]
    usual, jump = (largest_step(clip[a - 1 : a + JUMP * chunk_frames]) for a in (begin, switch.at))
    return {
        "attribute": switch.attribute,
        "curve": curve,
        "reached": float(first is not None),
        "chunks": np.nan if first is None else first + 1.0,
        "kept": float(np.mean(others)) if others else np.nan,
        "jump": jump,
        "usual": usual,
        "flicker": border_flicker(clip, switch.at, begin),
    }


def first_lasting(shown: np.ndarray) -> int | None:
    """Returns the first place where `shown` [K] is true and so is the next one, or None; one hit does not count."""
    both = np.flatnonzero(shown[:-1] & shown[1:])
    return int(both[0]) if both.size else None


def largest_step(clip: np.ndarray) -> float:
    """Returns the largest way of the ink's centre from frame to frame, in pixels; NaN if no two frames show any."""
    ink = measure_ink(clip.astype(np.float32) / 255.0)
    visible = ink.mean((1, 2)) > MIN_INK
    steps = np.linalg.norm(torus_steps(circular_centroid(ink), 1, clip.shape[1:3]), axis=1)
    seen = steps[visible[1:] & visible[:-1]]
    return float(seen.max()) if seen.size else np.nan


def border_flicker(clip: np.ndarray, at: int, begin: int) -> float:
    """Returns the difference of frames at - 1 and at over the median of those from `begin` on; NaN if that is 0."""
    usual = float(np.median([flicker(clip[k], clip[k - 1]) for k in range(begin, at)]))
    return flicker(clip[at], clip[at - 1]) / usual if usual > 0 else np.nan


def summary(videos: Sequence[Sequence[dict]]) -> dict[str, dict]:
    """Returns {attribute, or "all": {switches, curve, and for each of NUMBERS its 95 % interval over videos}}.

    videos: the responses of each video. Under "all" a video counts once, by its mean: its changes depend on each other.
    """
    rows = {name: [[r for r in video if r["attribute"] == name] for video in videos] for name in ATTRIBUTES}
    found = {name: [video for video in own if video] for name, own in {"all": videos, **rows}.items()}
    return {name: _row(own) for name, own in found.items() if own}


def _row(videos: list[list[dict]]) -> dict:
    curves = [response["curve"] for video in videos for response in video]
    known = min(map(len, curves))
    curve = np.mean([own[:known] for own in curves], 0)
    numbers = {name: interval([_known_mean([r[name] for r in video]) for video in videos]) for name in NUMBERS}
    return {"switches": len(curves), **numbers, "curve": [float(share) for share in curve]}


def _known_mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return sum(known) / len(known) if known else np.nan
