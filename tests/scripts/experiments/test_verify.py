"""`digits_table.py --verify`: trains in folders of its own, prints ours against the record, touches no record."""

from __future__ import annotations

import json

from scripts.experiments import verify


def test_verify_trains_again_elsewhere_and_prints_both(project, capsys):
    assert project.table("--rows", "dmd") == 0
    path = project.root / "docs/results/table/dmd_seed0.json"
    record = json.loads(path.read_text())
    record["1x"]["metrics"]["colour"] = {"mean": 0.7, "low": 0.55, "high": 0.85}
    record["10x"]["metrics"]["direction"] = {"mean": 0.9, "low": 0.8, "high": 1.0}
    record["10x"]["facts"]["hash"] = "of another recipe"
    path.write_text(json.dumps(record))
    before = path.read_text()
    project.calls()
    capsys.readouterr()
    assert project.table("--verify", "--rows", "dmd") == 0
    trained = [words for words in project.calls() if words[0] == "train.py"]
    assert len(trained) == 1 and "runs/table_verify/dmd/seed0" in trained[0] and path.read_text() == before
    assert (project.root / "outputs/table_verify/records/dmd_seed0.json").exists()
    lines = capsys.readouterr().out.splitlines()
    assert "| dmd | 1x | digit | 0.500 +-0.100 | 0.500 | 0.400 .. 0.600 | inside |" in lines
    assert "| dmd | 1x | colour | 0.500 +-0.100 | 0.700 | 0.550 .. 0.850 | overlaps |" in lines
    assert "| dmd | 10x | direction | 0.500 +-0.100 | 0.900 | 0.800 .. 1.000 | apart (other hash) |" in lines
    assert lines[-1] == "6 numbers: 4 inside, 1 overlaps, 1 apart"
    assert project.table("--verify", "--rows", "dmd") == 0 and project.calls() == []  # it resumes like the other


def test_verify_says_what_is_not_measured(project, capsys):
    assert project.table("--verify", "--rows", "ode", "--dry_run") == 0
    assert "record's interval" not in capsys.readouterr().out
    assert project.table("--verify", "--rows", "ode") == 0
    assert "| ode | 1x | no record |" in capsys.readouterr().out
    assert "not measured" in verify.compare(project.root / "none", project.root / "docs/results/table", ["ode"])[2]


def test_verify_keeps_folders_that_were_chosen(project):
    chosen = ("--runs", "runs/mine", "--videos", "outputs/mine", "--records", "outputs/mine/records")
    assert project.table("--verify", "--rows", "sid", *chosen) == 0
    assert (project.root / "outputs/mine/records/sid_seed0.json").exists()
    assert not (project.root / "runs/table_verify").exists()
