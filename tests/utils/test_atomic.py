"""A file is whole or absent."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.atomic import GrowingFile, atomic_write, new_file, write_json, write_tensors
from utils.data.latents import write_shard
from utils.data.lmdb_store import write_lmdb
from utils.media.gif import write_gif
from utils.media.image import contact_sheet
from utils.media.mp4 import VideoWriter
from wan.checkpoint.tensor_file import write_safetensors


def _content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_content_replaces_the_old_one(tmp_path):
    atomic_write(tmp_path / "new/a.bin", b"one")
    atomic_write(tmp_path / "new/a.bin", lambda file: file.write(b"two"))
    assert _content(tmp_path / "new") == {"a.bin": b"two"}


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.EACCES, "no")])
def test_a_failure_leaves_the_old_content(tmp_path, error):
    def fail(file):
        file.write(b"half")
        raise error

    atomic_write(tmp_path / "a.bin", b"old")
    with pytest.raises(type(error)) as caught:
        atomic_write(tmp_path / "a.bin", fail)
    assert caught.value is error
    assert _content(tmp_path) == {"a.bin": b"old"}


def test_a_full_disk_names_the_file(tmp_path):
    def fail(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left .* free space: .*a\.bin") as caught:
        atomic_write(tmp_path / "a.bin", fail)
    assert caught.value.errno == errno.ENOSPC and _content(tmp_path) == {}


def test_json_is_plain(tmp_path):
    @dataclass
    class Report:
        path: Path
        scores: tuple

    value = {"r": Report(Path("a/b"), (1, float("nan"))), 3: np.float32(0.5), "t": torch.tensor([1, 2]), "u": "\u732b"}
    value |= {"inf": torch.tensor(float("inf")), "none": None, "yes": True}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    expected = {"r": {"path": "a/b", "scores": [1, None]}, "3": 0.5, "t": [1, 2], "u": "\u732b"}
    assert json.loads(text) == expected | {"inf": None, "none": None, "yes": True}
    assert text.endswith("}\n") and "\u732b" in text


def test_json_refuses_objects(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "a.json", {"a": object()})
    assert _content(tmp_path) == {}


def _writers(folder: Path) -> dict:
    """Returns file -> a function that writes it, one for each way in which files are written."""
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    tensors = {"a": torch.zeros(3)}

    def grow(path):
        file = GrowingFile(path, path.with_suffix(".partial"))
        file.write(b"all")
        file.finish()

    def write_mp4(path):
        with VideoWriter(path, 8) as video:
            video.write(frames)

    calls = {
        "a.bin": lambda path: atomic_write(path, b"content"),
        "a.json": lambda path: write_json(path, {"a": 1}),
        "a.grown": grow,
        "a.safetensors": lambda path: write_tensors(path, tensors),
        "weights.safetensors": lambda path: write_safetensors(path, tensors),
        "sheet.png": lambda path: contact_sheet(path, [frames]),
        "a.gif": lambda path: write_gif(path, frames, 8),
        "a.mp4": write_mp4,
        "shard_00003.safetensors": lambda path: write_shard(path.parent, 3, torch.zeros(1, 2, 3, 4, 4), ["x"]),
        "pairs": lambda path: write_lmdb(path, [(torch.zeros(2, 1, 2, 4, 4), "x")]),
    }
    return {folder / name: call for name, call in calls.items()}


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_modes_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        for path, write in _writers(tmp_path / "new").items():
            write(path)
    finally:
        os.umask(before)
    for path in (tmp_path / "new").rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path.name
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o777 & ~mask


def test_links_under_a_writers_names_are_not_followed(tmp_path):
    """A link under a temporary name that can be guessed, or under the final one: what it leads to stays."""
    victim, folder = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious")
    (tmp_path / "victims").mkdir()
    folder.mkdir()
    for path, write in _writers(folder).items():
        for name in (f"{path.stem}.partial{path.suffix}", f"{path.stem}.partial", f"{path.name}.partial"):
            if not os.path.lexists(folder / name):
                (folder / name).symlink_to(tmp_path / "victims" if path.name == "pairs" else victim)
        if path.suffix:
            path.symlink_to(victim)
        write(path)
        assert victim.read_text() == "precious" and not path.is_symlink(), path.name
    assert not list((tmp_path / "victims").iterdir())


@pytest.mark.parametrize("kind", ["link", "link of the final name", "pipe"])
def test_marked_file_that_is_no_file_is_refused(tmp_path, kind):
    path, partial = tmp_path / "a.mp4", tmp_path / "a.partial.mp4"
    file = GrowingFile(path, partial)
    file.write(b"first")
    mark = file.mark()
    file.give_up(keep=True)
    partial.rename(tmp_path / "other")
    if kind == "pipe":
        os.mkfifo(partial)
    else:
        (partial if kind == "link" else path).symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match="is a link or no ordinary file"):
        GrowingFile(path, partial, mark)
    assert (tmp_path / "other").read_bytes() == b"first"


def test_new_file_of_a_writer_that_fails_is_removed(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError), new_file(tmp_path / "a") as partial:
        partial.write_text("half")
        raise KeyError
    assert _content(tmp_path) == {"a": b"old"}
