"""scripts/digits_sparse.py with stand-in scripts: what is trained from what, knobs of a row, tables and verdicts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scripts.experiments import sparse, sparse_results
from trainer.config import load_recipe
from utils.media.image import image_size
from utils.media.mp4 import VideoWriter
from wan.attention.config import AsaConfig

CASE = {"videos": 128, "metrics": {}, "facts": {}, "sampler": {"steps": 8}}


def select_calls(calls, script) -> list[list[str]]:
    return [words for words in calls if words[0].endswith(script)]


def test_a_tuning_starts_from_the_dense_student_and_waits_for_it(project):
    assert project.sparse("--budget", "short", "--rows", "tuned_3") == 0
    first, second = select_calls(project.calls(), "train.py")
    assert {"steps=300", "runs/sparse/tdm/seed0"} <= set(first) and not [w for w in first if "sparse." in w]
    start = "trainer.generator.weights=runs/sparse/tdm/seed0/export/transformer"
    knobs = {f"trainer.generator.sparse.{word}" for word in ("name=asa", "order=clip")}
    assert {start, "steps=150"} | knobs <= set(second)
    record = json.loads((project.root / "docs/results/sparse/tuned_3_seed0.json").read_text())
    assert record["kept"] == 3 and record["training"]["start"] and record["1x"]["videos"] == 128
    assert project.sparse("--budget", "short", "--rows", "tuned_3") == 0 and project.calls() == []


def test_an_untrained_row_changes_the_generation_alone(project):
    assert project.sparse("--rows", "causal,causal_history") == 0
    calls = project.calls()
    assert not select_calls(calls, "train.py")
    videos = select_calls(calls, "inference.py")
    dense, masked = ([w for w in videos if f"/{row}/" in " ".join(w)] for row in ("causal", "causal_history"))
    assert len(dense) == len(masked) == 2
    assert not [word for words in dense for word in words if word.startswith("model.sparse")]
    assert all({"model.sparse.name=asa", "model.sparse.dense.own=true"} <= set(words) for words in masked)


@pytest.mark.parametrize("name", [name for name, own in sparse.TRAININGS.items() if own.overrides])
def test_every_training_is_a_configuration(name):
    training = sparse.TRAININGS[name]
    config, _ = load_recipe(training.recipe, list(training.overrides))
    knobs = config.trainer.generator.sparse
    assert isinstance(knobs, AsaConfig) and knobs.block * sparse.BLOCKS == 144
    kept = 2 if name.startswith("causal") else int(name[-1])
    assert int(sparse.BLOCKS * knobs.max) == int(sparse.BLOCKS * knobs.min) == kept


def records(**digits) -> dict:
    """Returns rows with these digit metrics, by name; the others are not recorded."""

    def row(value):
        interval = {"mean": value, "low": value, "high": value}
        return [{"1x": {"metrics": {"digit": interval, "direction": interval}}}]

    return {name: row(digits[name]) if name in digits else [] for name in sparse.ROWS}


def test_verdicts():
    found = {
        what: (reached, passed)
        for what, _, reached, passed in sparse_results.judge(
            records(teacher=0.9, tdm=0.83, untrained_3=0.53, tuned_3=0.7, joint_3=0.6, causal=0.98, causal_history=0.97)
        )
    }
    assert found["TDM, 8 steps: digit"] == (0.83, False)
    assert found["TDM + ASA at 3 of 18 (tuned): digit won back"] == (pytest.approx(17 / 30), True)
    assert found["TDM + ASA at 3 of 18 (joint): digit won back"] == (pytest.approx(7 / 30), False)
    assert found["causal, sparse history: digit"] == (0.97, True)
    assert found["TDM + ASA at 4 of 18 (tuned): digit"][1] is None


def test_tables_name_the_command_of_what_is_missing(project):
    assert project.sparse("--rows", "causal_all") == 0
    text = sparse_results.quality(project.root)
    assert "python scripts/digits_sparse.py --rows tuned_2" in text
    assert "2 of 18 blocks | 2 of 18 | 0.50" in text
    assert "not run" in sparse_results.gates(project.root)


def test_short_table_and_videos_side_by_side(project):
    assert project.sparse("--rows", "causal,tdm") == 0
    text = sparse_results.short(project.root)
    assert "| causal student, 4 steps | 18 of 18 | 0.50" in text and "--rows tuned_4" in text
    record = json.loads((project.root / "docs/results/sparse/causal_seed0.json").read_text())
    words = record["1x"]["commands"][0].split()
    folder = project.root / words[words.index("--output_folder") + 1]
    for empty in project.root.rglob("*.mp4"):
        empty.unlink()
    path = project.root / "docs/images/digits_sparse_videos.png"
    sparse_results.draw_videos(project.root, sparse_results.read_rows(project.root))
    assert not path.exists()
    with VideoWriter(folder / f"{sparse_results.PROMPT}-0.mp4", 8) as video:
        video.write(np.full((9, 64, 64, 3), 200, np.uint8))
    sparse_results.draw_videos(project.root, sparse_results.read_rows(project.root))
    assert image_size(path)[1] > sparse_results.SHEET_FRAMES * 64
