"""The engine with stand-in scripts, by scripts/digits_table.py: resume, skip, failures, adopted runs, bad flags."""

from __future__ import annotations

import json

import pytest


def scripts(calls) -> list[str]:
    return [words[0] for words in calls]


def test_row_is_trained_measured_and_then_skipped(project):
    assert project.table("--rows", "teacher_forcing,teacher_forcing_4") == 0
    calls = project.calls()
    assert scripts(calls)[:2] == ["scripts/encode_latents.py", "train.py"], "data first, one training for both rows"
    assert scripts(calls).count("train.py") == 1 and scripts(calls).count("inference.py") == 4
    few, many = project.record("teacher_forcing_4"), project.record("teacher_forcing")
    assert (few["1x"]["videos"], few["10x"]["videos"]) == (128, 32)
    assert (few["1x"]["sampler"], many["1x"]["sampler"]["steps"]) == ({"steps": 4, "guidance": 1.0}, 20)
    assert few["training"]["steps"] == few["training"]["updates"] == 3000
    assert few["training"]["minutes"] == pytest.approx(2980 / 10 / 60) and few["hardware"]["name"] == "a processor"
    assert few["1x"]["seconds"] == {"films": 60.0, "evaluate": 30.0}, "a batch's time counts once"
    assert few["10x"]["curve"]["digit"] == [k / 10 for k in range(10)] and "curve" not in few["1x"]
    assert few["10x"]["drift"]["digit"]["windows"] == [k / 10 for k in range(4)]
    assert project.table("--rows", "teacher_forcing,teacher_forcing_4") == 0
    assert project.calls() == []
    assert project.table("--rows", "teacher_forcing", "--again") == 0
    assert "train.py" not in scripts(project.calls())


def test_record_counts_without_its_run_folder(project):
    assert project.table("--rows", "sid") == 0
    (project.root / "runs/table/sid/seed0").rename(project.root / "elsewhere")
    project.calls()
    assert project.table("--rows", "sid") == 0 and project.calls() == []


def test_other_recipe_or_weights_are_measured_again(project):
    rows = ("--rows", "diffusion_forcing_4")
    assert project.table(*rows) == 0
    first = project.calls()
    recipe = project.root / "configs/infer/digits_few_step.yaml"
    recipe.write_text("# a comment\n" + recipe.read_text())
    assert project.table(*rows) == 0 and project.calls() == []
    recipe.write_text(recipe.read_text().replace("750, ", ""))
    assert project.table(*rows) == 0
    second = project.calls()
    project.write("assets/digits/transformer/diffusion_pytorch_model.safetensors", "other weights")
    assert project.table(*rows) == 0
    third = project.calls()
    assert project.record("diffusion_forcing_4")["1x"]["sampler"]["steps"] == 3
    folders = [
        {w[w.index("--output_folder") + 1] for w in calls if w[0] == "inference.py"} for calls in (first, second, third)
    ]
    assert [len(f) for f in folders] == [2, 2, 2] and len(set.union(*folders)) == 6, "videos of two kinds never mix"


def test_failure_is_reported_and_stops_no_other_row(project, capsys):
    crash = project.write("crash", "sid")
    assert project.table("--rows", "sid,diffusion_forcing_4") == 1
    shown = capsys.readouterr()
    assert "out of luck" in shown.err and "status 3" in shown.out
    assert "sid/seed0/1x: it needs train/sid/seed0" in shown.out
    assert project.record("diffusion_forcing_4")["10x"]["videos"] == 32
    assert not (project.root / "docs/results/table/sid_seed0.json").exists()
    crash.unlink()
    project.calls()
    assert project.table("--rows", "sid,diffusion_forcing_4") == 0
    assert scripts(project.calls()).count("train.py") == 1
    assert "resumed at 120" in (project.root / "runs/table/logs/train_sid_seed0.log").read_text()
    assert project.record("sid")["training"]["updates"] == 600


def test_evaluation_without_a_result_is_a_failure(project, capsys):
    project.write("no_result", "")
    assert project.table("--rows", "teacher") == 1
    assert "ended with status 1" in capsys.readouterr().out


def test_training_that_ends_early_is_not_finished(project, capsys):
    project.write("train.py", "print('asked to stop')")
    assert project.table("--rows", "dmd") == 1
    assert "holds no metrics.jsonl; start again" in capsys.readouterr().out


def test_run_folder_of_another_training_is_refused(project, capsys):
    run = project.root / "runs/table/dmd/seed0"
    assert project.table("--rows", "dmd") == 0
    stamp = json.loads((run / "table.json").read_text())
    (run / "table.json").write_text(json.dumps({**stamp, "steps": 8}))
    (project.root / "docs/results/table/dmd_seed0.json").unlink()
    assert project.table("--rows", "dmd") == 1
    assert "begun with other steps" in capsys.readouterr().out
    (run / "table.json").unlink()
    (run / "export/transformer/config.json").unlink()
    assert project.table("--rows", "dmd") == 1
    assert "did not begin" in capsys.readouterr().out


def test_adopted_run_is_only_read(project, capsys):
    assert project.table("--rows", "gan") == 0
    (project.root / "runs/table/gan/seed0").rename(project.root / "runs/mine")
    (project.root / "docs/results/table/gan_seed0.json").unlink()
    before = sorted((p, p.stat().st_mtime_ns) for p in (project.root / "runs/mine").rglob("*"))
    project.calls()
    assert project.table("--rows", "gan", "--runs_from", "gan=runs/mine") == 0
    assert "train.py" not in scripts(project.calls())
    assert sorted((p, p.stat().st_mtime_ns) for p in (project.root / "runs/mine").rglob("*")) == before
    assert project.record("gan")["training"]["run"] == "runs/mine" and "note" in project.record("gan")["training"]
    lines = (project.root / "runs/mine/metrics.jsonl").read_text().splitlines()
    project.write("runs/half/metrics.jsonl", "\n".join([*lines[:50], '{"step": 10']))
    assert project.table("--rows", "sid", "--runs_from", "sid=runs/half") == 1
    assert "has reached step 980 of 3000" in capsys.readouterr().out
    assert "train.py" not in scripts(project.calls())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--rows", "dmdd"), "did you mean dmd?"),
        (("--jobs", "0"), "--jobs is 0"),
        (("--runs_from", "dmd"), "is not ROW=DIR"),
        (("--runs_from", "dmd=nowhere"), "nowhere is not a folder"),
        (("--runs_from", "teacher=configs"), "shipped weights"),
    ],
)
def test_bad_flags_are_refused(project, capsys, flags, words):
    assert project.table(*flags) == 2
    assert words in capsys.readouterr().err and project.calls() == []


def test_dry_run_changes_nothing(project, capsys):
    assert project.table("--rows", "diffusion_forcing_4") == 0
    before = sorted(project.root.rglob("*"))
    capsys.readouterr()
    assert project.table("--rows", "diffusion_forcing_4,ode", "--dry_run") == 0
    shown = capsys.readouterr().out
    assert "train/ode/seed0  (after data/ode_pairs)\n  python train.py" in shown
    assert "diffusion_forcing_4: finished" in shown and "ode: finished" not in shown
    assert sorted(project.root.rglob("*")) == before
