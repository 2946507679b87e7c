"""Steps on several ranks make the bits of one process, with a decoder rank and without."""

from __future__ import annotations

import os
import random
import re
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
from tests.pipeline import tpp_fault, tpp_worker


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


LINES = ["a red three moves left", "a blue five moves right"]


def start_door(folder, prompts, world: int, *flags: str, door=("inference.py",)) -> subprocess.Popen:
    """Starts inference.py with videos of one line each; on one rank it is the plain one."""
    recipe, lines = folder / "tpp.yaml", folder / "prompts.txt"
    recipe.write_text(RECIPE)
    lines.write_text("".join(f"{line}\n" for line in prompts))
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"] if world > 1 else []
    command = [sys.executable, *launch, *door, "--config_path", str(recipe), "--data_path", str(lines), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def processes_of(launcher: int) -> list[int]:
    """Returns the children of torchrun."""
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


def wait_for(ready, seconds: float = 120) -> None:
    """Waits until `ready()` is true; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The bytes of a first video, made by three ranks as by one."""
    folder, short = tmp_path_factory.mktemp("finished"), ["--num_output_frames", "9"]
    made = []
    for world in (1, 3):
        out = folder / str(world)
        with start_door(folder, LINES[:1], world, *short, "--output_folder", str(out)) as process:
            said = process.communicate(timeout=180)[1]
        assert process.returncode == 0, said
        made.append({path.name: path.read_bytes() for path in out.iterdir() if path.name.startswith(LINES[0])})
    name = f"{LINES[0]}-0.mp4"
    assert made[0][name] == made[1][name]
    return made[1]


def put(finished: dict[str, bytes], out: Path) -> None:
    """Writes the finished video into a folder."""
    out.mkdir()
    for name, content in finished.items():
        (out / name).write_bytes(content)


def check_finished(finished: dict[str, bytes], out: Path) -> None:
    """The first video is whole; of the second nothing is left under its name."""
    assert {name: (out / name).read_bytes() for name in finished} == finished
    assert not (out / f"{LINES[1]}-0.mp4").exists() and not (out / f"{LINES[1]}-0.json").exists()


@pytest.mark.dist
@pytest.mark.parametrize("when", ["while it writes", "at a random time"])
def test_a_killed_rank_ends_all_and_keeps_what_is_finished(tmp_path, finished, when):
    """Also while the ranks start, load or meet: whoever is killed, whenever."""
    out, draw = tmp_path / "three", random.SystemRandom()
    rank, delay = (1, 0.0) if when == "while it writes" else (draw.randrange(3), draw.uniform(0, 12))
    put(finished, out)
    with start_door(tmp_path, LINES, 3, "--num_output_frames", "9000", "--output_folder", str(out)) as process:
        wait_for(lambda: len(processes_of(process.pid)) == 3)
        half = out / f"{LINES[1]}-0.partial.mp4"
        if when == "while it writes":
            wait_for(lambda: half.exists() and half.stat().st_size)
        ranks = processes_of(process.pid)
        time.sleep(delay)
        os.kill(ranks[rank], signal.SIGKILL)
        begin = time.monotonic()
        said = process.communicate(timeout=60)[1]
        drawn = f"rank {rank} was killed after {delay:.2f} s:\n{said}"
        assert process.returncode != 0 and time.monotonic() - begin < 10, drawn
        assert not any(Path(f"/proc/{pid}").exists() for pid in ranks), drawn
    assert f"(SIGKILL) received by PID {ranks[rank]}" in said, drawn
    check_finished(finished, out)


@pytest.mark.dist
def test_a_fault_of_one_rank_ends_all_and_shows_its_trace(tmp_path, finished):
    out = tmp_path / "three"
    put(finished, out)
    door, flags = ("-m", "tests.pipeline.tpp_fault"), ["--num_output_frames", "9000", "--output_folder", str(out)]
    with start_door(tmp_path, LINES, 3, *flags, door=door) as process:
        said = process.communicate(timeout=120)[1]
    moment = re.search(rf"{tpp_fault.FAULT} at (\S+)", said)
    assert process.returncode != 0 and time.time() - float(moment[1]) < 10
    trace = said[said.index("Traceback") :].partition(tpp_fault.FAULT)[0]
    assert "pipeline/tpp.py" in trace and "in _follow" in trace and "RuntimeError" in trace
    for rank in (0, 2):
        assert f"rank {rank} ends, because rank 1" in said
    check_finished(finished, out)


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
