"""Damaged, foreign and malicious files get an error that names them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tests.wan.checkpoint.manifest import same, tiny_transformer
from wan.checkpoint import tensor_file
from wan.checkpoint.identify import identify
from wan.checkpoint.weights import load_transformer


@pytest.fixture(scope="module")
def tiny():
    return tiny_transformer()


class Payload:
    """Would leave a mark if it were executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_no_pickle_is_executed(tmp_path, legacy):
    content = {"generator": {"w": torch.zeros(2)}, "config": Payload(tmp_path / "mark")}
    torch.save(content, tmp_path / "bad.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="bad.pt.*nothing in a checkpoint is executed"):
        identify(tmp_path / "bad.pt")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "legacy.pt"])
@pytest.mark.parametrize("keep", [0, 5, 40, 300, 5000, -40])
def test_truncated_files_are_named(tmp_path, name, keep, tiny):
    path = tmp_path / name
    if name == "m.safetensors":
        save_file(tiny[1], path)
    else:
        torch.save(tiny[1], path, _use_new_zipfile_serialization=name == "m.pt")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=name):
        load_transformer(path)


def test_other_bad_paths(tmp_path):
    (tmp_path / "notes.txt").write_text("hello, these are no weights at all")
    with pytest.raises(ValueError, match="missing.pt is missing; .* holds: notes.txt"):
        load_transformer(tmp_path / "missing.pt")
    with pytest.raises(ValueError, match="neither a safetensors file nor a torch archive"):
        load_transformer(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="holds no part of a Wan model; it has: notes.txt"):
        load_transformer(tmp_path)
    (tmp_path / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match="pointer to a large file"):
        load_transformer(tmp_path / "lfs.safetensors")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        load_transformer(tmp_path / "list.pt")
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="holds no model we know"):
        load_transformer(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="not a model we know; its first keys: x"):
        identify(tmp_path / "x.safetensors")


def test_a_file_is_recognised_by_its_content(tmp_path, tiny):
    save_file(tiny[1], tmp_path / "weights.pt")  # a misleading name
    assert same(tensor_file.read(tmp_path / "weights.pt"), tiny[1])
