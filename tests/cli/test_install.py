"""Installed copies: editable ones work from any folder; what an installed copy lacks, and what hides it, is said."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.source import ROOT

ROOMS = ("wan", "utils", "model", "pipeline", "trainer", "scripts")
DOORS = ("inference.py", "train.py")
RECIPES = {"inference.py": "configs/infer/digits.yaml", "train.py": "configs/train/digits_teacher.yaml"}


def run(folder: Path, *arguments, path: Path | None = None) -> subprocess.CompletedProcess:
    """Runs Python in a folder with nothing but `path` added to its search path."""
    folder.mkdir(exist_ok=True)
    environment = {"PATH": "", **({"PYTHONPATH": str(path)} if path else {})}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the code alone, as `pip install .` makes one."""
    folder = tmp_path_factory.mktemp("copy")
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in DOORS:
        shutil.copy(ROOT / file, folder)
    return folder


def test_an_editable_copy_works_from_any_folder(copy, tmp_path):
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    shutil.copytree(copy, checkout)
    shutil.copytree(ROOT / "configs", checkout / "configs")
    for file in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / file, checkout)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    done = run(tmp_path, "-m", "pip", "install", "-q", *offline, "--target", site, "-e", checkout)
    assert done.returncode == 0, done.stderr
    code = f"import site; site.addsitedir({str(site)!r}); import pipeline, inference, trainer.config; "
    code += "from pipeline.config import load_recipe; "
    code += f"load_recipe({str(checkout / RECIPES['inference.py'])!r}); print(pipeline.__file__, inference.__file__)"
    done = run(tmp_path / "elsewhere", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{checkout}/pipeline/__init__.py", f"{checkout}/inference.py"]


@pytest.mark.parametrize("door", DOORS)
def test_a_copy_without_recipes_says_so(copy, tmp_path, door):
    done = run(tmp_path / "here", copy / door, "--config_path", ROOT / RECIPES[door], "--print_config")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(r"default_config.yaml: the project's defaults are missing.*pip install -e \.", done.stderr)


@pytest.mark.parametrize("door", DOORS)
def test_a_foreign_utils_on_the_path_is_named(tmp_path, door):
    (tmp_path / "utils.py").write_text("x = 1\n")
    done = run(tmp_path, "-m", door.removesuffix(".py"), "--help", path=ROOT)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{door}: another module named utils hides this project's" in done.stderr
    assert str(tmp_path / "utils.py") in done.stderr and "run from the checkout" in done.stderr
