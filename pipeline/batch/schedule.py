"""Turns a line of a prompt schedule into latent frames: the video's length, and where each prompt starts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.track import PromptSchedule
from utils.data.schedules import FRAME, PIXEL_FRAME, SECOND, Moment, ScheduleLine
from wan.condition import Condition
from wan.geometry import Geometry, Span

EPSILON = 1e-6  # pixel frames: 4.1 s x 10 fps is frame 41, not 40.99999


def pixel_frame(moment: Moment, geometry: Geometry, fps: float) -> float:
    """Returns the moment in pixel frames from the video's start."""
    if moment.unit == SECOND:
        return moment.value * fps
    return moment.value if moment.unit == PIXEL_FRAME else geometry.pixel_frames(int(moment.value))


def requested_frames(line: ScheduleLine, geometry: Geometry, fps: float) -> list[int]:
    """Returns the latent frame at which each prompt of the line is requested, rounded down; the first is 0.

    Errors: ValueError naming line and prompt if ends do not ascend or lie in the first latent frame.
    """
    frames, before = [0], 0.0
    for number, cue in enumerate(line.cues[:-1]):
        at = pixel_frame(cue.end, geometry, fps) + EPSILON
        frame = geometry.latent_frame_at(math.floor(at))
        if at <= before + EPSILON or frame < 1:
            raise ValueError(
                f"{line.where}: prompts[{number}] ends at {cue.end}, "
                + ("which is not after the end of the one before" if before else "in the video's first latent frame")
                + "; write ends that ascend"
            )
        frames.append(frame)
        before = at
    return frames


def video_length(line: ScheduleLine, geometry: Geometry, fps: float) -> tuple[int, bool] | None:
    """Returns (latent frames of the video, whether they may be rounded up to whole chunks), or None if not stated.

    Errors: ValueError if the last prompt does not end after the others.
    """
    stated = line.cues[-1].end or line.length
    if stated is None:
        return None
    ends = [pixel_frame(cue.end, geometry, fps) for cue in line.cues if cue.end is not None]
    if line.cues[-1].end and len(ends) > 1 and ends[-1] <= max(ends[:-1]):
        raise ValueError(
            f"{line.where}: the last prompt ends at {stated}, before or with another; write ends that ascend"
        )
    if stated.unit == FRAME:
        return int(stated.value), stated is not line.length
    return geometry.latent_frames_for(pixel_frame(stated, geometry, fps), 1), True


def check_switches(line: ScheduleLine, requested: Sequence[int], spans: Sequence[Span]) -> None:
    """Raises ValueError if a prompt of the line would start after the last chunk has begun, and so never."""
    dry = dry_schedule(requested, spans)
    if dry.cursor + 1 < len(requested):
        late, last = dry.cursor + 1, spans[-1]
        raise ValueError(
            f"{line.where}: prompts[{late}] would start at latent frame {requested[late]}, after the last chunk "
            f"({last.start}); end it earlier or lengthen the video (one switch per chunk)"
        )


def dry_schedule(requested: Sequence[int], spans: Sequence[Span]) -> PromptSchedule:
    """Returns the track of a finished video without its conditions: it knows when each prompt came into force."""
    track = PromptSchedule([(frame, None) for frame in requested])
    for span in spans:
        track.advance(span)
    return track


def build_schedule(lines: Sequence[ScheduleLine], requested: Sequence[int], make_condition) -> PromptSchedule:
    """Returns the track of videos that share a schedule; make_condition(prompts) -> Condition of the batch."""
    texts = zip(*[[cue.text for cue in line.cues] for line in lines], strict=True)
    conditions: list[Condition] = [make_condition(list(prompts)) for prompts in texts]
    return PromptSchedule(list(zip(requested, conditions, strict=True)))
