"""The scripts that LongLive's users know by name: what they call, how a recipe is replaced, and one real run."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.architecture.source import ROOT
from tests.digits_fixture import PROMPTS, distill_recipe, model_folder, videos, write_recipe

RECIPES = {
    "inference.sh": ("inference.py", "configs/infer/longlive.yaml"),
    "interactive_inference.sh": ("inference.py", "configs/infer/longlive_interactive.yaml"),
    "train_init.sh": ("train.py", "configs/train/longlive_init.yaml"),
    "train_long.sh": ("train.py", "configs/train/longlive_stream.yaml"),
}


@pytest.fixture
def printed(tmp_path):
    """printed(script, *arguments, **environment) -> the words that the interpreter was given, and the exit status."""
    for name, text in {"python": f'printf "%s\\n" "$@" > "{tmp_path}/told"\nexit 7', "nvidia-smi": "exit 9"}.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def run(script, *arguments, **environment):
        path = f"{tmp_path}:{os.environ['PATH']}"
        settings = {**os.environ, "PATH": path, "PYTHON": str(tmp_path / "python"), **environment}
        done = subprocess.run(["bash", f"scripts/{script}", *arguments], cwd=ROOT, env=settings)
        return (tmp_path / "told").read_text().splitlines(), done.returncode

    return run


@pytest.mark.parametrize("script", RECIPES)
def test_help_says_how_to_call_it(script):
    assert subprocess.run(["bash", "-n", f"scripts/{script}"], cwd=ROOT).returncode == 0
    for flag in ("-h", "--help"):
        done = subprocess.run(["bash", f"scripts/{script}", flag], cwd=ROOT, capture_output=True, text=True)
        lines = done.stdout.splitlines()
        assert done.returncode == 0 and f"bash scripts/{script} " in lines[1] and RECIPES[script][1] in done.stdout
        assert all(line.startswith("# ") for line in lines) and "set -e" not in done.stdout


@pytest.mark.parametrize("script", RECIPES)
def test_it_runs_its_recipe_under_torchrun_with_all_arguments(printed, script):
    door, recipe = RECIPES[script]
    words, status = printed(script, "--logdir", "a b", "x.y=1")
    at = words.index(door)
    assert words[:2] == ["-m", "torch.distributed.run"] and "--nproc_per_node=1" in words[:at] and status == 7
    assert words[at + 1 :] == ["--config_path", recipe, "--logdir", "a b", "x.y=1"]


@pytest.mark.parametrize("script", RECIPES)
def test_recipe_and_ranks_are_told_by_the_environment(printed, script):
    words, _ = printed(script, CONFIG="other.yaml", RANKS="4")
    assert words[words.index("--config_path") + 1] == "other.yaml" and "--nproc_per_node=4" in words


@pytest.mark.parametrize("script", RECIPES)
def test_the_recipe_is_there(script):
    assert (ROOT / RECIPES[script][1]).is_file()


@pytest.mark.dist
def test_a_video_is_made(tmp_path):
    """Another recipe by the flag; relative paths are those of the project."""
    recipe = write_recipe(tmp_path / "recipe.yaml", model_folder(tmp_path / "model", num_layers=1, ffn_dim=64))
    words = ["--config_path", str(recipe), "--prompt", PROMPTS[0], "--output_folder", str(tmp_path / "out")]
    done = subprocess.run(
        ["bash", "scripts/inference.sh", *words, "--num_output_frames", "1", "sampler.num_steps=1"],
        cwd=ROOT,
        env={**os.environ, "RANKS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert set(videos(tmp_path / "out")) == {f"{PROMPTS[0]}-0.mp4"}
    assert "1 videos in" in done.stdout


@pytest.mark.dist
def test_a_training_is_tried(tmp_path):
    recipe, _ = distill_recipe(tmp_path)
    done = subprocess.run(
        ["bash", "scripts/train_long.sh", "--dry_run", "--logdir", str(tmp_path / "run")],
        cwd=ROOT,
        env={**os.environ, "RANKS": "1", "CONFIG": str(recipe)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "dry run: " in done.stdout, done.stderr
    assert not (tmp_path / "run").exists()
