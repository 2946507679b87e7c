"""scripts/train_ear.py: sounds are what their labels say, a run is recorded and repeatable, the shipped ear hears."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scripts import train_ear
from utils.digest import file_hash
from utils.digits.speaking import LOW, RATE
from wan.audio.features import STATE_SAMPLES, load_hidden_states

FILES = {"config.json", "ear.json", "model.safetensors", "preprocessor_config.json"}


def periods(piece: np.ndarray) -> float:
    """Returns the pitch of a hum: the first lag at which it is much like itself."""
    lags = np.arange(int(RATE / 560), int(RATE / 120))
    strength = [np.corrcoef(piece[lag:], piece[:-lag])[0, 1] for lag in lags]
    return RATE / lags[next(i for i, s in enumerate(strength) if s > 0.97 * max(strength))]


def test_labels_belong_to_their_sounds():
    checked = 0
    for number in range(4):
        sound, octaves, voiced = train_ear.make_sound(number, 50_000)
        assert abs(sound.mean()) < 1e-3 and sound.std() == pytest.approx(1, abs=1e-3)
        for state in range(8, len(voiced) - 8, 9):
            middle = state * STATE_SAMPLES
            piece = sound[middle - 800 : middle + 800].astype(float)
            if voiced[state - 5 : state + 6].all():
                assert np.log2(periods(piece) / LOW) == pytest.approx(octaves[state], abs=0.15)
                checked += 1
            elif not voiced[state - 8 : state + 9].any():
                assert np.abs(piece).max() < 0.2
    assert checked > 10


def test_a_run_is_recorded_and_repeatable(tmp_path, capsys):
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = tmp_path / name
        flags = ["--steps", "1", "--test", "2", "--seed", str(seed), "--output", str(folder)]
        assert train_ear.main(flags) == 0
        facts = json.loads((folder / "ear.json").read_text())
        assert set(facts["read_out"]) == {"pitch_r2", "voicing"} and f"--seed {seed}" in facts["command"]
        assert {path.name for path in folder.iterdir()} == FILES
        hashes.append(file_hash(folder / "model.safetensors"))
    assert hashes[0] == hashes[1] != hashes[2]
    assert train_ear.main(["--steps", "0"]) == 2
    assert "must be 1 or more" in capsys.readouterr().err


def test_the_shipped_ear_hears_what_a_random_one_does_not(tmp_path):
    """The read-out that the record holds, on fewer sounds; and the size that a checkout carries."""
    facts = json.loads((train_ear.FOLDER / "ear.json").read_text())
    found = train_ear.test(load_hidden_states(train_ear.FOLDER), 16, 51_000)
    assert found["pitch_r2"] > 0.95 and found["voicing"] > 0.95 and facts["read_out"]["pitch_r2"] > 0.95
    assert sum(path.stat().st_size for path in train_ear.FOLDER.iterdir()) < 1e6
    train_ear.main(["--steps", "1", "--test", "2", "--output", str(tmp_path)])
    assert train_ear.test(load_hidden_states(tmp_path), 16, 51_000)["pitch_r2"] < found["pitch_r2"] - 0.1
