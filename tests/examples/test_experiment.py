"""The example of a new experiment is run by the engine, resumed and shown, with stand-ins for train.py and others."""

from __future__ import annotations

import json

import pytest

from scripts.experiments import records
from tests.examples import experiment
from tests.scripts.experiments.project import Project


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "hardware", lambda: {"name": "a processor"})
    return Project(tmp_path)


def run(project, *flags) -> tuple[int, list[str]]:
    """Returns the exit status and the scripts that were called."""
    status = experiment.main(["--jobs", "2", *flags], project.root)
    return status, [words[0] for words in project.calls()]


def test_experiment_resumes_records_and_tabulates(project):
    crash = project.write("crash", "dmd")
    assert run(project, "--rows", "four") == (1, ["train.py"])
    assert "not run: `python tests/examples/experiment.py --rows four`" in experiment.show(project.root)
    crash.unlink()
    assert run(project, "--rows", "four") == (0, ["train.py", "inference.py", "scripts/evaluate.py"])
    assert "resumed at 120" in (project.root / "runs/toy/logs/train_dmd_seed0.log").read_text()
    assert run(project) == (0, ["inference.py", "scripts/evaluate.py"]), "the other row shares the training"
    assert run(project) == (0, [])
    assert experiment.show(project.root).splitlines()[2:] == ["| four | 0.500 +-0.100 |", "| five | 0.500 +-0.100 |"]


def test_experiment_records_what_was_run(project):
    assert run(project, "--rows", "five")[0] == 0
    record = json.loads((project.root / "docs/results/toy/five.json").read_text())
    assert (record["facts"]["videos"], record["facts"]["steps"], record["training"]["updates"]) == (8, 500, 100)
    assert record["facts"]["cache"] == [f"generation.steps.steps={experiment.STEPS['five']}"]
    assert record["commands"][0].startswith("python inference.py --config_path configs/infer/digits_few_step.yaml")


def test_experiment_fits_the_real_recipes(capsys):
    assert experiment.main(["--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("python train.py") == 1 and shown.count("python inference.py") == 2
