"""The launch scripts: what they pass on, what they return, when a job is queued again. Training is a stand-in here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.architecture.source import ROOT

WORKER = """
import os, pathlib, signal, time
folder = pathlib.Path("{folder}")
def struck(number, frame):
    (folder / f"struck{{os.getpid()}}").touch()
signal.signal(signal.SIGUSR1, struck)
(folder / f"ready{{os.getpid()}}").touch()
end = time.monotonic() + 30
while not list(folder.glob("struck*")) and time.monotonic() < end:  # ranks agree
    time.sleep(0.01)
time.sleep(0.2)
"""
SCRIPTS = ("launch_node.sh", "launch_nodes.sh", "launch_slurm.sh")


@pytest.fixture
def launch(tmp_path):
    """launch(script, *arguments, does=..., **environment) -> (process, file of what `python` was given)."""
    message = tmp_path / "told"

    def run(script: str, *arguments: str, does: str = "exit 0", **environment):
        tools = {
            "python": f'printf "%s\\n" "$@" > "{message}"\n{does}',
            "srun": 'shift\nexec "$@"',
            "scontrol": f'echo "$@" >> "{tmp_path}/scontrol"\necho first',
            "nvidia-smi": "exit 9",
        }
        folder = tmp_path / "tools"
        folder.mkdir(exist_ok=True)
        for name, text in tools.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (folder / name).chmod(0o755)
        path = f"{folder}:{os.environ['PATH']}"
        settings = {**os.environ, "PATH": path, "PYTHON": str(folder / "python"), **environment}
        process = subprocess.Popen(
            ["bash", f"scripts/{script}", *arguments], cwd=ROOT, env=settings, stderr=subprocess.PIPE, text=True
        )
        return process, message

    return run


def job(**more) -> dict:
    """The environment of a SLURM job on two nodes."""
    return {"SLURM_JOB_ID": "40123", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "RANKS": "8", **more}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_how_to_call_it(script):
    done = subprocess.run(["bash", f"scripts/{script}", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and f"scripts/{script}" in done.stdout and "--config_path RECIPE" in done.stdout
    assert all(line.startswith("# ") for line in done.stdout.splitlines()) and "set -e" not in done.stdout


def test_a_node_passes_everything_on(launch):
    process, message = launch("launch_node.sh", "--config_path", "a b.yaml", "steps=3")
    assert process.wait(30) == 0
    printed = message.read_text().splitlines()
    door = printed.index("train.py")
    assert printed[door + 1 :] == ["--config_path", "a b.yaml", "steps=3"]
    assert printed[:2] == ["-m", "torch.distributed.run"] and set(printed[2:door]) == {
        "--nnodes=1",
        "--nproc_per_node=1",  # there is no GPU
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=localhost:0",  # any free port
        "--rdzv_id=longtake",
        "--shutdown_timeout=280",
    }


def test_several_nodes_meet(launch):
    process, message = launch("launch_nodes.sh", "3", "host:29500", "--config_path", "r.yaml", RANKS="4")
    assert process.wait(30) == 0
    assert {"--nnodes=3", "--nproc_per_node=4", "--rdzv_endpoint=host:29500"} <= set(message.read_text().splitlines())


@pytest.mark.parametrize("arguments", [(), ("2",), ("2", "host:1")])
def test_nodes_without_arguments_are_refused(launch, arguments):
    process, _ = launch("launch_nodes.sh", *arguments)
    assert "give the number of machines, HOST:PORT" in process.communicate(timeout=30)[1]
    assert process.returncode == 2


@pytest.mark.parametrize("script", ["launch_node.sh", "launch_slurm.sh"])
def test_the_status_is_that_of_the_training(launch, tmp_path, script):
    process, _ = launch(script, "--config_path", "r.yaml", "--logdir", str(tmp_path), does="exit 7", **job())
    assert process.wait(30) == 7


@pytest.mark.parametrize("flag", [["--logdir", "{}"], ["--logdir={}"]])
def test_a_job_is_queued_again_only_if_it_asks(launch, tmp_path, flag):
    arguments = ["--config_path", "r.yaml", *(word.format(tmp_path) for word in flag)]
    (tmp_path / "REQUEUE").touch()  # of an earlier job
    process, message = launch("launch_slurm.sh", *arguments, does="exit 2", **job())
    assert process.wait(30) == 2
    assert (tmp_path / "scontrol").read_text() == "show hostnames n[1-2]\n"
    process, message = launch("launch_slurm.sh", *arguments, does=f'touch "{tmp_path}/REQUEUE"', **job())
    assert process.wait(30) == 0
    assert (tmp_path / "scontrol").read_text().splitlines()[-1] == "requeue 40123"
    printed = message.read_text().splitlines()
    assert {"--nnodes=2", "--nproc_per_node=8", "--rdzv_endpoint=first:20123", "--rdzv_id=40123"} <= set(printed)
    assert printed[printed.index("train.py") + 1 :] == arguments


def test_a_job_without_logdir_or_slurm_is_refused(launch, tmp_path):
    process, message = launch("launch_slurm.sh", "--config_path", "r.yaml", **job())
    assert "give --logdir FOLDER" in process.communicate(timeout=30)[1] and process.returncode == 2
    process, message = launch("launch_slurm.sh", "--logdir", str(tmp_path), **job(SLURM_JOB_ID=""))
    assert "submit it by sbatch" in process.communicate(timeout=30)[1] and process.returncode == 2
    assert not message.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_one_worker_and_no_more_than_one(launch, tmp_path, number):
    script = tmp_path / "train.py"
    script.write_text(WORKER.format(folder=tmp_path))
    worker = f'{sys.executable} -S "{script}"'
    process, _ = launch("launch_node.sh", "--config_path", "r.yaml", does=f"{worker} & {worker} & wait")
    wait_for(tmp_path, "ready*", 2)
    process.send_signal(number)
    assert process.wait(30) == 0, process.stderr.read()
    assert len(list(tmp_path.glob("struck*"))) == 1


def test_a_signal_before_there_is_a_worker_ends_it(launch, tmp_path):
    process, _ = launch("launch_node.sh", "--config_path", "r.yaml", does=f'touch "{tmp_path}/ready"; exec sleep 60')
    wait_for(tmp_path, "ready")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 128 + signal.SIGTERM


def wait_for(folder: Path, pattern: str, count: int = 1) -> None:
    """Waits until so many files are there."""
    deadline = time.monotonic() + 30
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.05)
