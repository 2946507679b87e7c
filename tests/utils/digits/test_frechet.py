"""The Frechet distance: analytic values, its interval, and that the shipped feature net separates clips."""

import json

import numpy as np
import pytest

from tests import tolerance
from utils.digest import file_hash
from utils.digits import features, frechet
from utils.digits.reference import REFERENCES
from utils.digits.videos import prompt_numbers
from utils.digits.world import (
    COLOURS,
    DIRECTIONS,
    DigitsConfig,
    all_prompts,
    balanced_prompts,
    parse_prompt,
    prompt_clip,
    quantise,
    render,
)
from utils.metrics.frechet import Gaussian, fit, frechet_distance, interval

ROUNDED = tolerance.rounding(terms=9 * 64, sums=10)  # of features: a few convolutions


def gaussian(mean, covariance):
    return Gaussian(np.array(mean, float), np.array(covariance, float))


def rotation(seed, size):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def test_known_gaussians():
    a = gaussian([0, 0], np.diag([1.0, 4.0]))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    b = gaussian([3, 4], np.diag([9.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(25 + (1 - 3) ** 2 + (2 - 1) ** 2)  # commuting: difference of roots
    turn = rotation(0, 2)
    turned = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T) for g in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(30)


def test_covariances_that_do_not_commute_agree_with_scipy():
    from scipy.linalg import sqrtm

    roots = [rotation(seed, 6) @ np.diag(np.arange(1, 7.0) ** seed) for seed in (1, 2)]
    a, b = (gaussian(np.full(6, i), r @ r.T) for i, r in enumerate(roots))
    expected = 6 + np.trace(a.covariance + b.covariance - 2 * sqrtm(a.covariance @ b.covariance).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_a_batch_and_fewer_rows_than_features():
    rng = np.random.default_rng(0)
    reference, rows = fit(rng.normal(size=(500, 16))), rng.normal(size=(2, 5, 16))
    singles = [fit(r) for r in rows]
    batch = Gaussian(*(np.stack([getattr(g, k) for g in singles]) for k in ("mean", "covariance")))
    values = frechet_distance(reference, batch)
    assert values == pytest.approx([frechet_distance(reference, g) for g in singles])
    assert np.isfinite(values).all() and (values > 1).all()  # far: five rows span four of sixteen directions
    with pytest.raises(ValueError, match="at least 2"):
        fit(rows[0, :1])


def test_interval_scatters_as_fresh_sets_do():
    rng = np.random.default_rng(1)
    reference = fit(rng.normal(size=(20_000, 4)))
    sets = rng.normal(0.4, 1.2, (200, 60, 1, 4))
    got = [interval(reference, s, draws=100) for s in sets]
    truth = np.mean([g["mean"] for g in got])
    assert got[0]["mean"] == pytest.approx(frechet_distance(reference, fit(sets[0, :, 0])))
    assert got[0] == interval(reference, sets[0], draws=100)
    inside = np.mean([g["low"] <= truth <= g["high"] for g in got])
    assert 0.85 <= inside <= 0.99
    assert interval(reference, sets[0, :1]) == {"mean": None, "low": None, "high": None}


def test_windows_of_one_video_are_one_vote():
    rng = np.random.default_rng(2)
    reference, single = fit(rng.normal(size=(5000, 3))), rng.normal(0.3, 1, (40, 1, 3))
    assert interval(reference, single.repeat(7, 1)) == pytest.approx(interval(reference, single))
    apart = interval(reference, rng.normal(0.3, 1, (40, 7, 3)))
    assert apart["high"] - apart["low"] < 0.7 * (
        interval(reference, single)["high"] - interval(reference, single)["low"]
    )


def test_windows_cover_a_clip():
    assert features.window_starts(32) == [] and features.window_starts(33) == features.window_starts(64) == [0]
    assert features.window_starts(321) == list(range(0, 289, 32))
    net, (clip, _) = frechet.load_net(), prompt_clip(7, 77, 5)
    grid, last = features.clip_features(net, clip)
    assert grid.shape == (2, 64)
    for start, row in ((0, grid[0]), (32, grid[1]), (44, last)):
        np.testing.assert_allclose(row, features.clip_features(net, clip[start : start + 33])[1], atol=ROUNDED)
    np.testing.assert_allclose(grid[0], grid[1], atol=ROUNDED)  # once around the canvas: the claim behind the floor
    assert np.abs(grid[0] - features.clip_features(net, prompt_clip(8, 33, 5)[0])[1]).max() > 0.01
    for wrong in (clip[:20], clip[:, :32], clip.astype(np.float32)):
        with pytest.raises(ValueError, match="features need uint8"):
            features.clip_features(net, wrong)


def test_shipped_net_is_the_recorded_one_and_good():
    facts = json.loads((features.FOLDER / "features.json").read_text())
    least = {"digit": 0.9, "colour": 0.95, "direction": 0.85, "speed": 0.7}
    for clips in ("plain", "augmented"):
        assert all(facts["accuracy"][clips][label] >= value for label, value in least.items())
    assert facts["sha256"] == file_hash(features.FOLDER / features.WEIGHTS)
    assert sum(f.stat().st_size for f in features.FOLDER.iterdir()) <= 500_000
    net, hits = frechet.load_net(), []
    for number in range(0, 240, 10):
        clip, subject = prompt_clip(number, 33, 77)
        logits = net(features.to_pixels(clip[None]))
        seen = {name: int(values.argmax()) for name, values in logits.items()}
        requested = (list(COLOURS).index(subject.colour), list(DIRECTIONS).index(subject.direction))
        hits.append([seen["digit"] == subject.digit, *(np.array([seen["colour"], seen["direction"]]) == requested)])
    assert np.mean(hits, 0).min() >= 0.85


def test_another_file_is_refused(tmp_path):
    import shutil

    folder = tmp_path / "features"
    with pytest.raises(ValueError, match="has no features.safetensors"):
        features.load_net(folder)
    shutil.copytree(features.FOLDER, folder)
    features.load_net(folder)
    features.save_net(features.FeatureNet(), folder)
    with pytest.raises(ValueError, match="not the file of features.json"):
        features.load_net(folder)
    with pytest.raises(ValueError, match="made by another feature net"):
        frechet.load_reference(folder)
    (folder / frechet.REFERENCE).unlink()
    frechet.load_reference.cache_clear()
    with pytest.raises(ValueError, match="is missing"):
        frechet.load_reference(folder)


PROMPTS = tuple(prompt_numbers(balanced_prompts(40)))


def row(change=lambda clip, number: clip, prompts=PROMPTS):
    """Returns the Frechet row of real clips of a fresh seed, changed."""
    meter, subjects = frechet.FrechetMeter(), [parse_prompt(all_prompts()[i])[0] for i in prompts]
    clips = (change(prompt_clip(i, 33, 99 + n)[0], n) for n, i in enumerate(prompts))
    assert len(list(meter.collect(clips))) == len(subjects)
    return meter.row(subjects)


@pytest.fixture(scope="module")
def real():
    return row()


def test_real_clips_are_near_the_floor(real):
    floor = real["floor"]
    assert len(floor["draws"]) == 5 and floor["low"] == min(floor["draws"]) < floor["mean"] < max(floor["draws"])
    assert 0.6 * floor["low"] < real["all"]["mean"] < 1.6 * floor["high"]
    assert (
        real["first"] == real["last"] == real["all"] and real["all"]["low"] < real["all"]["mean"] < real["all"]["high"]
    )


def scrambled(clip, number):
    return clip[np.random.default_rng(number).permutation(len(clip))]


def slow(clip, number):
    subject = parse_prompt(all_prompts()[PROMPTS[number]])
    return quantise(render(subject, 33, np.random.default_rng(number), DigitsConfig(speed=1)))


CHANGES = {
    "scrambled": scrambled,
    "slow": slow,
    "noise": lambda clip, n: REFERENCES["noise"](clip, np.random.default_rng(n)),
    "frozen": lambda clip, n: REFERENCES["frozen"](clip, None),
    "black": lambda clip, n: REFERENCES["black"](clip, None),
    "one video": lambda clip, n: prompt_clip(3, 33, 1)[0],
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_clips_are_far_above_the_floor(real, name):
    other = row(CHANGES[name])
    assert other["floor"] == real["floor"]
    assert other["all"]["low"] > 1.5 * real["floor"]["high"] and other["all"]["mean"] > 1.5 * real["all"]["high"]


def test_a_video_that_decays_is_seen_in_its_last_window():
    def fade(number):
        clip = prompt_clip(PROMPTS[number], 65, 5)[0]
        clip[33:] = clip[33:34]
        return clip

    meter, subjects = frechet.FrechetMeter(), [parse_prompt(all_prompts()[i])[0] for i in PROMPTS]
    list(meter.collect(fade(n) for n in range(len(PROMPTS))))
    decayed = meter.row(subjects)
    assert decayed["first"]["mean"] < 1.6 * decayed["floor"]["high"]
    assert decayed["last"]["low"] > 1.5 * decayed["first"]["high"]
    assert decayed["first"]["mean"] < decayed["all"]["mean"] < decayed["last"]["mean"]


def test_short_and_single_videos_have_none():
    meter = frechet.FrechetMeter()
    clip, subject = prompt_clip(0, 17)
    assert list(meter.collect([clip])) and meter.row([subject]) is None
    list(meter.collect([prompt_clip(0, 33)[0]]))
    empty = meter.row([subject])
    assert empty["all"]["mean"] is None and empty["floor"]["mean"] is None


def test_floor_draws_other_clips_for_a_prompt_asked_twice():
    twice = frechet.floor((5, 5, 5, 5), draws=1)["mean"]
    meter = frechet.FrechetMeter()
    seed = frechet.FLOOR_SEED
    list(meter.collect(prompt_clip(5, 33, seed + n)[0] for n in range(4)))
    seen = meter.row([prompt_clip(5, 1)[1]] * 4)["all"]["mean"]
    assert twice == pytest.approx(seen, rel=10 * ROUNDED)
