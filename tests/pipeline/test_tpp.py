"""Steps on several ranks make the bits of one process, with a decoder rank and without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.config import load_recipe
from pipeline.tpp import Stages
from tests.architecture.source import ROOT
from tests.pipeline import tpp_worker


@pytest.fixture(autouse=True)
def one_thread():
    """The ranks' number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of what five ranks made. One launch for all cases."""
    folder = tmp_path_factory.mktemp("tpp")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=5"]
    command += ["-m", "tests.pipeline.tpp_worker", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.dist
@pytest.mark.parametrize("name", tpp_worker.CASES)
def test_ranks_make_the_bits_of_one_process(made, name):
    sampler, model, event, *_ = tpp_worker.CASES[name]
    wanted = tpp_worker.plain(sampler, model, event)
    for video in torch.load(made / f"{name}.pt", weights_only=True)["videos"]:
        assert torch.equal(video, wanted)


@pytest.mark.dist
def test_rate_is_that_of_the_slowest_stage(made):
    """fps = frames / max(stage): two ranks run two steps each, the third decodes."""
    seconds = torch.load(made / "rate.pt", weights_only=True)["seconds"]
    assert seconds == pytest.approx(2 * tpp_worker.STEP_SECONDS, rel=0.1)


def test_events_of_the_cases_change_the_video():
    """What the ranks are compared on depends on the switch, the portrait and the sound."""
    first, second = (tpp_worker.plain("three", "avatar", event) for event in ("portrait", "switch"))
    assert torch.equal(first[:, :9], second[:, :9]) and not torch.equal(first[:, 9:12], second[:, 9:12])


@pytest.mark.parametrize(
    ("steps", "world", "decoder", "sizes"),
    [
        (4, 1, "auto", [4]),
        (4, 2, "auto", [2, 2]),
        (4, 3, "auto", [2, 2, 0]),
        (4, 4, "auto", [1, 1, 1, 1]),
        (4, 5, "auto", [1, 1, 1, 1, 0]),
        (4, 2, "own", [4, 0]),
        (4, 3, "shared", [2, 1, 1]),
        (3, 3, "auto", [1, 1, 1]),
        (3, 3, "own", [2, 1, 0]),
    ],
)
def test_steps_are_shared(steps, world, decoder, sizes):
    stages = Stages.plan(steps, world, decoder)
    runs = [stages.steps(place) for place in range(world)]
    assert [len(run) for run in runs] == sizes
    assert [k for run in runs for k in run] == list(range(steps))


@pytest.mark.parametrize(
    ("steps", "world", "decoder"), [(4, 6, "auto"), (4, 5, "shared"), (4, 1, "own"), (3, 5, "own")]
)
def test_ranks_without_work_are_refused(steps, world, decoder):
    with pytest.raises(ValueError, match=f"{world} ranks cannot share {steps} steps"):
        Stages.plan(steps, world, decoder)


RECIPE = """
model: {path: assets/digits, dtype: fp32}
pipeline: {name: causal}
executor: {name: tpp}
sampler: {name: multi_step, solver: euler, num_steps: 4, guidance: 1.0}
generation: {cache: {content: same_step, window_frames: 12}}
text: {dtype: fp32}
threads: 1
"""


def start_door(folder, prompts, world: int, *flags: str) -> subprocess.Popen:
    """Starts inference.py with videos of one line each; on one rank it is the plain one."""
    recipe, lines = folder / "tpp.yaml", folder / "prompts.txt"
    recipe.write_text(RECIPE)
    lines.write_text("".join(f"{line}\n" for line in prompts))
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"] if world > 1 else []
    command = [sys.executable, *launch, "inference.py", "--config_path", str(recipe), "--data_path", str(lines), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def processes_of(launcher: int) -> list[int]:
    """Returns the children of torchrun."""
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


@pytest.mark.dist
def test_a_killed_rank_ends_all_and_keeps_what_is_finished(tmp_path):
    """The first video is whole; of the second nothing is left under its name."""
    one = tmp_path / "one"
    lines, short = ["a red three moves left", "a blue five moves right"], ["--num_output_frames", "9"]
    with start_door(tmp_path, lines[:1], 1, *short, "--output_folder", str(one)) as alone:
        assert alone.wait(120) == 0, alone.stderr.read()
    out = tmp_path / "three"
    with start_door(tmp_path, lines[:1], 3, *short, "--output_folder", str(out)) as process:
        assert process.wait(180) == 0, process.stderr.read()
    name = f"{lines[0]}-0.mp4"
    whole = (out / name).read_bytes()
    assert whole == (one / name).read_bytes()
    with start_door(tmp_path, lines, 3, "--num_output_frames", "9000", "--output_folder", str(out)) as process:
        half = out / f"{lines[1]}-0.partial.mp4"
        end = time.monotonic() + 120
        while not (half.exists() and half.stat().st_size) and time.monotonic() < end:
            time.sleep(0.1)
        ranks = processes_of(process.pid)
        assert half.exists() and len(ranks) == 3
        os.kill(ranks[1], signal.SIGKILL)
        begin = time.monotonic()
        said = process.communicate(timeout=60)[1]
        assert process.returncode != 0 and time.monotonic() - begin < 10
        assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert "SIGKILL" in said or "Signal 9" in said
    assert (out / name).read_bytes() == whole and not (out / f"{lines[1]}-0.mp4").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["generation.cache.content=clean"], "cache.content is clean"),
        (["pipeline.name=bidirectional"], "write pipeline.name=causal"),
        (["output.resume=true"], "writes no snapshots"),
        (["executor.decoder_rank=none"], "write one of auto, own, shared"),
    ],
)
def test_what_ranks_cannot_share_is_refused(tmp_path, changes, said):
    (tmp_path / "tpp.yaml").write_text(RECIPE)
    with pytest.raises(ValueError, match=said):
        load_recipe(tmp_path / "tpp.yaml", changes)
