"""The memory estimate: its parts add up, react to what they are made of, and the shipped table is this one's."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from scripts import estimate_memory
from scripts.estimate_memory import Case, estimate
from scripts.measure import tdm_memory
from tests.architecture.source import ROOT
from trainer.config import load_recipe

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


def test_avatars_fit_as_their_arithmetic_says(tmp_path, capsys):
    """Published sums at 704x384: weights 32.6 GB, a ring 10.4 GB, pinned runs 2.2 GB; fp8 16.65 GB."""
    assert estimate_memory.main(["avatar", "--output", str(tmp_path / "avatar.json")]) == 0
    written = json.loads((tmp_path / "avatar.json").read_text())
    assert written == json.loads((ROOT / "docs/results/memory_avatar.json").read_text())
    rows = {(row["what"], row["card"], row["GPU"]): row for row in written["rows"]}
    verdicts = {key: row["fits"] for key, row in rows.items()}
    rings = ("1 GPU, a ring for each step", "80 GB", "steps: 4")
    assert not verdicts.pop(rings) and all(verdicts.values()), "copies of the portrait are what does not fit"
    one = {part["what"]: part["GB"] for part in rows["1 GPU", "80 GB", "steps: 4"]["parts"]}
    unit, layers = 44 * 24, 2 * 40 * 5120 * 2 / 1e9
    assert one["weights"] == pytest.approx(2 * 16.295755609, abs=1e-3)
    assert one["keys and values"] == pytest.approx(4 * 12 * unit * layers, abs=1e-3)
    assert one["pinned runs"] == pytest.approx(2.5 * unit * layers, abs=1e-3)
    assert one["working buffers"] == pytest.approx(14.5 * unit * layers / 40, abs=1e-3)
    eight = {part["what"]: part["GB"] for part in rows["1 GPU, fp8", "48 GB", "steps: 4"]["parts"]}
    assert eight["weights"] == pytest.approx(16.65, abs=0.01) and "keys and values" not in eight
    assert capsys.readouterr().out.count("sum: fits") == len(verdicts)
    for row in written["rows"]:
        for part in row["parts"]:
            assert evaluate(part["sum"]) / 1e9 == pytest.approx(part["GB"], rel=2e-3) or "blocks" in part["sum"], part


def evaluate(arithmetic: str) -> float:
    """Returns what a line of the arithmetic comes to."""
    plain = re.sub(r"[A-Za-wyz]{2,}", "", arithmetic.partition(",")[0]).replace("x", "*").replace("  ", " ")
    return eval(plain, {"__builtins__": {}})


def test_an_avatar_has_no_student():
    assert estimate_memory.main(["avatar", "--student", "t2v-14B"]) == 2


def test_tdm_by_lora_fits_two_gpus_as_its_arithmetic_says(tmp_path):
    """By hand: 25.1 GB for 49 frames of CogVideoX-5B, 10.7 for 81 of Wan-1.3B; 66.1 and 47.2 million adapters."""
    assert estimate_memory.main(["tdm", "--output", str(tmp_path / "tdm.json")]) == 0
    written = json.loads((tmp_path / "tdm.json").read_text())
    assert written == json.loads((ROOT / "docs/results/memory_tdm.json").read_text())
    assert [round(row["total"], 1) for row in written["rows"]] == [25.1, 10.7]
    recipe = load_recipe(ROOT / "configs/train/tdm_wan.yaml")[0].trainer.generator.lora
    assert tdm_memory.count_adapters("t2v-1.3B", recipe) == 30 * 8 * 64 * 2 * 1536
    wider = replace(recipe, rank=128)
    assert tdm_memory.count_adapters("t2v-1.3B", wider) == 2 * tdm_memory.count_adapters("t2v-1.3B", recipe)
    assert estimate_memory.main(["tdm", "--lora", "--output", str(tmp_path / "no.json")]) == 2
