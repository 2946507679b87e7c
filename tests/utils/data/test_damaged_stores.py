"""Damaged stores of clips: each is an error that names its file, and the process lives."""

from __future__ import annotations

import os

import lmdb
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests import tiny
from utils.data.latents import LatentFolder, shard_path, write_shard
from utils.data.lmdb_file import LmdbFile
from utils.data.lmdb_store import write_lmdb
from utils.data.records import BadRecord
from utils.data.store import open_clips


def fill(path, count: int = 40) -> dict[bytes, bytes]:
    """Writes an LMDB of values that lie on leaf and on overflow pages, under a branch page."""
    values = {f"key {n}".encode(): bytes([n]) * (n * 300 % 9000) for n in range(count)}
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    return values


def test_lmdb_file_reads_what_the_library_wrote(tmp_path):
    values, file = fill(tmp_path / "m", 200), LmdbFile(tmp_path / "m")
    assert file.entries == 200 and all(file.get(key) == value for key, value in values.items())
    assert file.get(b"") is None and file.get(b"key") is None and file.get(b"zzz") is None


@pytest.mark.parametrize("seed", range(40))
def test_damaged_lmdb_never_ends_the_process(tmp_path, seed):
    values, path, random = fill(tmp_path / "m"), tmp_path / "m/data.mdb", np.random.default_rng(seed)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    places = random.integers(0, len(data) if seed % 2 else 4 * 4096, 60)
    data[places] = random.integers(0, 256, 60)
    path.write_bytes(data.tobytes()[: len(data) if seed % 3 else int(random.integers(0, len(data)))])
    try:
        file = LmdbFile(tmp_path / "m")
        found = [file.get(key) for key in values]
        assert len(found) == len(values)
    except ValueError as error:
        assert str(path) in str(error)


def test_lmdb_cut_off_is_named(tmp_path):
    write_lmdb(tmp_path / "m", [(tiny.draw("row", i, shape=(2, 4, 8, 8)).half(), "a") for i in range(9)])
    size = (tmp_path / "m/data.mdb").stat().st_size
    os.truncate(tmp_path / "m/data.mdb", size - 4096)
    with pytest.raises(ValueError, match="data.mdb is cut off"):
        open_clips(tmp_path / "m")


@pytest.mark.parametrize(
    ("head", "why"), [(b"1000000000000 2 4 8 8", "rows and holds"), (b"1 2 4 8 99999999", "bytes")]
)
def test_impossible_counts_are_refused(tmp_path, head, why):
    write_lmdb(tmp_path / "m", [(torch.zeros(2, 4, 8, 8).half(), "a")])
    with lmdb.open(str(tmp_path / "m")) as env, env.begin(write=True) as transaction:
        transaction.put(b"latents_shape", head)
    with pytest.raises(ValueError, match=rf"{tmp_path / 'm'}.*{why}"):
        open_clips(tmp_path / "m")


SECOND = {
    "wider": (torch.zeros(1, 2, 4, 2, 3), '["b"]', r"\[4, 2, 3\]"),
    "integers": (torch.zeros(1, 2, 4, 2, 2, dtype=torch.int32), '["b"]', "type I32"),
    "axes": (torch.zeros(1, 2, 4, 4), '["b"]', "N F C h w"),
    "prompts a number": (torch.zeros(1, 2, 4, 2, 2), "7", "must be a list"),
    "prompts deep": (torch.zeros(1, 2, 4, 2, 2), "[" * 50_000, "nested"),
    "prompts no text": (torch.zeros(1, 2, 4, 2, 2), "[3]", "no text"),
}


@pytest.mark.parametrize(("latents", "prompts", "why"), SECOND.values(), ids=SECOND)
def test_other_shards_are_named_and_skipped(tmp_path, latents, prompts, why):
    write_shard(tmp_path, 0, torch.zeros(1, 2, 4, 2, 2), ["a"])
    save_file({"latents": latents}, shard_path(tmp_path, 1), {"prompts": prompts})
    with pytest.raises(BadRecord, match=rf"shard_00001.*{why}"):
        LatentFolder(tmp_path)
    assert LatentFolder(tmp_path, "skip").prompts == ["a"]


def test_a_pipe_among_shards_is_named(tmp_path):
    write_shard(tmp_path, 0, torch.zeros(1, 2, 4, 2, 2), ["a"])
    os.mkfifo(shard_path(tmp_path, 1))
    with pytest.raises(BadRecord, match="shard_00001.*not a regular file"):
        LatentFolder(tmp_path)
