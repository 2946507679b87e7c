"""Measures talking digits: whether the height follows the sound, and what text and picture asked for.

| metric | meaning | real clip |
|---|---|---|
| follow | correlation of the measured height with the law, pooled over videos, each video's mean removed | ~1 |
| slope | measured pixels per pixel of the law | ~1 |
| lag | shift in frames at which the correlation is best; positive: the picture is late | 0 |
| rms | distance from the law in pixels, each video's mean removed | < 1 |
| digit, colour | as in `metrics.py`; the colour is the picture's | ~1 |
| direction | sideways velocity over 4 frames within 50 % of the requested one | 1 |
| rest | frames within 4 px of the row of silence | - |

Each also for the thirds of the videos: the first chunk is the weak one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.digits.metrics import (
    LAG,
    MIN_INK,
    centred,
    circular_centroid,
    digit_classifier,
    measure_ink,
    nearest_colour,
)
from utils.digits.speaking import EXEMPLARS, REST, SIZE, SPEED
from utils.digits.world import COLOURS, DIRECTIONS, Subject

LAGS = 12  # frames that are tried to either side
NEAR_REST = 4.0  # pixels
THIRDS = 3


def read_talk(clip_PHW3: np.ndarray, subject: Subject) -> dict[str, np.ndarray]:
    """Returns {row, visible, digit, colour, direction: [P]} of one uint8 video; NaN where nothing is seen."""
    rgb = clip_PHW3.astype(np.float32) / 255.0
    ink = measure_ink(rgb)
    visible = ink.mean((1, 2)) > MIN_INK
    centre = circular_centroid(ink)
    names = np.array(list(COLOURS))
    digit = digit_classifier(EXEMPLARS)(centred(ink, centre)) == subject.digit
    colour = names[nearest_colour(rgb, ink)] == subject.colour
    moved = (centre[LAG:, 0] - centre[:-LAG, 0] + SIZE / 2) % SIZE - SIZE / 2
    wanted = DIRECTIONS[subject.direction][0] * SPEED * LAG
    direction = np.full(len(rgb), np.nan)
    direction[LAG:] = (np.abs(moved - wanted) <= abs(wanted) / 2) & visible[LAG:] & visible[:-LAG]
    return {
        "row": np.where(visible, centre[:, 1], np.nan),
        "digit": visible & digit,
        "colour": visible & colour,
        "direction": direction,
    }


def measure_talks(read: Sequence[dict[str, np.ndarray]], laws: Sequence[np.ndarray]) -> dict[str, object]:
    """Returns the metrics of a set of videos, and of each third of them; laws: [P] rows that the sounds ask for.

    Errors: ValueError for other numbers of videos and laws, or a video longer than its law.
    """
    if len(read) != len(laws) or not read:
        raise ValueError(f"{len(read)} videos and {len(laws)} laws; give one law for each video, at least one")
    frames = min(len(own["row"]) for own in read)
    if frames > min(map(len, laws)):
        raise ValueError(f"the videos have {frames} frames and a law has {min(map(len, laws))}; give longer sounds")
    rows = np.stack([own["row"][:frames] for own in read])
    wanted = np.stack([law[:frames] for law in laws])
    parts = {
        name: np.stack([own[name][:frames] for own in read]).astype(float) for name in ("digit", "colour", "direction")
    }
    borders = [round(k * frames / THIRDS) for k in range(THIRDS + 1)]
    whole = _measure(rows, wanted, parts)
    thirds = [
        _measure(rows[:, a:b], wanted[:, a:b], {name: values[:, a:b] for name, values in parts.items()})
        for a, b in zip(borders[:-1], borders[1:], strict=True)
    ]
    return {**whole, "videos": len(read), "frames": frames, "lags": lag_curve(rows, wanted), "thirds": thirds}


def _measure(rows: np.ndarray, wanted: np.ndarray, parts: dict[str, np.ndarray]) -> dict[str, float]:
    curve = lag_curve(rows, wanted)
    x, y = centre(wanted, rows), centre(rows, wanted)
    seen = ~np.isnan(y)
    slope = float((x[seen] * y[seen]).sum() / max((x[seen] ** 2).sum(), 1e-9))
    best = max(curve, key=lambda lag: -9 if np.isnan(curve[lag]) else curve[lag])
    found = {
        "follow": curve[0],
        "slope": slope,
        "lag": best,
        "rms": float(np.sqrt(((y - x)[seen] ** 2).mean())) if seen.any() else float("nan"),
        "rest": float((np.abs(rows - REST) <= NEAR_REST).mean()),
    }
    return found | {name: float(np.nanmean(values)) for name, values in parts.items() if values.size}


def lag_curve(rows: np.ndarray, wanted: np.ndarray) -> dict[int, float]:
    """Returns {shift in frames: pooled correlation}; positive: the picture shows it later than the law says."""
    curve, most = {}, min(LAGS, rows.shape[1] // 2)
    for lag in range(-most, most + 1):
        late = rows[:, max(lag, 0) : rows.shape[1] + min(lag, 0)]
        law = wanted[:, max(-lag, 0) : wanted.shape[1] - max(lag, 0)]
        x, y = centre(law, late), centre(late, law)
        seen = ~np.isnan(y)
        norm = np.sqrt((x[seen] ** 2).sum() * (y[seen] ** 2).sum())
        curve[lag] = float((x[seen] * y[seen]).sum() / norm) if norm > 0 else float("nan")
    return curve


def centre(values: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns each video's values less their mean, both where the two are known; NaN elsewhere."""
    known = np.where(np.isnan(values) | np.isnan(other), np.nan, values)
    mean = np.array([np.nanmean(row) if (~np.isnan(row)).any() else np.nan for row in known])
    return known - mean[:, None]
