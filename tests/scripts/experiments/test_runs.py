"""What a finished training is."""

from __future__ import annotations

import json

import pytest

from scripts.experiments.runs import why_unfinished


def run_folder(folder, steps, export=True):
    (folder / "export/transformer").mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s}) + "\n" for s in steps))
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (folder / "export/transformer" / name).write_text("")
        if not export:
            (folder / "export/transformer" / name).unlink()
    return folder


@pytest.mark.parametrize(
    ("steps", "total", "reason"),
    [
        (range(0, 3000, 20), 3000, ""),
        (range(0, 3000, 20), 2985, ""),
        (range(0, 2980, 20), 3000, "has reached step 2960 of 3000"),
        (range(0, 3001, 20), 3000, "has reached step 3000 of 3000"),  # of a longer training
        ([0], 2, ""),
        ([], 2, "has reached step 0 of 2"),
    ],
)
def test_why_unfinished_wants_the_last_step(tmp_path, steps, total, reason):
    found = why_unfinished(run_folder(tmp_path, steps), total)
    assert found == "" if not reason else reason in found


def test_why_unfinished_wants_the_export(tmp_path):
    assert "has no export" in why_unfinished(run_folder(tmp_path, [0, 1], export=False), 2)
    assert "no metrics.jsonl" in why_unfinished(tmp_path / "nothing", 2)
