"""scripts/digits_table.py with stand-in scripts: resume, skip, failure, interrupts, adopted runs, the table's text."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from scripts import tables
from scripts.experiments import curves as digits_curves
from scripts.experiments import training as digits_training
from scripts.experiments import videos as digits_videos
from tests.architecture.source import ROOT
from tests.scripts.digits_table_fixture import Project

INTERVAL = {"mean": 0.5, "low": 0.4, "high": 0.6}


@pytest.fixture
def project(tmp_path, monkeypatch):
    facts = {"name": "a processor", "cores": 2, "torch": "2", "load average": 0.0}
    for module in (digits_videos, digits_training):
        monkeypatch.setattr(module, "hardware", lambda: facts)
    return Project(tmp_path)


def scripts(calls) -> list[str]:
    return [words[0] for words in calls]


def test_a_row_is_trained_videoed_measured_and_then_skipped(project):
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


def test_a_fresh_clone_counts_the_records_it_came_with(project):
    assert project.table("--rows", "sid") == 0
    (project.root / "runs/table/sid/seed0").rename(project.root / "elsewhere")
    project.calls()
    assert project.table("--rows", "sid") == 0 and project.calls() == []


def test_another_recipe_or_other_weights_are_measured_anew(project):
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


def test_a_failure_is_told_and_stops_no_other_row_and_goes_on_later(project, capsys):
    crash = project.write("crash", "sid")
    assert project.table("--rows", "sid,diffusion_forcing_4") == 1
    said = capsys.readouterr()
    assert "out of luck" in said.err and "status 3" in said.out
    assert "sid/seed0/1x: it needs train/sid/seed0" in said.out
    assert project.record("diffusion_forcing_4")["10x"]["videos"] == 32
    assert not (project.root / "docs/results/table/sid_seed0.json").exists()
    crash.unlink()
    project.calls()
    assert project.table("--rows", "sid,diffusion_forcing_4") == 0
    assert scripts(project.calls()).count("train.py") == 1
    assert "resumed at 120" in (project.root / "runs/table/logs/train_sid_seed0.log").read_text()
    assert project.record("sid")["training"]["updates"] == 600


def test_an_evaluation_without_a_result_is_a_failure(project, capsys):
    project.write("no_result", "")
    assert project.table("--rows", "teacher") == 1
    assert "ended with status 1" in capsys.readouterr().out


def test_a_training_that_ends_early_with_status_0_is_no_finished_one(project, capsys):
    project.write("train.py", "print('asked to stop')")
    assert project.table("--rows", "dmd") == 1
    assert "holds no metrics.jsonl; start again" in capsys.readouterr().out


def test_a_run_folder_of_another_training_is_not_continued(project, capsys):
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


def test_an_adopted_run_is_read_and_never_written(project, capsys):
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
        (("--runs_from", "dmd=nowhere"), "nowhere is no folder"),
        (("--runs_from", "teacher=configs"), "shipped weights"),
    ],
)
def test_bad_flags_are_refused(project, capsys, flags, words):
    assert project.table(*flags) == 2
    assert words in capsys.readouterr().err and project.calls() == []


def test_a_dry_run_shows_commands_and_changes_nothing(project, capsys):
    assert project.table("--rows", "diffusion_forcing_4") == 0
    before = sorted(project.root.rglob("*"))
    capsys.readouterr()
    assert project.table("--rows", "diffusion_forcing_4,ode", "--dry_run") == 0
    said = capsys.readouterr().out
    assert "train/ode/seed0  (after data/ode_pairs)\n  python train.py" in said
    assert "diffusion_forcing_4: finished" in said and "ode: finished" not in said
    assert sorted(project.root.rglob("*")) == before


@pytest.fixture
def hanging(project):
    """A process of the script whose training of sid waits at step 100 until the file `hang` is gone."""
    hang = project.write("hang", "")
    code = "import sys; from pathlib import Path; from scripts import digits_table as t; "
    code += "raise SystemExit(t.main(['--rows', 'sid'], Path(sys.argv[1])))"
    metrics = project.root / "runs/table/sid/seed0/metrics.jsonl"
    runner = subprocess.Popen([sys.executable, "-c", code, project.root], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: metrics.exists() and '"step": 100' in metrics.read_text())
    yield runner
    hang.unlink(missing_ok=True)
    runner.kill()
    runner.communicate()


def wait_until(happened) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_free(lock) -> bool:
    """True if no process holds the lock."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_ctrl_c_ends_the_running_training_which_then_resumes(project, hanging):
    hanging.send_signal(signal.SIGINT)
    _, error = hanging.communicate(timeout=120)
    assert hanging.returncode == 130 and "run again to go on" in error
    assert is_free(project.root / "runs/table/logs/train_sid_seed0.lock"), "no process of the job lives"
    (project.root / "hang").unlink()
    assert project.table("--rows", "sid") == 0
    assert "resumed at 120" in (project.root / "runs/table/logs/train_sid_seed0.log").read_text()
    assert project.record("sid")["training"]["steps"] == 3000


def test_a_training_left_behind_by_a_killed_script_is_not_joined_by_a_second_one(project, hanging, capsys):
    hanging.kill()
    hanging.wait(timeout=120)
    assert project.table("--rows", "sid") == 1
    assert "another process is at train/sid/seed0" in capsys.readouterr().out
    (project.root / "hang").unlink()
    wait_until(lambda: is_free(project.root / "runs/table/logs/train_sid_seed0.lock"))
    project.calls()
    assert project.table("--rows", "sid") == 0 and "train.py" not in scripts(project.calls())


def test_two_processes_never_train_in_one_folder(project, capsys):
    lock = project.write("runs/table/logs/train_dmd_seed0.lock", "")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert project.table("--rows", "dmd") == 1
    assert "another process is at train/dmd/seed0" in capsys.readouterr().out and project.calls() == []


def test_three_seeds_with_a_second_video_of_some_prompts(project, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", project.root)
    assert project.table("--rows", "teacher", "--budget", "gpu") == 0
    seeds = {words[words.index("--seed") + 1] for words in project.calls() if words[0] == "inference.py"}
    assert seeds == {"0", "1", "2"}
    assert [project.record("teacher", seed)["1x"]["videos"] for seed in range(3)] == [256] * 3
    assert "| teacher (bidirectional) | 7 | 3 | 256 |" in tables.table("objectives-cost")


def test_the_table_tells_what_was_run_what_was_not_and_what_does_not_apply(project, monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "ROOT", project.root)
    assert project.table("--rows", "teacher,dmd") == 0
    quality = {line.split(" | ")[0]: line for line in tables.table("objectives").splitlines()}
    dmd = "| 4 | 0.500 +-0.100 | 0.500 +-0.100 | 0.500 +-0.100 | 0.5 +-0.1 (2.0) | 0.500 +-0.100 | 0.500 +-0.100 "
    dmd += "| 0.500 +-0.100 | 7.0 +-0.1 (2.0) | +0.500 +-0.100 / +0.500 +-0.100 / +0.500 +-0.100 |"
    assert quality["| Self-Forcing, DMD"] == f"| Self-Forcing, DMD {dmd}"
    assert "0.5 +-0.1 (2.0) | does not apply |" in quality["| teacher (bidirectional)"]
    assert "not run: `python scripts/digits_table.py --rows sid`" in quality["| Self-Forcing, SiD"]
    assert len({line.count(" | ") for line in quality.values()}) == 1
    cost = tables.table("objectives-cost")
    assert "| Self-Forcing, DMD | 1500 | 1 | 128 + 32 | 12 min | 2 + 1 min | a processor |" in cost
    assert "| teacher (bidirectional) | 7 | 1 | 128 | 41 min (shipped) |" in cost
    flags = ["--records", str(project.root / "docs/results/table"), "--output", str(tmp_path / "images")]
    assert digits_curves.main(flags) == 0
    assert all((tmp_path / f"images/digits_table_{n}.png").stat().st_size > 5000 for n in ("length", "training"))
    panels = digits_curves.training_panels({"dmd": [project.record("dmd")]})
    assert list(panels) == ["critic_loss", "generator_dmd_gradient"] and list(panels["critic_loss"]) == ["dmd"]
    x, y, _ = digits_curves.length_panels({"dmd": [project.record("dmd")]})["digit"]["Self-Forcing, DMD"]
    assert (x[0], x[-1], y[-1]) == (0.5, 9.5, 0.9)


def test_a_row_without_a_distance_or_a_motion_has_a_dash(project, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", project.root)
    assert project.table("--rows", "dmd") == 0
    record = project.record("dmd")
    del record["1x"]["frechet"]
    record["10x"]["drift"]["direction"]["change"] = {"mean": None, "low": None, "high": None}
    project.write("docs/results/table/dmd_seed0.json", json.dumps(record))
    line = next(text for text in tables.table("objectives").splitlines() if "DMD" in text)
    assert "| - | 0.500" in line and line.endswith("/ - |")


def test_own_scripts_are_started_with_one_thread(project):
    project.write("inference.py", "import os; open('env', 'w').write(os.environ['OMP_NUM_THREADS'])")
    project.table("--rows", "teacher")
    assert (project.root / "env").read_text() == "1" and os.environ.get("OMP_NUM_THREADS", "1") == "1"
