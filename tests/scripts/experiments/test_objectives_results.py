"""The digits table's tables and curves, of rows that stand-in scripts made."""

from __future__ import annotations

import json

from scripts import tables
from scripts.experiments import objectives_results


def test_gpu_budget_has_three_seeds_and_second_videos(project):
    assert project.table("--rows", "teacher", "--budget", "gpu") == 0
    seeds = {words[words.index("--seed") + 1] for words in project.calls() if words[0] == "inference.py"}
    assert seeds == {"0", "1", "2"}
    assert [project.record("teacher", seed)["1x"]["videos"] for seed in range(3)] == [256] * 3
    assert "| teacher (bidirectional) | 7 | 3 | 256 |" in tables.table("objectives-cost")


def test_tables_show_run_missing_and_inapplicable_rows(project):
    assert project.table("--rows", "teacher,dmd") == 0
    quality = {line.split(" | ")[0]: line for line in tables.table("objectives").splitlines()}
    dmd = "| 4 | 0.500 +-0.100 | 0.500 +-0.100 | 0.500 +-0.100 | 0.5 +-0.1 (2.0) | 3.2 [2.0, 4.5] "
    dmd += "| 0.500 +-0.100 | 0.500 +-0.100 | 0.500 +-0.100 | 7.0 +-0.1 (2.0) "
    dmd += "| +0.500 +-0.100 / +0.500 +-0.100 / +0.500 +-0.100 |"
    assert quality["| Self-Forcing, DMD"] == f"| Self-Forcing, DMD {dmd}"
    assert "0.5 +-0.1 (2.0) | 3.2 [2.0, 4.5] | does not apply |" in quality["| teacher (bidirectional)"]
    assert "not run: `python scripts/digits_table.py --rows sid`" in quality["| Self-Forcing, SiD"]
    assert len({line.count(" | ") for line in quality.values()}) == 1
    cost = tables.table("objectives-cost")
    assert "| Self-Forcing, DMD | 1500 | 1 | 128 + 32 | 12 min | 2 + 1 min | a processor |" in cost
    assert "| teacher (bidirectional) | 7 | 1 | 128 | 41 min (shipped) |" in cost


def test_curves_are_drawn_of_what_was_run(project):
    assert project.table("--rows", "dmd") == 0
    objectives_results.draw(project.root)
    images = project.root / "docs/images"
    assert all((images / f"digits_table_{n}.png").stat().st_size > 5000 for n in ("length", "training"))
    panels = objectives_results.training_panels({"dmd": [project.record("dmd")]})
    assert list(panels) == ["critic_loss", "generator_dmd_gradient"] and list(panels["critic_loss"]) == ["dmd"]
    x, y, _ = objectives_results.length_panels({"dmd": [project.record("dmd")]})["digit"]["Self-Forcing, DMD"]
    assert (x[0], x[-1], y[-1]) == (0.5, 9.5, 0.9)


def test_row_without_distance_or_motion_has_a_dash(project):
    assert project.table("--rows", "dmd") == 0
    record = project.record("dmd")
    del record["1x"]["frechet"], record["1x"]["looks"]
    record["10x"]["drift"]["direction"]["change"] = {"mean": None, "low": None, "high": None}
    project.write("docs/results/table/dmd_seed0.json", json.dumps(record))
    line = next(text for text in tables.table("objectives").splitlines() if "DMD" in text)
    assert "| - | - | 0.500" in line and line.endswith("/ - |")
