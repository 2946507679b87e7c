"""A run that was stopped goes on as if nothing had happened: on as many ranks to the bit, on others nearly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tolerance
from tests.architecture.source import ROOT
from tests.float64 import fp32_is_float64
from tests.trainer.resume_ranks import fit, losses, state_hash
from trainer.build import build
from trainer.checkpoint import dcp
from trainer.config import load_recipe

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
KNOBS = ["steps=8", "checkpoint.every=3", "checkpoint.keep=9"]


def give_checkpoint(source: Path, run: Path, step: int) -> Path:
    """Copies one checkpoint of a run into a new run's folder."""
    name = f"checkpoints/step_{step:07d}"
    shutil.copytree(source / name, run / name)
    return run


@pytest.fixture(scope="module")
def played(recipe, distill_recipe, tmp_path_factory):
    """(folder, what each of two ranks told) of `resume_ranks`; next to it `one`, a run on one rank."""
    folder = tmp_path_factory.mktemp("ranks")
    distill, clips = distill_recipe
    gan = ["trainer.loss={name: gan, discriminator: {layers: [0], ffn_dim: 32}}", "trainer.source.prompts="]
    jobs = {
        "flow": [str(recipe), KNOBS],
        "muon": [str(recipe), [*KNOBS, "trainer.optim.name=muon"]],
        "gan": [str(distill), ["steps=4", "checkpoint.every=3", *gan, f"trainer.source.clips={clips}"]],
    }
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with fp32_is_float64():
        fit(load_recipe(*jobs["flow"])[0], folder / "one")
    for name in ("from_one", "from_one_copies"):
        give_checkpoint(folder / "one", folder / name, 3)
    command = [*TORCHRUN, "-m", "tests.trainer.resume_ranks", str(folder / "jobs.json"), str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.dist
@pytest.mark.parametrize("job", ["flow", "muon", "gan"])
def test_two_ranks_resume_to_the_bit(played, job):
    folder, ranks = played
    for rank in ranks:
        message = rank["exact"][job]
        assert message["whole"] == message["parts"] and message["sharded"] > 20
    assert ranks[0]["exact"][job]["whole"] != ranks[1]["exact"][job]["whole"], "each holds its own part"
    whole = losses(folder / job / "whole")
    assert len(whole) == (4 if job == "gan" else 8) and whole == losses(folder / job / "parts")


@pytest.mark.dist
def test_twice_and_half_the_ranks_go_on_alike(played, config):
    folder, _ = played
    with fp32_is_float64():
        fit(config(*KNOBS), give_checkpoint(folder / "flow/whole", folder / "from_two", 3))
    for before, after in (("one", "from_one"), ("one", "from_one_copies"), ("flow/whole", "from_two")):
        expected = losses(folder / before)[3:6]
        assert losses(folder / after)[:3] == pytest.approx(expected, rel=tolerance.EXACT), (before, after)
        assert len({round(loss, 4) for loss in expected}) == 3


@pytest.mark.dist
def test_all_ranks_stop_at_the_nan_of_one_and_name_its_prompts(played):
    folder, ranks = played
    message = [rank["not_a_number"] for rank in ranks]
    last = folder / "nan/checkpoints/step_0000003"
    for rank in message:
        assert rank["error"].startswith("the loss is nan at step 4; prompts: " + message[1]["prompts"])
        assert rank["error"].endswith(f"the last good checkpoint is {last}")
    assert message[0]["prompts"] != message[1]["prompts"]
    assert [p.name for p in (folder / "nan/checkpoints").iterdir()] == [last.name]


@pytest.mark.dist
def test_all_ranks_raise_what_one_could_not_write(played):
    for rank in played[1]:
        assert (
            "step_0000006.tmp cannot be written ([Errno 28] No space left on device, rank 1)"
            in rank["full_disk"]["error"]
        )
        assert rank["full_disk"]["left"] == ["step_0000003"]


@pytest.mark.dist
def test_all_ranks_pass_over_what_one_finds_damaged(played):
    assert [rank["damaged"]["step"] for rank in played[1]] == [6, 6]


def test_lora_saves_its_adapters_alone_and_resumes_to_the_bit(config, tmp_path):
    knobs = (*KNOBS, "trainer.generator.lora.rank=2", "trainer.ema.start_step=5")
    whole = fit(config(*knobs), tmp_path / "whole")
    fit(config(*knobs), tmp_path / "parts", total=3)
    parts = fit(config(*knobs), tmp_path / "parts")
    assert state_hash(parts.method) == state_hash(whole.method)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    saved = dcp.read_index(whole.checkpoint.folder / "step_0000003")
    assert all("lora_" in name for name in saved)
    assert {name.split("/")[1] for name in saved} == {"generator", "ema", "optim"}
    with pytest.raises(ValueError, match="this configuration.*trainer.generator.lora.rank: 2 -> 3"):
        build(config(*knobs, "trainer.generator.lora.rank=3"), tmp_path / "parts").resume()


def start(recipe: Path, run: Path, *launcher: str, **environment) -> subprocess.Popen:
    """Starts two ranks on a training that would never end."""
    command = [*launcher, "--config_path", str(recipe), "--logdir", str(run)]
    command += ["steps=1000000", "checkpoint.every=1000000"]
    settings = {**ENVIRONMENT, "PYTHON": sys.executable, "RANKS": "2", **environment}
    return subprocess.Popen(command, cwd=ROOT, env=settings, stderr=subprocess.PIPE, text=True)


def wait_for_steps(process: subprocess.Popen, run: Path, number: int) -> None:
    """Waits until a training reached a step."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        rows = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
        if rows and rows[-1].endswith("}") and json.loads(rows[-1])["step"] >= number:
            return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    process.terminate()
    pytest.fail(process.communicate(timeout=60)[1])


def saved_step(run: Path) -> int:
    """Returns the step of the newest checkpoint."""
    return max(int(folder.name.partition("_")[2]) for folder in (run / "checkpoints").iterdir())


@pytest.mark.dist
def test_signals_let_all_ranks_save_and_ask_for_more(recipe, tmp_path):
    run, reached = tmp_path / "run", 0
    tools = slurm(tmp_path / "tools")
    job = {"SLURM_JOB_ID": "31", "SLURM_JOB_NODELIST": "n[1]", "PATH": f"{tools}:{os.environ['PATH']}"}
    for number, launcher, environment in (
        (signal.SIGTERM, [*TORCHRUN, "train.py"], {}),  # to torchrun, which passes it on
        (signal.SIGTERM, ["bash", "scripts/launch_node.sh"], {}),  # passed on to one worker, as SIGUSR1
        (signal.SIGUSR1, ["bash", "scripts/launch_slurm.sh"], job),  # as --signal=B:USR1@300 does
    ):
        with start(recipe, run, *launcher, **environment) as process:
            wait_for_steps(process, run, reached + 2)
            assert not (run / "REQUEUE").exists(), "a mark that is older than the run"
            process.send_signal(number)
            error = process.communicate(timeout=120)[1]
        assert process.returncode == (1 if "train.py" in launcher else 0), error  # torchrun's own status says nothing
        assert (run / "REQUEUE").exists() and saved_step(run) > reached + 2
        reached = saved_step(run)
    assert (tools / "said").read_text().splitlines() == ["show hostnames n[1]", "requeue 31"]
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(reached)), "a step was lost or done twice"


def slurm(folder: Path) -> Path:
    """Returns a folder with an `srun` that runs its command here and a `scontrol` that writes down what it was told."""
    folder.mkdir()
    (folder / "srun").write_text('#!/usr/bin/env bash\nshift\nexec "$@"\n')
    (folder / "scontrol").write_text(
        f'#!/usr/bin/env bash\necho "$@" >> "{folder}/said"\nif [ "$1" = show ]; then echo localhost; echo other; fi\n'
    )
    for tool in folder.iterdir():
        tool.chmod(0o755)
    return folder
