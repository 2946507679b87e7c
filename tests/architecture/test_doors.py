"""What starts fast stays fast: heavy packages are not loaded by an import or by --help."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.source import ROOT

HELP = """
import contextlib, io, runpy
sys.argv = [{door!r}, "--help"]
with contextlib.redirect_stdout(io.StringIO()) as said:
    try:
        runpy.run_path({door!r}, run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
assert "usage" in said.getvalue(), said.getvalue()
"""


def loaded_packages(code: str, watched: set[str], folder=ROOT) -> set[str]:
    """Runs `code` in a fresh interpreter in `folder` and returns which of the `watched` packages it loaded."""
    report = f"print('LOADED', *sorted(set({sorted(watched)!r}) & sys.modules.keys()))"
    program = f"import sys\nsys.path.insert(0, '.')\n{code}\n{report}"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_transformer_needs_neither_diffusers_nor_transformers():
    assert loaded_packages("import wan.transformer", {"diffusers", "transformers"}) == set()


@pytest.mark.parametrize("kind", ["infer", "train"])
def test_no_configuration_loads_torch(kind):
    room = {"infer": "pipeline", "train": "trainer"}[kind]
    code = f"from pathlib import Path\nfrom {room}.config import load_recipe\n"
    code += f"for path in sorted(Path('configs/{kind}').glob('*.yaml')):\n    load_recipe(path)"
    assert loaded_packages(code, {"torch", "diffusers", "transformers", "peft", "av"}) == set()


@pytest.mark.parametrize("door", ["inference.py", "train.py", "demo/avatar.py"])
def test_help_loads_nothing_heavy(door):
    heavy = {"torch", "diffusers", "transformers", "sklearn", "gradio", "fastapi", "uvicorn"}
    assert loaded_packages(HELP.format(door=door), heavy) == set()


def test_loading_is_caught(tmp_path):
    (tmp_path / "eager.py").write_text("import argparse, wave\nargparse.ArgumentParser().parse_args()\n")
    (tmp_path / "lazy.py").write_text("import argparse\nargparse.ArgumentParser().parse_args()\nimport wave\n")
    assert loaded_packages("import wave", {"wave", "chunk_of_nothing"}, tmp_path) == {"wave"}
    assert loaded_packages(HELP.format(door="eager.py"), {"wave"}, tmp_path) == {"wave"}
    assert loaded_packages(HELP.format(door="lazy.py"), {"wave"}, tmp_path) == set()


def test_a_broken_door_is_caught(tmp_path):
    (tmp_path / "broken.py").write_text("raise SystemExit(2)\n")
    with pytest.raises(AssertionError):
        loaded_packages(HELP.format(door="broken.py"), {"wave"}, tmp_path)
