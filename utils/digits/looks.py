"""Counts handwritings: how many of a digit's sprites a set of videos uses, which no metric of a single video sees.

A model that always draws the same seven shows what every prompt asks for, and looks poor only next to others. Each
video is given the sprite of its digit that most of its frames are nearest to; `looks` is the effective number of
sprites among videos of one digit, 1 / probability that two of them agree: 8 for real clips, 1 where all are alike.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from utils.digits.metrics import CROP, MIN_INK, centred, circular_centroid, interval, measure_ink
from utils.digits.world import DigitsConfig, Subject, handwriting


class LooksMeter:
    """Notes the sprite of each of one row's clips while they pass by to other metrics."""

    def __init__(self, subjects: Sequence[Subject], config: DigitsConfig | None = None):
        self.subjects, self.exemplars = list(subjects), (config or DigitsConfig()).exemplars
        self.sprites: list[int | None] = []

    def collect(self, clips: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields each uint8 clip [P, H, W, 3] and notes which sprite of its digit it shows."""
        for subject, clip in zip(self.subjects, clips, strict=True):
            self.sprites.append(nearest_sprite(clip, subject.digit, self.exemplars))
            yield clip

    def row(self) -> dict[str, float | None]:
        """Returns {mean, low, high} of `looks`, all None for fewer than two videos of every digit."""
        digits = [subject.digit for subject in self.subjects[: len(self.sprites)]]
        return count_looks(digits, self.sprites)


def nearest_sprite(clip: np.ndarray, digit: int, exemplars: int = 8) -> int | None:
    """Returns the sprite of `digit` that most visible frames of a uint8 clip are nearest to, or None without any.

    Nearest: by the correlation of the crop centred on the ink.
    """
    ink = measure_ink(clip.astype(np.float32) / 255.0)
    ink = ink[ink.mean((1, 2)) > MIN_INK]
    if not len(ink):
        return None
    crops = _normalised(centred(ink, circular_centroid(ink)))
    votes = Counter((crops @ _sprites(exemplars)[digit].T).argmax(1).tolist())
    return max(votes, key=lambda sprite: (votes[sprite], -sprite))


def count_looks(digits: Sequence[int], sprites: Sequence[int | None]) -> dict[str, float | None]:
    """Returns {mean, low, high}: 1 / probability that two videos of one digit agree, and its 95 % interval.

    The probability is unbiased (a pair is two different videos) and the mean of the digits', the units of the
    bootstrap. None where no two videos show one digit, or where no two agree: there are too few to tell.
    """
    groups: dict[int, list[int]] = {}
    for digit, sprite in zip(digits, sprites, strict=True):
        if sprite is not None:
            groups.setdefault(digit, []).append(sprite)
    shares = [_agreement(group) for group in groups.values() if len(group) > 1]
    found = interval(np.array(shares))
    mean, low, high = (found[name] and 1 / found[name] for name in ("mean", "high", "low"))
    return {"mean": mean or None, "low": low or None, "high": high or None}


def _agreement(sprites: list[int]) -> float:
    """Returns the share of pairs of different videos that show the same sprite."""
    count = len(sprites)
    return sum(n * (n - 1) for n in Counter(sprites).values()) / (count * (count - 1))


@functools.lru_cache(maxsize=2)
def _sprites(exemplars: int) -> list[np.ndarray]:
    """Returns ten arrays [n, CROP * CROP]: the sprites of each digit as a clip's crops show them."""
    margin = ((0, 0), (CROP // 2, CROP // 2), (CROP // 2, CROP // 2))
    drawn = [np.pad(sprites, margin) for sprites in handwriting(exemplars)]
    inks = [measure_ink(np.repeat(canvas[..., None], 3, -1)) for canvas in drawn]
    return [_normalised(centred(ink, circular_centroid(ink))) for ink in inks]


def _normalised(crops: np.ndarray) -> np.ndarray:
    """Returns [M, CROP * CROP] without mean, of unit length, so that products are correlations."""
    flat = crops.reshape(len(crops), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
