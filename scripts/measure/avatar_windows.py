"""Measures one talking video in windows along it: lip sync, identity, colours, and distance to a recorded truth."""

from __future__ import annotations

import contextlib
import statistics
from dataclasses import dataclass, field

import numpy as np

from scripts.measure.avatar_input import Subject
from scripts.measure.avatar_models import Models
from utils.media.image import read_image, to_uint8
from utils.media.video import at_rate, open_timed, open_video
from utils.metrics.mfcc import RATE
from utils.metrics.syncnet import FPS, crop_face, sync_score
from utils.metrics.video import brightness, decibels, flicker, mean_square, saturation, sharpness, ssim

SYNC = ("sync_c", "sync_d", "offset")
LOOKS = ("sharpness", "flicker", "brightness", "saturation")
TRUTH = ("psnr", "ssim")
METRICS = (*SYNC, "identity", *LOOKS, *TRUTH)
Row = dict[str, float | None]


@dataclass(frozen=True)
class Plan:
    """In seconds: a window, from one compared picture to the next, the most of a video (0: all)."""

    window: float = 5.0
    every: float = 0.5
    seconds: float = 0.0


def measure(subject: Subject, models: Models, plan: Plan) -> dict:
    """Returns {seconds, fps, sound, reference, truth_frames, first, mean, drift, windows, identity}.

    The video is decoded frame by frame. windows: a row {begin, end, frames, ...METRICS} each; a rest shorter than half
    a window is left out. first, mean, drift: of the first window, over all, of the last minus the first. identity:
    [seconds, cosine] of each picture that was compared. What was not measured is None. Errors: ValueError for a damaged
    video.
    """
    with contextlib.ExitStack() as stack:
        frames, clock = stack.enter_context(open_timed(subject.video))
        truth = stack.enter_context(open_video(subject.truth))[0] if subject.truth else iter(())
        meter = _Meter(subject, models, plan)
        for time, frame, moments in at_rate(frames, clock, FPS):
            if plan.seconds and time > plan.seconds - 1e-6:
                break
            meter.add(time, frame, moments, next(truth, None))
            end = time + clock.step
        rows = meter.finish(end)
    facts = {"seconds": round(end, 3), "fps": float(clock.rate), "truth_frames": meter.compared}
    facts["sound"] = subject.heard() if models.sync else None
    facts["reference"] = str(subject.reference or "its first frame") if models.likeness else None
    return facts | summarise(rows) | {"windows": rows, "identity": meter.points}


def summarise(rows: list[Row]) -> dict[str, Row]:
    """Returns {first, mean, drift} of windows; psnr's mean is that of the squared errors, the offset's the median."""
    first = {name: rows[0][name] for name in METRICS}
    mean = {name: _mean([row[name] for row in rows]) for name in METRICS}
    mean["psnr"] = None if (square := _mean([row["mse"] for row in rows])) is None else decibels(square)
    if known := [row["offset"] for row in rows if row["offset"] is not None]:
        mean["offset"] = statistics.median_low(known)
    drift = {name: _difference(rows[-1][name], rows[0][name]) if len(rows) > 1 else None for name in METRICS}
    return {"first": first, "mean": mean, "drift": drift}


def _mean(values: list) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _difference(last: float | None, first: float | None) -> float | None:
    return None if last is None or first is None else last - first


@dataclass
class _Window:
    """What is gathered of one window; faces: each with how often 25 fps show it, from the moment `first` on."""

    begin: float
    first: int
    frames: int = 0
    faces: list[tuple[np.ndarray, int]] = field(default_factory=list)
    likenesses: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in (*LOOKS, "mse", "ssim")})


class _Meter:
    """Takes the frames of a video in order, keeps one window of faces, and makes a row of each."""

    def __init__(self, subject: Subject, models: Models, plan: Plan):
        self.subject, self.models, self.plan = subject, models, plan
        self.sound = subject.open_sound() if models.sync else None
        self.rows: list[Row] = []
        self.points: list[list[float]] = []
        self.compared = 0  # frames, with the truth
        self._window = _Window(0.0, 0)
        self._before = self._portrait = None
        self._moments = 0  # of 25 a second, so far

    def add(self, time: float, frame: np.ndarray, moments: int, truth: np.ndarray | None) -> None:
        """Takes a frame, how many moments at 25 fps it fills, and the recorded one, if there is one."""
        if (number := int(time / self.plan.window + 1e-6)) > int(self._window.begin / self.plan.window + 1e-6):
            self._close(number * self.plan.window)
            self._window = _Window(number * self.plan.window, self._moments)
        window = self._window
        window.frames += 1
        for name, value in zip(LOOKS, self._looks(frame), strict=True):
            window.values[name] += [] if value is None else [value]
        if truth is not None:
            self.compared += 1
            window.values["mse"].append(mean_square(frame, truth))
            window.values["ssim"].append(ssim(frame, truth))
        if self.models.sync and moments:
            window.faces.append((crop_face(frame, self.subject.face), moments))
        if self.models.likeness and time >= len(self.points) * self.plan.every - 1e-6:
            self._compare(time, frame)
        self._moments, self._before = self._moments + moments, frame

    def finish(self, end: float) -> list[Row]:
        """Returns the rows; a rest shorter than half a window is none, unless it is all there is."""
        if end - self._window.begin > self.plan.window / 2 - 1e-6 or not self.rows:
            self._close(end)
        return self.rows

    def _looks(self, frame: np.ndarray) -> tuple[float | None, ...]:
        moved = None if self._before is None else flicker(frame, self._before)
        return sharpness(frame), moved, brightness(frame), saturation(frame)

    def _compare(self, time: float, frame: np.ndarray) -> None:
        """Compares a frame, or its face where a box is given, with the portrait, or the first frame."""
        if self._portrait is None:
            path, size = self.subject.reference, frame.shape[:2]
            portrait = frame if path is None else to_uint8(read_image(path, size, "crop"))
            self._portrait = self.models.likeness(self._face(portrait)[None])
        cosine = float((self.models.likeness(self._face(frame)[None]) * self._portrait).sum())
        self.points.append([round(time, 4), cosine])
        self._window.likenesses.append(cosine)

    def _face(self, frame: np.ndarray) -> np.ndarray:
        return frame if self.subject.face is None else crop_face(frame, self.subject.face)

    def _close(self, end: float) -> None:
        window = self._window
        row: Row = {"begin": window.begin, "end": round(end, 4), "frames": window.frames, **self._sync()}
        row["identity"] = _mean(window.likenesses)
        row |= {name: _mean(values) for name, values in window.values.items()}
        row["psnr"] = None if row["mse"] is None else decibels(row["mse"])
        self.rows.append(row)

    def _sync(self) -> Row:
        if self.models.sync is None or not self._window.faces:
            return dict.fromkeys(SYNC)
        faces = np.concatenate([np.repeat(face[None], moments, 0) for face, moments in self._window.faces])
        start, per_frame = self._window.first, RATE // FPS
        heard = max(start * per_frame, min((start + len(faces)) * per_frame, self.sound.length))
        score = sync_score(self.models.sync, faces, self.sound.read(start * per_frame, heard)[:, 0])
        found = (None, None, None) if score is None else (score.confidence, score.distance, score.offset)
        return dict(zip(SYNC, found, strict=True))
