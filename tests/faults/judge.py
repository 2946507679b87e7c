"""What a fault is, and whether a door answered it rightly: with one clear message, or with a result."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

REFUSED, DONE, EITHER = "refused", "done", "either"
CLEAR, RIGHT, WRONG = "refused clearly", "right", "wrong"
LONGEST = 6000  # characters of a message that a person still reads
SECONDS = 60.0  # an attempt that takes longer hangs
HALF = (".partial", ".tmp")  # in the names of files that are being written


@dataclass(frozen=True)
class Attempt:
    """One call of a door.

    names: texts of which a refusal holds at least one (the path, the key). expect: which answer is right.
    output: a folder in which no hidden temporary file may be left. limits: of `resource.setrlimit`, name -> value.
    never: what must not exist afterwards. untouched: a file that must be as before.
    """

    arguments: list[str]
    names: tuple[str, ...] = ()
    expect: str = REFUSED
    output: Path | None = None
    limits: dict[str, int] = field(default_factory=dict)
    never: Path | None = None
    untouched: Path | None = None


@dataclass(frozen=True)
class Fault:
    """A bad input: `make(folder)` writes it into an empty folder and returns the attempt."""

    kind: str
    name: str
    door: str  # a path like scripts/evaluate.py
    make: Callable[[Path], Attempt]


@dataclass(frozen=True)
class Answer:
    """What a door did. status: exit status, minus a signal's number, or None after `SECONDS`."""

    status: int | None
    text: str  # stdout, then stderr
    seconds: float
    harm: tuple[str, ...] = ()  # hidden temporary files, what was never to exist, what was changed


def judge(door: str, attempt: Attempt, answer: Answer) -> tuple[str, str]:
    """Returns (CLEAR, RIGHT or WRONG, why)."""
    text, status = answer.text, answer.status
    message = last_message(door, text)
    if status is None:
        return WRONG, f"no end after {SECONDS:g} s"
    if status < 0:
        return WRONG, f"died by {signal.Signals(-status).name}"
    if "Traceback (most recent call last)" in text:
        return WRONG, f"traceback: {text.strip().splitlines()[-1]}"
    if answer.harm:
        return WRONG, f"harm: {', '.join(answer.harm)}"
    if status == 0:
        return (WRONG, "accepted") if attempt.expect == REFUSED else (RIGHT, "")
    if status != 2:
        return WRONG, f"exit status {status}: {message}"
    if attempt.expect == DONE:
        return WRONG, f"refused: {message}"
    if not message:
        return WRONG, f"refused without a message: {text.strip()[-200:]}"
    if len(message) > LONGEST:
        return WRONG, f"a message of {len(message)} characters: {message[:200]}"
    if attempt.names and not any(name in message for name in attempt.names):
        return WRONG, f"names none of {', '.join(attempt.names)}: {message}"
    return CLEAR, message


def last_message(door: str, text: str) -> str:
    """Returns the last message of the door (`inference.py: ...` to the end), "" if there is none."""
    lines = text.strip().splitlines()
    name = Path(door).name
    begins = [n for n, line in enumerate(lines) if line.startswith((f"{name}: ", f"{Path(name).stem}: "))]
    begins += [n for n, line in enumerate(lines) if line.startswith(f"{name} ") and ": error: " in line]
    return "\n".join(lines[max(begins) :]) if begins else ""


def harm(attempt: Attempt, before: bytes | None) -> tuple[str, ...]:
    """Returns what an attempt did that it must not. before: the content of `attempt.untouched`."""
    found = []
    if attempt.output is not None and attempt.output.is_dir():
        found += [p.name for p in attempt.output.rglob(".*") if p.is_file() and any(part in p.name for part in HALF)]
    if attempt.never is not None and attempt.never.exists():
        found.append(f"{attempt.never.name} exists")
    if attempt.untouched is not None and attempt.untouched.read_bytes() != before:
        found.append(f"{attempt.untouched.name} was changed")
    return tuple(found)
