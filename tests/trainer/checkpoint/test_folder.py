"""Checkpoints: complete or absent, whatever happens and whenever; what they hold, and what they refuse."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import resource
import subprocess
import sys

import pytest
import torch

from tests.architecture.source import ROOT
from trainer.checkpoint import dcp
from trainer.checkpoint import folder as module
from trainer.checkpoint.folder import Checkpoint, CheckpointConfig
from utils.config.field import check


def saver(run, keep=2, **options) -> Checkpoint:
    return Checkpoint(run, CheckpointConfig(every=1, keep=keep, **options))


def state(step: int) -> dict:
    return {"w": torch.full((1000,), float(step)), "nested": [{"a": step, "b": (0.1 * step, None)}], "n": "text"}


def save(kept: Checkpoint, content: dict, step: int):
    """Saves and waits; returns the folder."""
    kept.save(content, step)
    kept.wait()
    return kept.folder / f"step_{step:07d}"


def load(kept: Checkpoint) -> tuple[int, dict]:
    """Returns step and state of the newest."""
    found = kept.find()
    return found.step, found.read(state(0))


def names(kept: Checkpoint) -> list[str]:
    return sorted(p.name for p in kept.folder.iterdir())


def equal(a, b) -> bool:
    """True for trees of equal tensors and values, types included."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_the_newest_comes_back_and_older_ones_are_pruned(tmp_path):
    kept = saver(tmp_path)
    assert kept.find() is None
    for step in (5, 10, 9_999_999, 10_000_000):  # by number, not by name
        save(kept, state(step), step)
    step, found = load(kept)
    assert step == 10_000_000 and equal(found, state(step))
    assert names(kept) == ["step_10000000", "step_9999999"]


def test_every_nth_is_kept_for_ever(tmp_path):
    kept = saver(tmp_path, keep=1, keep_every=3)
    for step in range(1, 9):
        save(kept, state(step), step)
    assert names(kept) == ["step_0000003", "step_0000006", "step_0000008"]


def test_all_that_a_state_may_hold_comes_back(tmp_path):
    content = {
        "numbers": {"zero": torch.tensor(1.5), "none": torch.empty(0, 3), "half": torch.randn(3, 4).bfloat16()},
        "whole": torch.arange(6).reshape(2, 3).T,  # not contiguous
        "names": {"a.b/c": torch.ones(1), "a": {"b": torch.zeros(2)}},
        "plain": {
            "int": 1 << 60,
            "float": 0.1 + 0.2,
            "big": float("inf"),
            "bool": True,
            "text": 'a"\u00e9',
            "no": None,
        },
        "tuple": (1, [2, (3.0, "x"), []], {}),
    }
    kept = saver(tmp_path)
    save(kept, content, 1)
    like = copy.deepcopy(content)
    for tensor in dcp.split(like)[1].values():
        tensor.zero_()
    assert not equal(like, content)
    found = kept.find().read(like)
    assert equal(found, content)
    assert found["whole"] is not like["whole"] and found["whole"].data_ptr() == like["whole"].data_ptr()


@pytest.mark.parametrize("wrong", [{1: torch.ones(1)}, {"a": {"b": object()}}, {"a": b"bytes"}, {"a": {"<tuple>": 1}}])
def test_what_a_state_may_not_hold_is_named(tmp_path, wrong):
    with pytest.raises(ValueError, match="a checkpoint holds tensors, numbers, text"):
        saver(tmp_path).save(wrong, 1)
    assert not (tmp_path / "checkpoints").exists()


def test_the_copy_is_taken_before_save_returns(tmp_path):
    kept, content = saver(tmp_path), {"w": torch.ones(2_000_000), "n": [1]}
    kept.save(content, 1)
    content["w"].fill_(2.0)
    content["n"].append(2)
    kept.save({"w": content["w"]}, 2)  # waits for the one before
    content["w"].fill_(3.0)
    kept.wait()
    for folder, value, rest in zip(kept.complete(), (1.0, 2.0), ([1], None), strict=True):
        found = module.Saved(folder, None).read({"w": torch.zeros(2_000_000)})
        assert bool((found["w"] == value).all()) and found.get("n") == rest


@pytest.mark.parametrize(
    "call",
    ["dcp.write_json", "file_hash", "sync_folder", "Path.rename", "shutil.rmtree", "torch.save", "Checkpoint._prune"],
)
def test_a_stop_at_any_moment_of_a_save_leaves_a_loadable_one(tmp_path, monkeypatch, call):
    save(saver(tmp_path), state(1), 1)
    owner, _, name = call.rpartition(".")
    owners = {"": module, "torch": torch, "Path": module.Path, "shutil": module.shutil, "dcp": dcp}
    target = owners.get(owner, Checkpoint)
    real, stops = getattr(target, name), 0

    class Stop(BaseException):
        """What nothing catches, like the end of the process."""

    for stop_at in range(1, 8):  # the first, second, ... time that it is called; then not at all
        calls = iter(range(1, 100))

        def stop(*arguments, calls=calls, stop_at=stop_at, **options):
            if next(calls) == stop_at:
                raise Stop
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(target, name, stop)
            try:
                save(saver(tmp_path, keep=1), state(stop_at + 1), stop_at + 1)
            except (Stop, OSError):
                stops += 1
        step, found = load(saver(tmp_path))
        assert equal(found, state(step))
    assert stops >= 1
    assert step == 8


def test_twenty_kills_leave_a_loadable_one_each(tmp_path):
    command = [sys.executable, "-m", "tests.trainer.kill_saves", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    reached, half = map(int, done.stdout.split())
    assert reached >= 4, "hardly a save was finished"
    assert half >= 4, "hardly a kill hit a save"
    kept = saver(tmp_path)
    save(kept, state(900_000), 900_000)  # what the kills left behind is not an obstacle, and is removed
    assert not [name for name in names(kept) if name.endswith(".tmp")]


def truncate(folder):
    path = folder / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-20])


def flip(name):
    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(bytes(content))

    return damage


DAMAGE = {
    "truncated": truncate,
    "one bit": flip("__0_0.distcp"),
    "one bit of the index": flip("tensors.json"),
    "one bit of the state": flip("state.json"),
    "no tensors": lambda folder: (folder / "__0_0.distcp").unlink(),
    "half a manifest": lambda folder: (folder / "manifest.json").write_text('{"step": 3, "fil'),
    "empty manifest": lambda folder: (folder / "manifest.json").write_text("{}"),
    "manifest of nothing": lambda folder: (folder / "manifest.json").write_text('{"step": 3, "files": {}}'),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_is_passed_over_with_a_warning(tmp_path, caplog, damage):
    kept = saver(tmp_path)
    save(kept, state(1), 1)
    DAMAGE[damage](save(kept, state(2), 2))
    with caplog.at_level(logging.WARNING):
        assert load(kept)[0] == 1
    if damage != "no manifest":  # without one it was never finished
        assert "step_0000002 is damaged" in caplog.text
    DAMAGE[damage](kept.folder / "step_0000001")
    if damage != "no manifest":
        with pytest.raises(ValueError, match="every checkpoint in .* is damaged; start anew with --no-auto-resume"):
            kept.find()


def test_pruning_spares_the_good_ones_before_a_damaged_one(tmp_path):
    kept = saver(tmp_path, keep=1)
    save(kept, state(10), 10)
    again = saver(tmp_path, keep=2)
    flip("__0_0.distcp")(save(again, state(20), 20))
    resumed = saver(tmp_path, keep=1)
    assert load(resumed)[0] == 10
    save(resumed, state(15), 15)  # the newest good one, though a damaged 20 is there
    assert load(saver(tmp_path))[0] == 15


def test_a_checkpoint_of_the_earlier_kind_is_named(tmp_path):
    folder = tmp_path / "checkpoints/step_0000007"
    folder.mkdir(parents=True)
    torch.save({}, folder / "state.pt")
    (folder / "manifest.json").write_text('{"step": 7, "state.pt": "0"}')
    with pytest.raises(ValueError, match="step_0000007 was written by an earlier version.*--no-auto-resume"):
        saver(tmp_path).find()


def test_a_full_disk_is_an_oserror_that_keeps_the_older_ones(tmp_path):
    kept = saver(tmp_path)
    save(kept, state(1), 1)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
    try:
        kept.save({"w": torch.zeros(100_000)}, 2)  # the error comes when it is waited for
        with pytest.raises(OSError, match="step_0000002.tmp cannot be written .* earlier checkpoints are kept"):
            kept.save({"w": torch.zeros(1)}, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert names(kept) == ["step_0000001"], "what was half written holds space"
    assert load(kept)[0] == 1
    save(kept, state(2), 2)
    assert load(kept)[0] == 2


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_nothing_is_executed_by_loading(tmp_path):
    kept = saver(tmp_path)
    folder = save(kept, state(1), 1)
    assert not (folder / ".metadata").exists()
    (folder / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "metadata")))
    index = json.loads((folder / "tensors.json").read_text())
    torch.save(Bomb(tmp_path / "tensor"), folder / "__0_0.distcp")
    index["w"]["parts"][0][3:] = [0, (folder / "__0_0.distcp").stat().st_size]
    (folder / "tensors.json").write_text(json.dumps(index))
    files = {p.name: module.file_hash(p) for p in folder.iterdir() if p.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps({"step": 1, "files": files}))  # forged, so all hashes hold
    with pytest.raises(OSError, match="cannot be read .*[Ww]eights.only"):
        load(kept)
    assert not list(tmp_path.glob("metadata")) and not list(tmp_path.glob("tensor"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"every": 0}, "every is 0; write 1"),
        ({"keep": 0}, "keep is 0; write 1"),
        ({"every": 100, "keep_every": 150}, "a multiple of checkpoint.every, 100"),
        ({"keep_every": -1}, "keep_every is -1; write 0"),
    ],
)
def test_wrong_knobs(wrong, words):
    with pytest.raises(ValueError, match=words):
        check(CheckpointConfig(**wrong))
