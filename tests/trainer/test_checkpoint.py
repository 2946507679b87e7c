"""Checkpoints: complete or absent, whatever happens and whenever."""

from __future__ import annotations

import logging
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.architecture.source import ROOT
from trainer import checkpoint as module
from trainer.checkpoint import Checkpoint, CheckpointConfig
from trainer.loop import Loop

WRITER = """
import sys, torch
from trainer.checkpoint import Checkpoint, CheckpointConfig
saver = Checkpoint(sys.argv[1], CheckpointConfig(every=1, keep=2))
for step in range(1, 100_000):
    saver.save({"w": torch.full((200_000,), float(step))}, step)
"""


def saver(run, keep=2) -> Checkpoint:
    return Checkpoint(run, CheckpointConfig(every=1, keep=keep))


def state(step: int) -> dict:
    return {"w": torch.full((1000,), float(step)), "nested": [{"a": 1, "b": (0.5, None)}]}


def test_the_newest_comes_back_and_older_ones_are_pruned(tmp_path):
    kept = saver(tmp_path)
    assert kept.load() is None
    for step in (5, 10, 999_999, 1_000_000):
        kept.save(state(step), step)
    found = kept.load()
    assert found["step"] == 1_000_000 and found["nested"] == [{"a": 1, "b": (0.5, None)}]
    assert torch.equal(found["w"], state(1_000_000)["w"])
    assert sorted(p.name for p in kept.folder.iterdir()) == ["step_0999999", "step_1000000"]


@pytest.mark.parametrize("call", ["torch.save", "_hash", "_sync", "Path.rename", "shutil.rmtree"])
def test_a_stop_at_any_moment_of_a_save_leaves_a_loadable_one(tmp_path, monkeypatch, call):
    kept = saver(tmp_path)
    kept.save(state(1), 1)
    owner, _, name = call.rpartition(".")
    target = {"": module, "torch": torch, "Path": module.Path, "shutil": module.shutil}[owner]
    real, stops = getattr(target, name), 0
    for stop_at in range(1, 8):  # the first, second, ... time that it is called; then not at all
        calls = iter(range(1, 100))

        def stop(*arguments, calls=calls, stop_at=stop_at, **options):
            if next(calls) == stop_at:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(target, name, stop)
            try:
                kept.save(state(stop_at + 1), stop_at + 1)
            except KeyboardInterrupt:
                stops += 1
        found = saver(tmp_path).load()
        assert found is not None and torch.equal(found["w"], state(found["step"])["w"])
    assert stops >= 1
    assert found["step"] == 8


def test_a_kill_in_the_middle_leaves_a_loadable_one(tmp_path):
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        folder = tmp_path / "checkpoints"
        while not list(folder.glob("step_???????")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        for _ in range(200):  # until a save is under way
            if list(folder.glob("*.tmp/state.pt")):
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = saver(tmp_path).load()
    assert found is not None and bool((found["w"] == found["step"]).all())
    saver(tmp_path).save(state(500_000), 500_000)  # what the kill left behind is no obstacle
    assert saver(tmp_path).load()["step"] == 500_000


def truncate(folder):
    path = folder / "state.pt"
    path.write_bytes(path.read_bytes()[:-20])


def flip(folder):
    content = bytearray((folder / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "state.pt").write_bytes(bytes(content))


DAMAGE = {
    "truncated": truncate,
    "one bit": flip,
    "no state": lambda folder: (folder / "state.pt").unlink(),
    "half a manifest": lambda folder: (folder / "manifest.json").write_text('{"step": 3, "sta'),
    "empty manifest": lambda folder: (folder / "manifest.json").write_text("{}"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_is_passed_over_with_a_warning(tmp_path, caplog, damage):
    kept = saver(tmp_path)
    kept.save(state(1), 1)
    DAMAGE[damage](kept.save(state(2), 2))
    with caplog.at_level(logging.WARNING):
        assert kept.load()["step"] == 1
    if damage != "no manifest":  # without one it was never finished
        assert "step_0000002 is damaged" in caplog.text
    DAMAGE[damage](kept.folder / "step_0000001")
    if damage != "no manifest":
        with pytest.raises(ValueError, match="every checkpoint in .* is damaged; start anew with --no-auto-resume"):
            kept.load()


def test_a_full_disk_is_an_oserror_that_keeps_the_older_ones(tmp_path):
    kept = saver(tmp_path)
    kept.save(state(1), 1)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
    try:
        with pytest.raises(OSError, match="cannot be written .* earlier checkpoints are kept"):
            kept.save({"w": torch.zeros(100_000)}, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert kept.load()["step"] == 1
    kept.save(state(2), 2)
    assert kept.load()["step"] == 2


def test_nothing_is_executed_by_loading(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    kept = saver(tmp_path)
    kept.save({"bomb": Bomb()}, 1)
    with pytest.raises(Exception, match="(?i)weights.only|unsupported"):
        kept.load()
    assert not (tmp_path / "boom").exists()


class Method:
    """A method of one weight."""

    def __init__(self, size=3):
        self.model = torch.nn.Linear(size, 1)

    def step(self, step):
        return {"loss": torch.tensor(1.0)}

    def state_dict(self):
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state):
        self.model.load_state_dict(state["model"])


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    Loop(Method(), 2, saver(tmp_path)).fit()
    with pytest.raises(ValueError, match="checkpoint of step 2 is of another configuration .* --no-auto-resume"):
        Loop(Method(4), 3, saver(tmp_path)).fit()
    Loop(Method(4), 3, saver(tmp_path)).fit(resume=False)
    assert Loop(Method(4), 3, saver(tmp_path)).resume() == 3


def test_steps_between_saves(tmp_path):
    loop = Loop(Method(), 7, Checkpoint(tmp_path, CheckpointConfig(every=3, keep=5)))
    loop.fit()
    assert [p.name for p in loop.checkpoint.complete()] == ["step_0000003", "step_0000006", "step_0000007"]
    assert Loop(Method(), 7, loop.checkpoint).resume() == 7


@pytest.mark.parametrize("wrong", [{"every": 0}, {"keep": 0}])
def test_wrong_knobs(wrong):
    with pytest.raises(ValueError, match="must be at least 1"):
        CheckpointConfig(**wrong).check()
