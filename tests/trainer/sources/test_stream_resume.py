"""A streaming training that stopped in the middle of its videos goes on with them: caches, latents, prompts, switch."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import time

import pytest
import torch

from tests import digits_fixture
from tests.architecture.source import ROOT
from tests.trainer import stream_fixture
from tests.trainer.resume_ranks import fit, losses, state_hash
from tests.trainer.test_resume import ENVIRONMENT, TORCHRUN
from trainer.checkpoint import dcp
from trainer.config import load_recipe

LORA = ["trainer.generator.lora.rank=2", "trainer.critic.lora.rank=2"]
SWITCH = "switch_frames: 9"


@pytest.fixture(scope="module")
def recipe(distill_recipe, tmp_path_factory):
    """recipe(*more) -> (path, overrides) of a training that switches prompts, two blocks deep, checkpoints each 5."""
    path, _ = distill_recipe
    folder = tmp_path_factory.mktemp("stream")
    weights = digits_fixture.model_folder(folder / "two", num_layers=2, ffn_dim=64) / "transformer"
    given = stream_fixture.overrides(folder, path.parent / "prompts.txt", SWITCH, max_frames=26)
    given += ["steps=5", "checkpoint.every=3", "checkpoint.keep=9"]
    roles = [f"trainer.{role}.weights={weights}" for role in ("generator", "teacher", "critic")]
    return lambda *more: (path, [*given, *roles, *more])


def test_lora_on_both_roles_resumes_to_the_bit_with_its_videos(recipe, tmp_path, monkeypatch, caplog):
    config, _ = load_recipe(*recipe(*LORA, "trainer.accumulate=2"))
    whole = fit(config, tmp_path / "whole")
    fit(config, tmp_path / "parts", total=3)
    parts = fit(config, tmp_path / "parts")
    assert state_hash(parts.method) == state_hash(whole.method)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert not caplog.records or all("anew" not in record.message for record in caplog.records)
    videos = note(tmp_path / "whole", 3)["films"]
    assert len(videos) == 2 and all(6 < video["length"] < video["max_frames"] - 4 for video in videos), "in the middle"
    index = dcp.read_index(whole.checkpoint.folder / "step_0000003")
    trained = [name for name in index if name.startswith(("method/optim/", "method/critic_optim/"))]
    assert trained and all("lora_" in name for name in trained)
    own = [name for name in index if dcp.is_own(name)]
    assert {name.split("/")[-1] for name in own} == {"rows@0", "0.keys@0", "0.values@0", "latest@0", "previous@0"}

    # the twins: caches that are not those of the video, and no videos at all, are noticed
    monkeypatch.setattr(dcp, "load", _zeroing(dcp.load))
    shutil.copytree(tmp_path / "whole", tmp_path / "wrong")
    _only(tmp_path / "wrong", 3)
    fit(config, tmp_path / "wrong")
    assert losses(tmp_path / "wrong")[:3] == losses(tmp_path / "whole")[:3]
    assert losses(tmp_path / "wrong")[3:] != losses(tmp_path / "whole")[3:]


def _zeroing(load):
    """Returns a `load` after which the caches' keys are zeros."""

    def wrong(tensors, folder, group):
        load(tensors, folder, group)
        for name, tensor in tensors.items():
            if ".keys@" in name:
                tensor.zero_()

    return wrong


def note(run, step: int) -> dict:
    """Returns what a checkpoint says of its videos."""
    content = json.loads((run / f"checkpoints/step_{step:07d}/state.json").read_text())
    return content["state"]["method"]["source"]


def _only(run, step: int) -> None:
    """Leaves one checkpoint of a run."""
    for folder in (run / "checkpoints").iterdir():
        if folder.name != f"step_{step:07d}":
            shutil.rmtree(folder)


@pytest.mark.parametrize(
    "change, reason",
    [("trainer.source.max_frames=30", "have changed"), ("trainer.accumulate=2", "have changed")],
)
def test_with_other_knobs_the_videos_begin_anew(recipe, tmp_path, caplog, change, reason):
    path, given = recipe("steps=3")
    first = fit(load_recipe(path, given)[0], tmp_path / "run")
    (video,) = first.method.source.videos.values()
    with caplog.at_level(logging.WARNING):
        again = fit(load_recipe(path, [*given, change, "steps=4"])[0], tmp_path / "run")
    assert f"begin anew, with video {video.number}" in caplog.text and reason in caplog.text
    assert {video.number for video in again.method.source.videos.values()} == {video.number}


def test_videos_need_not_be_saved(recipe, tmp_path, caplog):
    path, given = recipe("steps=3", "trainer.source.save_videos=false")
    run = fit(load_recipe(path, given)[0], tmp_path / "run")
    assert not any(dcp.is_own(name) for name in dcp.read_index(run.checkpoint.folder / "step_0000003"))
    with caplog.at_level(logging.WARNING):
        fit(load_recipe(path, [*given, "steps=4"])[0], tmp_path / "run")
    assert "begin anew" in caplog.text and "does not hold them" in caplog.text


def torchrun(recipe, run) -> subprocess.Popen:
    """Starts two ranks on a training."""
    path, given = recipe
    command = [*TORCHRUN, "train.py", "--config_path", str(path), "--logdir", str(run), *given]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def workers(agent: int) -> list[int]:
    """Returns the processes that torchrun started: each is in a session of its own."""
    listed = subprocess.run(["ps", "--ppid", str(agent), "-o", "pid="], capture_output=True, text=True, check=True)
    return [int(number) for number in listed.stdout.split()]


def finish(process: subprocess.Popen) -> str:
    """Returns what a training said; asserts that it ended well."""
    with process:
        said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said[-4000:]
    return said


@pytest.mark.dist
def test_two_ranks_are_killed_and_resume_to_the_bit(recipe, tmp_path, caplog):
    given = recipe(*LORA)
    beside = torchrun(given, tmp_path / "whole")
    killed, saved = tmp_path / "killed", tmp_path / "killed/checkpoints/step_0000003/manifest.json"
    with torchrun((given[0], [*given[1], "steps=100000"]), killed) as process:
        deadline = time.monotonic() + 240
        while not saved.exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=60)[1]
            time.sleep(0.01)
        assert len(ranks := workers(process.pid)) == 2
        for number in (process.pid, *ranks):
            os.kill(number, signal.SIGKILL)
        process.communicate(timeout=60)
    finish(beside)
    _only(killed, 3)
    said = finish(torchrun(given, killed))
    assert "resumed at step 3" in said and "begin anew" not in said
    whole = losses(tmp_path / "whole")
    assert len(whole) == 5 and losses(killed) == whole
    assert weights(killed) == weights(tmp_path / "whole")

    alone = tmp_path / "alone"
    shutil.copytree(tmp_path / "whole", alone)
    _only(alone, 3)
    with caplog.at_level(logging.WARNING):
        fit(load_recipe(*given)[0], alone)
    assert "begin anew" in caplog.text and "another number of ranks" in caplog.text
    assert losses(alone)[:3] == whole[:3] and losses(alone)[3] != whole[3]


def weights(run) -> dict[str, float]:
    """Returns a number for each tensor of a run's export, equal only if the tensors are."""
    from safetensors.torch import load_file

    found = {}
    for path in sorted((run / "export").rglob("*.safetensors")):
        found |= {f"{path.name}/{name}": hash(t.float().numpy().tobytes()) for name, t in load_file(path).items()}
    assert found and all(isinstance(number, int) for number in found.values())
    return found


def test_a_tensor_of_one_rank_is_named_after_it(tmp_path):
    tree, tensors = dcp.split({"a": dcp.Own(torch.ones(2)), "b": [torch.zeros(1)]})
    assert json.loads(json.dumps(tree)) == tree and set(tensors) == {"a@0", "b/0"}
    assert torch.equal(dcp.join(tree, tensors)["a"], torch.ones(2))
    assert dcp.join(tree, {"b/0": torch.zeros(1)})["a"] is None
    assert [name for name in tensors if dcp.is_own(name)] == ["a@0"]
