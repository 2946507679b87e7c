"""The digits metrics: the reference table, and that each metric sees the fault it is there for."""

import numpy as np
import pytest

from utils.digits import metrics
from utils.digits.reference import REFERENCES, reference
from utils.digits.world import COLOURS, DigitsConfig, Subject, prompt_clip, render
from utils.metrics.video import psnr

PROMPTS = [4 * i + i % 4 for i in range(60)]  # every digit with every colour; the direction varies


@pytest.fixture(scope="module")
def table():
    rows = {}
    for name in REFERENCES:
        clips, subjects = reference(name, 17, prompts=PROMPTS)
        rows[name] = {k: v["mean"] for k, v in metrics.summary(metrics.measure(clips, subjects)).items()}
    return rows


def test_real_clips_are_the_ceiling(table):
    real = table["real"]
    assert real["digit"] >= 0.98
    assert real["colour"] == real["direction"] == 1
    for name, value in {"speed": 2, "consistency": 1, "identity": 1, "area": 0.03}.items():
        assert real[name] == pytest.approx(value, abs=0.01)


def test_floors(table):
    shuffled, noise, black = table["shuffled"], table["noise"], table["black"]
    assert shuffled["digit"] < 0.3 and shuffled["colour"] < 0.4 and shuffled["direction"] < 0.5
    assert shuffled["consistency"] == pytest.approx(1, abs=0.01)
    assert noise["digit"] < 0.3 and noise["colour"] < 0.4 and noise["direction"] < 0.06
    assert abs(noise["consistency"]) < 0.02 and abs(noise["identity"]) < 0.02 and noise["area"] > 0.5
    assert all(value == 0 for value in black.values())


def test_frozen_and_blurred(table):
    frozen, blurred, real = table["frozen"], table["blurred"], table["real"]
    assert frozen["direction"] == 0 and frozen["speed"] == pytest.approx(0, abs=1e-5)
    assert frozen["digit"] >= 0.98 and frozen["consistency"] == pytest.approx(1, abs=1e-5)
    assert blurred["digit"] >= 0.9 and blurred["colour"] == blurred["direction"] == 1
    assert blurred["sharpness"] < 0.85 * real["sharpness"]


def one(clip, subject, **kw):
    return {k: v[0] for k, v in metrics.measure([clip], [subject], **kw).items()}


def test_wrong_speed_direction_and_diagonal_miss():
    subject = Subject("red", 5, "right")
    assert one(make(subject, 2), subject)["direction"] == 1
    assert one(make(subject, 4), subject)["direction"] == 0
    left = one(make(Subject("red", 5, "left"), 2), subject)
    assert left["direction"] == 0 and left["speed"] == pytest.approx(-2, abs=0.01)
    clip = make(subject, 2)
    diagonal = np.stack([np.roll(f, 2 * t, 0) for t, f in enumerate(clip)])
    assert one(diagonal, subject)["direction"] == 0 and one(diagonal, subject)["digit"] == 1


def make(subject, speed=2, num_frames=13):
    clip = render([subject], num_frames, np.random.default_rng(1), DigitsConfig(speed=speed))
    return np.round(clip * 255).astype(np.uint8)


def test_bounce_counts_the_way_back():
    subject, config = Subject("white", 4, "right"), DigitsConfig(motion="bounce")
    clip = np.round(render([subject], 60, np.random.default_rng(0), config) * 255).astype(np.uint8)
    assert one(clip, subject, config=config)["direction"] > 0.7
    assert one(clip, subject)["direction"] < 0.7


@pytest.mark.parametrize("colour", list(COLOURS))
def test_colour_is_read_faint_and_on_a_faint_ground(colour):
    clip = make(Subject(colour, 2, "up"))
    faint = (clip * 0.5 + 15).astype(np.uint8)
    for other in COLOURS:
        assert one(faint, Subject(other, 2, "up"))["colour"] == float(other == colour)


def test_consistency_sees_a_digit_that_changes():
    clip = make(Subject("red", 1, "up"))
    other = make(Subject("red", 0, "up"))
    mixed = np.concatenate([clip[:6], other[6:]])
    values = one(mixed, Subject("red", 1, "up"))
    assert values["consistency"] < 0.85 and values["identity"] < 0.8
    assert values["digit"] == pytest.approx(6 / 13, abs=0.08)


def test_centred_crops_follow_subpixel_motion_across_the_edge():
    clip = make(Subject("white", 6, "right"), num_frames=40).max(-1) / np.float32(255)
    centre = metrics.circular_centroid(clip)
    step = (np.diff(centre, axis=0) + 32) % 64 - 32
    np.testing.assert_allclose(step, np.tile([2, 0], (39, 1)), atol=1e-4)
    crops = metrics.centred(clip, centre)
    np.testing.assert_allclose(crops, np.broadcast_to(crops[:1], crops.shape), atol=1e-3)
    assert crops.sum(axis=(1, 2)) == pytest.approx(clip.sum(axis=(1, 2)), rel=1e-3)


def test_drift_is_seen_in_the_window_where_it_happens():
    clips, subjects = zip(*(prompt_clip(i, 40) for i in (3, 90, 170)), strict=True)
    faded = [np.concatenate([c[:20], np.zeros_like(c[20:])]) for c in clips]
    result = metrics.drift(metrics.measure_frames(faded, subjects), 4)
    assert metrics.window_borders(40, 4) == [0, 10, 20, 30, 40]
    assert result["colour"]["windows"] == pytest.approx([1, 1, 0, 0])
    assert result["colour"]["change"] == {"mean": -1.0, "low": -1.0, "high": -1.0}
    assert result["area"]["windows"][0] > 0.01 and result["area"]["windows"][3] == 0
    steady = metrics.drift(metrics.measure_frames(clips, subjects), 4)
    assert abs(steady["area"]["change"]["mean"]) < 1e-3


def test_short_clips_have_no_motion_to_measure():
    clip, subject = prompt_clip(7, 1)
    values = metrics.measure([clip], [subject])
    assert np.isnan(values["direction"][0]) and np.isnan(values["identity"][0]) and values["colour"][0] == 1
    assert metrics.summary(values)["direction"] == {"mean": None, "low": None, "high": None}


def test_interval_covers_the_mean_and_is_reproducible():
    values = np.random.default_rng(0).random(200) < 0.7
    got = metrics.interval(values)
    assert got == metrics.interval(values)
    assert got["low"] < got["mean"] == values.mean() < got["high"]
    assert got["high"] - got["low"] == pytest.approx(2 * 1.96 * np.sqrt(0.21 / 200), rel=0.2)


def test_inputs_are_checked():
    clip, subject = prompt_clip(0, 5)
    for clips, subjects, message in [
        ([clip / 255.0], [subject], "uint8"),
        ([clip[0]], [subject], "frames, height"),
        ([clip, clip[:3]], [subject] * 2, "measure one length"),
        ([clip, clip], [subject], "more clips"),
        ([clip], [subject] * 2, "for each clip"),
        ([], [], "at least one"),
        ([clip], [[subject, subject]], "follow one digit"),
    ]:
        with pytest.raises(ValueError, match=message):
            metrics.measure(clips, subjects)
    with pytest.raises(ValueError, match="windows do not fit"):
        metrics.drift(metrics.measure_frames([clip], [subject]), 6)
    with pytest.raises(ValueError, match="choose from"):
        reference("perfect", 5)


def test_psnr_of_the_foreground_sees_a_black_answer():
    clip, _ = prompt_clip(239, 5)
    black = np.zeros_like(clip)
    assert psnr(black, clip) > 12 and psnr(black, clip, clip.max(-1) > 0) < 8
    assert psnr(clip, clip) > 100
    assert psnr(np.full((1, 2, 2, 3), 10, np.uint8), np.zeros((1, 2, 2, 3), np.uint8)) == pytest.approx(28.13, abs=0.01)
    assert np.isnan(psnr(black, clip, black.max(-1) > 0))
    with pytest.raises(ValueError, match="one shape"):
        psnr(clip, clip[:2])
