"""How many handwritings a set of videos uses: against sets whose handwritings are known."""

from __future__ import annotations

import numpy as np
import pytest

from utils.digits import world
from utils.digits.looks import LooksMeter, count_looks, nearest_sprite
from utils.digits.metrics import box_blur
from utils.digits.world import COLOURS, DIRECTIONS, DigitsConfig, Subject, handwriting, quantise


def clip(subject: Subject, sprite: int, exemplars: int = 8, start=(24, 40)) -> np.ndarray:
    """Returns a uint8 clip that shows one sprite of a digit."""
    drawn = handwriting(exemplars)[subject.digit][sprite]
    ink = world._move(drawn, start, DIRECTIONS[subject.direction], 6, DigitsConfig())
    return quantise(ink[..., None] * np.float32(COLOURS[subject.colour]))


def soften(clip: np.ndarray) -> np.ndarray:
    """Returns the clip at half the brightness, blurred over 3 x 3 pixels."""
    return np.stack([box_blur(clip[..., c] * np.float32(0.5), 3) for c in range(3)], -1).round().astype(np.uint8)


@pytest.mark.parametrize("exemplars", [3, 8])
@pytest.mark.parametrize("change", [lambda clip: clip, soften], ids=["drawn", "soft"])
def test_every_sprite_is_recognised(exemplars, change):
    subjects = [Subject("blue", digit, "left") for digit in range(10)]
    for sprite in range(exemplars):
        found = [nearest_sprite(change(clip(s, sprite, exemplars)), s.digit, exemplars) for s in subjects]
        assert found == [sprite] * 10


def test_most_frames_decide():
    subject = Subject("red", 4, "up")
    mixed = np.concatenate([clip(subject, 2)[:2], clip(subject, 5)])
    assert nearest_sprite(mixed, 4) == 5


def test_frames_without_ink_do_not_count():
    shown = clip(Subject("white", 7, "down"), 3)
    assert nearest_sprite(np.concatenate([np.zeros_like(shown), shown]), 7) == 3
    assert nearest_sprite(np.zeros_like(shown), 7) is None


COUNTED = {  # sprites of the videos of digit 0, of digit 1 -> looks
    "alike": ([5, 5, 5], [2, 2], 1.0),
    "in pairs": ([0, 0, 1, 1], [], 3.0),  # 2 of 6 pairs agree
    "two digits": ([0, 0, 1], [3, 3], 1.5),  # a third and all: two thirds
    "an unseen video": ([0, None, 0, 1], [], 3.0),
}


@pytest.mark.parametrize(("first", "second", "looks"), COUNTED.values(), ids=COUNTED)
def test_looks_written_out(first, second, looks):
    found = count_looks([0] * len(first) + [1] * len(second), first + second)
    assert found["mean"] == pytest.approx(looks) and found["low"] <= found["mean"] <= found["high"]


@pytest.mark.parametrize("sprites", [[], [4], [1, 2, 3], [None, None]])
def test_looks_of_too_few_videos_are_unknown(sprites):
    assert count_looks([0] * len(sprites), sprites) == {"mean": None, "low": None, "high": None}


def test_same_sprite_of_two_digits_is_no_agreement():
    assert count_looks([0, 1, 0, 1], [6, 6, 2, 6])["mean"] == pytest.approx(2.0), "no pair of zeros, every pair of ones"


@pytest.mark.parametrize("used", [2, 8])
def test_looks_do_not_depend_on_how_many_videos_there_are(used):
    """The estimate is unbiased: means over many draws of few videos and of many are the number of sprites."""
    rng = np.random.default_rng(0)
    for videos in (6, 24):
        pairs = [_share(rng.integers(used, size=videos)) for _ in range(500)]
        assert np.mean(pairs) == pytest.approx(1 / used, rel=0.15)


def _share(sprites) -> float:
    looks = count_looks([0] * len(sprites), [int(sprite) for sprite in sprites])["mean"]
    return 1 / looks if looks else 0.0


def test_meter_hands_the_clips_on():
    subjects = [Subject("green", 3, "right")] * 3
    clips = [clip(subjects[0], sprite) for sprite in (1, 1, 6)]
    meter = LooksMeter(subjects)
    passed = list(meter.collect(iter(clips)))
    assert all(one is other for one, other in zip(passed, clips, strict=True)) and meter.sprites == [1, 1, 6]
    assert meter.row()["mean"] == pytest.approx(3.0)
