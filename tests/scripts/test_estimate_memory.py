"""The memory estimate: its parts add up, react to what they are made of, and the shipped table is this one's."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from scripts import estimate_memory
from scripts.estimate_memory import Case, estimate
from tests.architecture.source import ROOT

LARGE = Case("t2v-14B", "t2v-14B", 8, 8)


def size(case: Case, name: str = "") -> float:
    """Returns GB of one part, or of all."""
    return sum(part["GB"] for part in estimate(case) if not name or part["what"] == name)


def test_the_largest_training_fits_eight_gpus_only_in_parts():
    assert size(LARGE) < 80 < size(replace(LARGE, shard_text=False))
    assert size(replace(LARGE, lora=True)) < 0.5 * size(LARGE)
    assert size(replace(LARGE, ranks=64)) < 0.5 * size(LARGE)


def test_parts_follow_their_arithmetic():
    weights, _ = estimate_memory.count("t2v-14B")
    assert weights == pytest.approx(14.29e9, rel=1e-3)
    assert size(LARGE, "teacher") == pytest.approx(weights * 2 / 8 / 1e9, abs=1e-3)
    assert size(LARGE, "student and critic") == pytest.approx(2 * weights * 12 / 8 / 1e9, abs=1e-3)
    assert size(LARGE, "keys and values") == pytest.approx(2 * 21 * 195 * 5120 * 2 * 40 / 1e9, abs=1e-3)
    alone = replace(LARGE, sequence=1)
    assert size(alone, "keys and values") == pytest.approx(8 * size(LARGE, "keys and values"), abs=0.01)


def test_the_recorded_table_is_what_the_script_says(tmp_path, capsys):
    assert estimate_memory.main(["--output", str(tmp_path / "memory.json")]) == 0
    recorded = json.loads((ROOT / "docs/results/memory.json").read_text())
    assert json.loads((tmp_path / "memory.json").read_text()) == recorded
    message = capsys.readouterr().out
    assert all(f"{row['total']:8.2f} GB  sum" in message for row in recorded["rows"])
