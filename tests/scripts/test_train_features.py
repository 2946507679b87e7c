"""scripts/train_features.py: its clips are what their labels say, and a run is recorded and repeatable."""

import json

import torch

from scripts import train_features
from utils.digest import file_hash
from utils.digits import features
from utils.digits.world import parse_prompt, random_clip
from utils.rng import Rng


def test_labels_belong_to_their_clips():
    pixels, labels = train_features.make_batch(range(8), 40_000, 9)
    assert pixels.shape == (8, 3, 9, 64, 64) and 0 <= pixels.min() < pixels.max() <= 1
    assert labels["speed"].tolist() == [0, 1, 2, 3] * 2
    for number in range(8):
        assert parse_prompt(random_clip(number, 1, 40_000)[1])[0].digit == labels["digit"][number]
        axis, sign = {0: (-1, 1), 1: (-1, -1), 2: (-2, -1), 3: (-2, 1)}[int(labels["direction"][number])]
        speed = features.SPEEDS[labels["speed"][number]]
        clip = pixels[number]
        assert torch.equal(clip[:, 4].roll(sign * speed, axis), clip[:, 5])


def test_augmented_clips_stay_near_and_differ():
    pixels, _ = train_features.make_batch(range(4), 40_000, 9)
    soft = train_features.augment(pixels, Rng(0, "x"))
    assert torch.equal(soft, train_features.augment(pixels, Rng(0, "x")))
    assert not torch.equal(soft, train_features.augment(pixels, Rng(1, "x")))
    assert soft.shape == pixels.shape and 0 <= soft.min() < soft.max() <= 1
    ratio = soft.sum((1, 2, 3, 4)) / pixels.sum((1, 2, 3, 4))
    assert (ratio > 0.6).all() and (soft != pixels).float().mean() > 0.5


def test_a_run_is_recorded_and_repeatable(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_features, "make_reference", lambda folder: 7)
    monkeypatch.setattr(train_features, "STAGES", ((0.0, 1, 4), (0.4, 9, 2), (0.7, 33, 2)))
    hashes = []
    for name in ("a", "b"):
        folder = tmp_path / name
        assert train_features.main(["--steps", "3", "--test", "4", "--output", str(folder)]) == 0
        facts = json.loads((folder / "features.json").read_text())
        assert facts["sha256"] == file_hash(folder / features.WEIGHTS) and facts["reference_clips"] == 7
        assert set(facts["accuracy"]["plain"]) == set(features.LABELS) and facts["accuracy"]["clips"] == 4
        assert features.load_net(folder).features(torch.zeros(1, 3, 33, 64, 64)).shape == (1, features.FEATURES)
        hashes.append(facts["sha256"])
    assert hashes[0] == hashes[1] and "--seed 0" in facts["command"]
    train_features.main(["--steps", "3", "--test", "4", "--seed", "1", "--output", str(folder)])
    assert json.loads((folder / "features.json").read_text())["sha256"] != hashes[0]
    assert train_features.main(["--steps", "0"]) == 2
    assert "must be 1 or more" in capsys.readouterr().err
