"""Shards and LMDB of clips and ODE pairs: written, read, and what a bad record does."""

from __future__ import annotations

import logging

import lmdb
import numpy as np
import pytest
import torch

from tests import tiny
from utils.data.latents import LatentFolder, shard_path, write_shard
from utils.data.lmdb_store import LmdbClips, LmdbPairs, write_lmdb
from utils.data.pairs import PairFolder, write_pairs
from utils.data.records import BadRecord
from utils.data.store import open_clips, open_pairs

SIGMAS = (1.0, 0.5, 0.0)
SHAPE = (3, 2, 4, 2, 2)  # T F C h w


def rows(count: int, shape=SHAPE) -> list[tuple[torch.Tensor, str]]:
    return [(tiny.draw("row", i, shape=shape).half(), f"prompt {i} \u00e9") for i in range(count)]


def put(path, key: str, value: bytes | None) -> None:
    """Overwrites (or removes) one value of an LMDB."""
    with lmdb.open(str(path)) as env, env.begin(write=True) as transaction:
        if value is None:
            transaction.delete(key.encode())
        else:
            transaction.put(key.encode(), value)


def same(read, wanted) -> bool:
    return torch.equal(read[0], wanted[0]) and read[1] == wanted[1]


def test_pairs_come_back(tmp_path):
    given = rows(5)
    for number, part in enumerate((given[:3], given[3:])):
        write_pairs(tmp_path, number, torch.stack([t for t, _ in part]).float(), [p for _, p in part], SIGMAS)
    pairs = open_pairs(tmp_path)
    assert isinstance(pairs, PairFolder) and len(pairs) == 5
    assert pairs.shape == SHAPE and pairs.sigmas == SIGMAS
    assert all(same(pairs[i], given[i]) for i in range(5))


@pytest.mark.parametrize("sigmas", [(1.0, 0.0), (0.5, 1.0, 0.0), (1.0, 0.5, 0.1)])
def test_pairs_with_wrong_sigmas_are_not_written(tmp_path, sigmas):
    with pytest.raises(ValueError, match="sigmas"):
        write_pairs(tmp_path, 0, torch.zeros(1, *SHAPE), ["a"], sigmas)


def test_pairs_of_two_kinds_are_refused(tmp_path):
    write_pairs(tmp_path, 0, torch.zeros(1, *SHAPE), ["a"], SIGMAS)
    write_pairs(tmp_path, 1, torch.zeros(1, *SHAPE), ["a"], (1.0, 0.6, 0.0))
    with pytest.raises(ValueError, match="one kind"):
        PairFolder(tmp_path)


@pytest.mark.parametrize("num_shards", [0, 2])
def test_lmdb_comes_back(tmp_path, num_shards):
    given = rows(5)
    assert write_lmdb(tmp_path / "store", iter(given), num_shards, SIGMAS) == 5
    pairs = open_pairs(tmp_path / "store")
    assert isinstance(pairs, LmdbPairs) and pairs.shape == SHAPE and pairs.sigmas == SIGMAS
    assert sorted(prompt for _, prompt in (pairs[i] for i in range(5))) == [p for _, p in given]
    order = [0, 2, 4, 1, 3] if num_shards else range(5)
    assert all(same(pairs[i], given[j]) for i, j in enumerate(order))


def test_lmdb_has_the_ancestors_layout(tmp_path):
    given = rows(2)
    write_lmdb(tmp_path / "store", given)
    with lmdb.open(str(tmp_path / "store"), readonly=True, lock=False) as env, env.begin() as transaction:
        assert transaction.get(b"latents_shape") == b"2 3 2 4 2 2"
        assert transaction.get(b"prompts_shape") == b"2"
        assert transaction.get(b"prompts_1_data").decode("utf-8") == given[1][1]
        row = np.frombuffer(transaction.get(b"latents_1_data"), np.float16).reshape(SHAPE)
    assert np.array_equal(row, given[1][0].numpy())


def test_a_clean_row_gets_a_leading_axis(tmp_path):
    given = rows(3, SHAPE[1:])
    write_lmdb(tmp_path / "store", given)
    assert LmdbPairs(tmp_path / "store")[1][0].shape == (1, *SHAPE[1:])
    clips = open_clips(tmp_path / "store")
    assert isinstance(clips, LmdbClips) and clips.shortest == 2 and len(clips) == 3
    assert same(clips[1], given[1])


def test_clips_of_pairs_are_their_clean_ends(tmp_path):
    given = rows(2)
    write_lmdb(tmp_path / "store", given)
    assert torch.equal(open_clips(tmp_path / "store")[0][0], given[0][0][-1])


def test_lmdb_grows_beyond_its_first_size(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.data.lmdb_store.FIRST_MAP_BYTES", 1 << 15)
    given = rows(8, (1, 1, 16, 32, 32))
    write_lmdb(tmp_path / "store", given)
    assert same(LmdbPairs(tmp_path / "store")[7], given[7])


def test_lmdb_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="row 1"):
        write_lmdb(tmp_path / "store", [*rows(1), *rows(1, SHAPE[1:])])
    with pytest.raises(ValueError, match="cannot fill"):
        write_lmdb(tmp_path / "few", rows(1), num_shards=2)
    assert not (tmp_path / "store").exists() and not (tmp_path / "few").exists()
    write_lmdb(tmp_path / "store", rows(1))
    with pytest.raises(ValueError, match="exists"):
        write_lmdb(tmp_path / "store", rows(1))


BREAKS = {
    "short": ("latents_1_data", b"\0" * 10, "10 bytes"),
    "no latents": ("latents_1_data", None, "nothing"),
    "no prompt": ("prompts_1_data", None, "no prompt"),
    "not utf-8": ("prompts_1_data", b"\xff\xfe", "UTF-8"),
    "nan": ("latents_1_data", np.full(SHAPE, np.nan, np.float16).tobytes(), "NaN"),
}


@pytest.mark.parametrize("key, value, why", BREAKS.values(), ids=BREAKS)
def test_bad_rows_stop_or_are_skipped(tmp_path, caplog, key, value, why):
    given = rows(3)
    write_lmdb(tmp_path / "store", given)
    put(tmp_path / "store", key, value)
    stops = LmdbPairs(tmp_path / "store")
    assert same(stops[0], given[0])
    with pytest.raises(BadRecord, match=rf"row 1.*{why}"):
        stops[1]
    del stops
    skips = LmdbPairs(tmp_path / "store", "skip")
    with caplog.at_level(logging.WARNING):
        assert same(skips[1], given[2]), "the next whole record stands in"
        assert same(skips[1], given[2])
    assert [r.getMessage() for r in caplog.records if "row 1" in r.getMessage()][1:] == [], "named once"


def test_no_whole_record_is_an_error(tmp_path):
    write_pairs(tmp_path, 0, torch.full((2, *SHAPE), float("nan")), ["a", "b"], SIGMAS)
    with pytest.raises(ValueError, match="no whole record"):
        PairFolder(tmp_path, "skip")[0]


def test_bad_clips_stop_or_are_skipped(tmp_path):
    latents = torch.zeros(3, 2, 4, 2, 2)
    latents[1, 0, 0, 0, 0] = float("inf")
    write_shard(tmp_path, 0, latents, ["a", "b", "c"])
    shard_path(tmp_path, 1).write_bytes(b"rubbish")
    with pytest.raises(BadRecord, match="shard_00001"):
        LatentFolder(tmp_path)
    clips = LatentFolder(tmp_path, "skip")
    assert [clips[i][1] for i in range(3)] == ["a", "c", "c"]  # the next whole one stands in
    shard_path(tmp_path, 1).unlink()
    clips = LatentFolder(tmp_path)
    assert len(clips) == 3 and clips[2][1] == "c"
    with pytest.raises(BadRecord, match="clip 1"):
        clips[1]


@pytest.mark.parametrize("open_", [open_clips, open_pairs])
def test_empty_folders_and_wrong_words_are_refused(tmp_path, open_):
    with pytest.raises(ValueError, match="holds no"):
        open_(tmp_path)
    write_shard(tmp_path, 0, torch.zeros(1, 2, 4, 2, 2), ["a"])
    with pytest.raises(ValueError, match="skip"):
        open_(tmp_path, "ignore")


def test_a_store_of_something_else_is_refused(tmp_path):
    with lmdb.open(str(tmp_path / "store")) as env, env.begin(write=True) as transaction:
        transaction.put(b"latents_shape", b"3 x")
    with pytest.raises(ValueError, match="latents_shape"):
        open_pairs(tmp_path / "store")
