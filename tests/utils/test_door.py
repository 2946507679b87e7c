"""`utils.door`: which errors are one line and status 2, where tracebacks go, and places that cannot be written."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import zlib

import pytest
import torch

from tests.architecture.source import ROOT
from utils import log
from utils.door import check_folder, check_output, door, explain


@pytest.fixture(autouse=True)
def no_log_file():
    log.setup()


def answer(error, capsys):
    """Returns (status, stderr) of a door whose main raises this error."""

    @door("tool.py", "run again to go on")
    def main():
        raise error

    return main(), capsys.readouterr().err


def foreign(package: str, name: str) -> Exception:
    """Returns an error of a class that a package defines."""
    return type(name, (Exception,), {"__module__": package})("it is broken\nsecond line")


MENDABLE = [
    (ValueError("steps is 0"), "steps is 0"),
    (OSError(28, "No space left on device", "a/b"), "No space left on device: 'a/b'"),
    (MemoryError(), "not enough memory; take"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory (DefaultCPU"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to"), "not enough memory (CUDA"),
    (ImportError("libx.so: failed to map segment from shared object"), "not enough memory (libx"),
    (RuntimeError("can't start new thread"), "no further thread"),
    (BlockingIOError(11, "Resource temporarily unavailable"), "no further thread"),
    (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    (KeyError("shard"), "'shard' is missing in what tests/utils/test_door.py:"),
    (foreign("safetensors_rust", "SafetensorError"), "SafetensorError: it is broken"),
    (foreign("lmdb", "DiskError"), "DiskError: it is broken"),
    (zlib.error("bad header"), None),
    (RuntimeError("PytorchStreamWriter failed writing file data/0"), "a file cannot be read or written: Pytorch"),
]


@pytest.mark.parametrize(("error", "words"), MENDABLE, ids=lambda value: type(value).__name__)
def test_door_mendable_errors_are_one_line(error, words, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, said = answer(error, capsys)
    assert status == 2 and said.startswith("tool.py: ") and said.count("\n") == 1 and "Traceback" not in said
    assert (words or "bad header") in said
    logs = list(tmp_path.glob("longtake-*.log"))
    assert len(logs) == (not isinstance(error, ValueError | OSError))
    assert all("Traceback" in path.read_text() and str(path) in said for path in logs)


def test_door_keeps_faults_of_the_program(capsys):
    for error in (TypeError("x"), RuntimeError("shapes differ"), AttributeError("y")):
        assert explain(error) is None
        with pytest.raises(type(error)):
            answer(error, capsys)


def test_door_interrupt_and_status(capsys):
    assert answer(KeyboardInterrupt(), capsys) == (130, "tool.py: interrupted; run again to go on\n")
    assert door("tool.py")(lambda: None)() == 0 and door("tool.py")(lambda: 1)() == 1


def test_door_problem_lists_keep_their_lines(capsys):
    assert answer(ValueError("2 problems in the configuration\na\nb"), capsys)[1].count("\n") == 3
    assert answer(ValueError("one\n  problem"), capsys)[1] == "tool.py: one problem\n"


def test_door_writes_tracebacks_into_the_log(tmp_path, capsys):
    log.setup(file=tmp_path / "log.txt")
    try:
        status, said = answer(KeyError("x"), capsys)
        assert status == 2 and "traceback" not in said
        assert "Traceback" in (tmp_path / "log.txt").read_text()
    finally:
        log.setup()


def test_log_on_a_full_disk_goes_on(capsys):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    log.setup(file="/dev/full")
    try:
        logging.getLogger("utils").warning("a line")
        assert answer(OSError(28, "No space left on device"), capsys)[0] == 2
        assert "Logging error" not in capsys.readouterr().err
    finally:
        log.setup()


def test_output_places_are_checked(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.json", tmp_path / "file/deep/a.json"):
        with pytest.raises(OSError, match="nothing can be written there"):
            check_output(path)
    with pytest.raises(IsADirectoryError, match="has the name of the file"):
        check_output(tmp_path)
    check_folder(tmp_path / "new/inner")
    check_output(tmp_path / "other/a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_door_of_several_ranks_ends_with_the_cause():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["tests/utils/failing_ranks.py", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    said = [line for line in done.stderr.splitlines() if line.startswith("tool.py: ")]
    assert said == [
        "tool.py: rank 0 ends, because rank 1 failed",
        "tool.py: the shard of clip 12 is damaged; write it again",
    ]
    ours, _, launcher = done.stderr.partition(said[1])
    assert "Traceback" not in ours and "gloo" not in done.stderr and "Connection closed" not in done.stderr
    assert "shard of clip 12" in launcher.strip().splitlines()[-2], "torchrun's report does not end with the cause"
