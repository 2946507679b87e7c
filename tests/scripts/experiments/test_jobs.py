"""Jobs that are interrupted, killed or started twice."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.architecture.source import ROOT


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


def test_interrupt_ends_the_training_which_then_resumes(project, hanging):
    hanging.send_signal(signal.SIGINT)
    _, error = hanging.communicate(timeout=120)
    assert hanging.returncode == 130 and "run again to go on" in error
    assert is_free(project.root / "runs/table/logs/train_sid_seed0.lock"), "no process of the job lives"
    (project.root / "hang").unlink()
    assert project.table("--rows", "sid") == 0
    assert "resumed at 120" in (project.root / "runs/table/logs/train_sid_seed0.log").read_text()
    assert project.record("sid")["training"]["steps"] == 3000


def test_orphaned_training_is_not_joined(project, hanging, capsys):
    hanging.kill()
    hanging.wait(timeout=120)
    assert project.table("--rows", "sid") == 1
    assert "another process is at train/sid/seed0" in capsys.readouterr().out
    (project.root / "hang").unlink()
    wait_until(lambda: is_free(project.root / "runs/table/logs/train_sid_seed0.lock"))
    project.calls()
    assert project.table("--rows", "sid") == 0 and all(words[0] != "train.py" for words in project.calls())


def test_two_processes_never_run_one_job(project, capsys):
    lock = project.write("runs/table/logs/train_dmd_seed0.lock", "")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert project.table("--rows", "dmd") == 1
    assert "another process is at train/dmd/seed0" in capsys.readouterr().out and project.calls() == []


def test_commands_run_with_one_thread(project):
    project.write("inference.py", "import os; open('env', 'w').write(os.environ['OMP_NUM_THREADS'])")
    project.table("--rows", "teacher")
    assert (project.root / "env").read_text() == "1" and os.environ.get("OMP_NUM_THREADS", "1") == "1"
