"""Hashes of files: remembered until a file changes, whatever the cache holds."""

from __future__ import annotations

import hashlib
import json
import os
import time

import pytest

from utils import digest
from utils.digest import content_hash, files_of, known_hash

LARGE = digest.REMEMBERED + 1


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the cache; files count as settled at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digest, "SETTLED", -1.0)
    return tmp_path / "cache/longtake/hashes"


@pytest.fixture
def read(monkeypatch):
    """The names of the files that are read, in order."""
    names, whole = [], digest.file_hash
    monkeypatch.setattr(digest, "file_hash", lambda path: (names.append(path.name), whole(path))[1])
    return names


def large(path, byte=b"x"):
    path.write_bytes(byte * LARGE)
    return path


def test_large_file_is_read_once(cache, read, tmp_path):
    path, small = large(tmp_path / "a"), tmp_path / "b"
    small.write_bytes(b"small")
    wanted = hashlib.sha256(b"x" * LARGE).hexdigest()
    assert [known_hash(path), known_hash(path)] == [wanted] * 2 and read == ["a"]
    assert known_hash(small) == known_hash(small) == hashlib.sha256(b"small").hexdigest() and len(read) == 3
    assert len(list(cache.iterdir())) == 1
    (tmp_path / "link").symlink_to(path)
    assert known_hash(tmp_path / "link") == wanted and len(read) == 3


@pytest.mark.parametrize("how", ["in place", "another file", "times set back"])
def test_changed_file_is_read_again(cache, read, tmp_path, how):
    path, times = large(tmp_path / "a"), (tmp_path / "a").stat()
    before = known_hash(path)
    if how == "another file":
        os.replace(large(tmp_path / "b", b"y"), path)
    else:
        time.sleep(0.02)  # longer than a tick of the file system's clock
        large(path, b"y")
    if how == "times set back":
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert known_hash(path) == hashlib.sha256(b"y" * LARGE).hexdigest() != before and len(read) == 2


def test_file_written_just_now_is_not_remembered(cache, read, tmp_path, monkeypatch):
    monkeypatch.setattr(digest, "SETTLED", 60.0)
    path = large(tmp_path / "a")
    assert known_hash(path) == known_hash(path) and len(read) == 2 and not cache.exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "[" * 10**5, '{"sha256": 3}', "another file's", "no hash"])
def test_damaged_entry_is_not_believed(cache, read, tmp_path, damage):
    path = large(tmp_path / "a")
    wanted = known_hash(path)
    (entry,) = cache.iterdir()
    content = json.loads(entry.read_text())
    if damage == "another file's":
        damage = json.dumps(content | {"inode": content["inode"] + 1})
    if damage == "no hash":
        damage = json.dumps(content | {"sha256": "../x"})
    entry.write_text(damage)
    assert known_hash(path) == wanted and len(read) == 2
    assert json.loads(entry.read_text()) == content


@pytest.mark.parametrize("why", ["a file", "relative", "no home"])
def test_cache_that_cannot_be_used_costs_time_alone(read, tmp_path, monkeypatch, why):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digest, "SETTLED", -1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", {"a file": str(tmp_path / "file"), "relative": "here", "no home": ""}[why])
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    if why == "no home":

        def homeless():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(digest.Path, "home", homeless)
    path = large(tmp_path / "a")
    assert known_hash(path) == known_hash(path) and len(read) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "file"]


def test_content_of_folders_knows_names_and_bytes(cache, tmp_path):
    folder = tmp_path / "m"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/a").write_text("a")
    (folder / "inner/loop").symlink_to(folder)
    (tmp_path / "blob").write_text("b")
    (folder / "b").symlink_to(tmp_path / "blob")
    os.mkfifo(folder / "pipe")
    assert [name for name, _ in sorted(files_of(folder))] == ["b", "inner/a"]
    seen = {content_hash({"m": folder})}
    folder.rename(tmp_path / "moved")
    (tmp_path / "moved/inner/loop").unlink()
    assert content_hash({"m": tmp_path / "moved"}) in seen, "where it lies does not count"
    (tmp_path / "blob").write_text("c")
    seen.add(content_hash({"m": tmp_path / "moved"}))
    (tmp_path / "moved/b").rename(tmp_path / "moved/c")
    seen.add(content_hash({"m": tmp_path / "moved"}))
    seen.add(content_hash({"n": tmp_path / "moved"}))
    assert len(seen) == 4
