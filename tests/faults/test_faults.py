"""Some bad inputs of every kind on the real doors, and the judge itself: each wrong answer is found."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.architecture.source import ROOT
from tests.faults.attempts import run_one
from tests.faults.judge import CLEAR, DONE, EITHER, REFUSED, RIGHT, WRONG, Attempt, Fault, judge
from tests.faults.mutate import damaged_bytes, damaged_json

DOORS = {
    "traceback": ("raise KeyError('x')", REFUSED, WRONG, "traceback: KeyError: 'x'"),
    "signal": ("import os, signal\n    os.kill(os.getpid(), signal.SIGSEGV)", EITHER, WRONG, "died by SIGSEGV"),
    "hang": ("import time\n    time.sleep(60)", EITHER, WRONG, "no end"),
    "status": ("print('door.py: no', file=sys.stderr)\n    return 1", REFUSED, WRONG, "exit status 1"),
    "silence": ("return 2", REFUSED, WRONG, "without a message"),
    "no name": ("print('door.py: bad input', file=sys.stderr)\n    return 2", REFUSED, WRONG, "names none of"),
    "flood": (
        "print('door.py: the.key' + 'x' * 9999, file=sys.stderr)\n    return 2",
        REFUSED,
        WRONG,
        "10015 characters",
    ),
    "accepted": ("return 0", REFUSED, WRONG, "accepted"),
    "refused": ("print('door.py: the.key', file=sys.stderr)\n    return 2", DONE, WRONG, "refused: door.py"),
    "half a file": ("open(arguments[0] + '/.a.mp4.x.partial', 'w')\n    return 0", DONE, WRONG, ".a.mp4.x.partial"),
    "clear": (
        "print('door.py: the.key is -1; write 1', file=sys.stderr)\n    return 2",
        REFUSED,
        CLEAR,
        "the.key is -1",
    ),
    "right": ("return 0", EITHER, RIGHT, ""),
}


@pytest.mark.parametrize("name", DOORS)
def test_judge_finds_a_wrong_answer(tmp_path, name):
    code, expect, verdict, why = DOORS[name]
    door = tmp_path / "door.py"
    door.write_text(f"import sys\n\n\ndef main(arguments):\n    {code}\n")

    def make(folder):
        return Attempt([str(folder)], ("the.key",), expect, folder)

    found = judge("door.py", *run_one(Fault("kind", name, str(door), make), tmp_path / "tries", 0.5))
    assert found[0] == verdict and why in found[1]


def test_an_attempt_has_its_own_folder_and_leaves_none(tmp_path):
    door = tmp_path / "door.py"
    door.write_text("def main(arguments):\n    open('here', 'w').write('x')\n    print(open(arguments[0]).read())\n")

    def make(folder):
        (folder / "in.txt").write_text("from the input")
        return Attempt([str(folder / "in.txt")], expect=DONE)

    _, answer = run_one(Fault("kind", "name", str(door), make), tmp_path / "tries")
    assert answer.status == 0 and "from the input" in answer.text
    assert not list((tmp_path / "tries").iterdir()) and not (ROOT / "here").exists()


def test_changed_files_are_found(tmp_path):
    door = tmp_path / "door.py"
    door.write_text("def main(arguments):\n    open(arguments[0], 'w').write('yours')\n    open(arguments[1], 'w')\n")

    def make(folder):
        (folder / "victim").write_text("mine")
        arguments = [str(folder / "victim"), str(folder / "ran")]
        return Attempt(arguments, expect=EITHER, never=folder / "ran", untouched=folder / "victim")

    _, answer = run_one(Fault("kind", "name", str(door), make), tmp_path / "tries")
    assert answer.harm == ("ran exists", "victim was changed")


def test_damages_are_damages():
    data, text = bytes(range(256)) * 4, '{"a": [1, 2], "b": {"c": "d"}}'
    assert all(damaged_bytes(data, seed) == damaged_bytes(data, seed) for seed in range(8))
    assert all(damaged_bytes(data, seed)[1] != data for seed in range(64))
    assert all(damaged_json(text, seed)[1] != text for seed in range(70))


@pytest.mark.dist
def test_some_bad_inputs_of_every_kind_are_answered():
    begun = time.monotonic()
    command = [sys.executable, "-m", "tests.faults", "--every", "25", "--workers", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}\n{time.monotonic() - begun:.0f} s"
