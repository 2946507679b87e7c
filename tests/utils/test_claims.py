"""A file that one process makes is left alone by the others, until that process ends."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from tests.architecture.source import ROOT
from utils.claims import claimed, lock_path

HOLD = """
import sys, time
from utils.claims import claimed
with claimed(sys.argv[1:]) as mine:
    print(mine, flush=True)
    time.sleep(600)
"""


def hold(*paths):
    """Starts a process that claims these files until it is killed; returns it once it has answered."""
    command = [sys.executable, "-c", HOLD, *map(str, paths)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    return process


def test_claim_holds_and_leaves_no_file(tmp_path):
    with claimed([tmp_path / "a.mp4", tmp_path / "b.mp4"]) as mine:
        assert mine and len(list(tmp_path.iterdir())) == 2
        for names in (["a.mp4"], ["b.mp4"], ["c.mp4", "b.mp4"]):
            with claimed([tmp_path / name for name in names]) as other:
                assert not other
        with claimed([tmp_path / "c.mp4"]) as other:
            assert other
    assert not list(tmp_path.iterdir())


def test_claim_dies_with_its_process(tmp_path):
    process = hold(tmp_path / "x y.mp4")
    (tmp_path / "link").symlink_to(tmp_path)
    with claimed([tmp_path / "link" / "x y.mp4"]) as mine:
        assert not mine, "another name of the same folder"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert lock_path(tmp_path / "x y.mp4").exists(), "a kill leaves it"
    with claimed([tmp_path / "x y.mp4"]) as mine:
        assert mine
    assert [p.name for p in tmp_path.iterdir()] == ["link"]


def test_claim_that_waits_gets_its_turn(tmp_path):
    running, turns = [], []

    def work(number):
        with claimed([tmp_path / "sheet.png"], wait=True) as mine:
            running.append(number)
            assert mine and len(running) == 1
            turns.append(number)
            running.remove(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(turns) == list(range(16)) and not list(tmp_path.iterdir())


def test_claim_makes_its_folder_with_the_users_modes(tmp_path):
    before = os.umask(0o027)
    try:
        with claimed([tmp_path / "new/folder/a"]):
            assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o750
            assert stat.S_IMODE(lock_path(tmp_path / "new/folder/a").stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_claim_follows_no_link(tmp_path):
    (tmp_path / "other").write_text("precious")
    lock_path(tmp_path / "a").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match=r"\.a\.lock"), claimed([tmp_path / "a"]):
        pass
    assert (tmp_path / "other").read_text() == "precious"


def test_file_system_without_locks_warns(tmp_path, monkeypatch, caplog):
    def refuse(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claimed([tmp_path / "a"]) as mine:
        assert mine
    assert "cannot be locked (No locks available)" in caplog.text
