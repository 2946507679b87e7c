"""A file is whole or absent."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.atomic import atomic_write, write_json


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
