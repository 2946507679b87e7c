"""The tables of docs/migrate.md that set a command of theirs next to one of ours, tried line by line.

Ours is understood: every flag, key, recipe and set is there, and without weights the error names the download. Theirs,
typed at a door of ours as it stands, is answered with what to do.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess

import pytest

import inference
import train
from scripts import encode_latents, make_ode_pairs
from tests.architecture.source import ROOT

PAGE = (ROOT / "docs/migrate.md").read_text()
SECTION = PAGE.partition("\n## Command for command\n")[2].partition("\n## ")[0]
ROWS = [
    [re.findall(r"`([^`]+)`", cell) for cell in line.strip("| ").split(" | ")]
    for line in SECTION.splitlines()
    if line.startswith("| `")
]
DOORS = {"train.py": train, "inference.py": inference}
TOOLS = {"scripts/encode_latents.py": encode_latents, "scripts/make_ode_pairs.py": make_ode_pairs}
OURS = [command for _, ours in ROWS for command in ours]
THEIRS = [
    (command, ours) for theirs, ours in ROWS for command in theirs if re.search(r"\b(train|inference)\.py", command)
]
THEIRS = [(command, ours) for command, ours in THEIRS if "interactive_inference.py" not in command]


def find_words(command: str) -> tuple[str, list[str]]:
    """Returns (the program, its arguments) of a command, without what starts it."""
    words = shlex.split(command.replace("$MASTER_ADDR", "localhost"))
    at = next(n for n, word in enumerate(words) if re.fullmatch(r"(scripts/)?\w+\.(py|sh)", word))
    return words[at], words[at + 1 :]


def call(door: str, words: list[str], capsys) -> tuple[int, str]:
    """Returns (exit status, what a door printed on standard error)."""
    try:
        status = DOORS[door].main(words)
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr().err


@pytest.fixture
def stub(tmp_path):
    """stub(script, arguments) -> the words that a shell script gives to the interpreter."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > "{tmp_path}/words"\n')
    python.chmod(0o755)

    def run(script: str, words: list[str]) -> list[str]:
        settings = {**os.environ, "PYTHON": str(python), "RANKS": "1"}
        subprocess.run(["bash", script, *words], cwd=ROOT, env=settings, check=True, capture_output=True, timeout=60)
        return (tmp_path / "words").read_text().splitlines()

    return run


def test_the_page_has_the_tables():
    assert len(ROWS) > 25 and len(THEIRS) > 8 and all(ours for theirs, ours in ROWS if "demo.py" not in theirs[0])


@pytest.mark.parametrize("command", OURS)
def test_our_command_is_understood(command, stub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    if command.startswith("pip install"):
        assert (ROOT / "setup.py").is_file()
        return
    program, words = find_words(command)
    assert (ROOT / program).is_file()
    if program == "scripts/download.sh":
        subprocess.run(["bash", program, "--dry-run", *words], cwd=ROOT, check=True, capture_output=True)
        return
    if program in TOOLS:
        assert TOOLS[program].parse(words)
        return
    if program.endswith(".sh"):
        given = stub(program, words)
        program, words = next((word, given[n + 1 :]) for n, word in enumerate(given) if word in DOORS)
    status, printed = call(program, [*words, "--print_config"], capsys)
    assert status == 0, printed


@pytest.mark.parametrize("command", [c for c in OURS if "inference.py --config" in c and "digits" not in c])
def test_our_command_without_weights_names_what_is_missing(command, tmp_path, monkeypatch, capsys):
    for name in ("configs", "prompts", "assets"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    program, words = find_words(command)
    status, printed = call(program, words, capsys)
    lost = next((word for word in words if word.startswith(("prompts/vb", "i2v_set"))), "")
    assert status == 2 and (f"{lost} is not" if lost else "`bash scripts/download.sh t2v-1.3B` brings it") in printed


@pytest.mark.parametrize(("command", "ours"), THEIRS)
def test_their_command_is_answered_with_what_to_do(command, ours, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    status, printed = call(*find_words(command), capsys)
    (recipe,) = set(re.findall(r"configs/\w+/(\w+)\.yaml", " ".join(ours)))
    assert status == 2
    assert recipe in printed or "is not a flag here; use no flag: there is no OneLogger" in printed
    assert "Traceback" not in printed
