"""The scripts that Live-Avatar's users know by name: which door, recipe and ranks they call."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.architecture.source import ROOT

SINGLE, MULTI = "configs/infer/live_avatar.yaml", "configs/infer/live_avatar_tpp.yaml"
SCRIPTS = {
    "infinite_inference_single_gpu.sh": ("inference.py", SINGLE, "704*384"),
    "infinite_inference_multi_gpu.sh": ("inference.py", MULTI, "720*400"),
    "gradio_single_gpu.sh": ("demo/avatar.py", SINGLE, "704*384"),
    "gradio_multi_gpu.sh": ("demo/avatar.py", MULTI, "720*400"),
}


@pytest.fixture
def printed(tmp_path):
    """printed(script, *arguments, gpus=n, **environment) -> the words that the interpreter was given."""
    (tmp_path / "python").write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" > "{tmp_path}/told"\nexit 7\n')
    (tmp_path / "nvidia-smi").write_text('#!/usr/bin/env bash\nfor _ in $(seq "$GPUS"); do echo GPU; done\n')
    for name in ("python", "nvidia-smi"):
        (tmp_path / name).chmod(0o755)

    def run(script, *arguments, gpus=1, **environment):
        path = f"{tmp_path}:{os.environ['PATH']}"
        settings = {**os.environ, "PATH": path, "PYTHON": str(tmp_path / "python"), "GPUS": str(gpus), **environment}
        assert subprocess.run(["bash", f"scripts/{script}", *arguments], cwd=ROOT, env=settings).returncode == 7
        return (tmp_path / "told").read_text().splitlines()

    return run


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_how_to_call_it(script):
    assert subprocess.run(["bash", "-n", f"scripts/{script}"], cwd=ROOT).returncode == 0
    done = subprocess.run(["bash", f"scripts/{script}", "--help"], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and f"bash scripts/{script} " in lines[1] and SCRIPTS[script][1] in done.stdout
    assert all(line.startswith("# ") for line in lines) and "set -e" not in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_runs_its_recipe_with_the_published_settings_and_all_arguments(printed, script):
    door, recipe, size = SCRIPTS[script]
    words = printed(script, "--prompt", "a b", "x.y=1", gpus=8)
    at = words.index(door)
    assert words[at + 1 :] == ["--config_path", recipe, "--size", size, "--seed", "420", "--prompt", "a b", "x.y=1"]
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=5"] if "multi" in script else []
    assert words[:at] == ranks


@pytest.mark.parametrize("script", SCRIPTS)
def test_another_recipe_brings_its_own_settings(printed, script):
    door, _, _ = SCRIPTS[script]
    for words in (printed(script, "a=1", CONFIG="other.yaml"), printed(script, "--config_path", "other.yaml", "a=1")):
        assert words[words.index(door) + 1 :] == ["--config_path", "other.yaml", "a=1"]


def test_ranks_and_8_bit_linears_are_told_by_the_environment(printed):
    words = printed("gradio_multi_gpu.sh", RANKS="3", ENABLE_FP8="true", gpus=8)
    assert "--nproc_per_node=3" in words and words[-1] == "model.linears=fp8"
    assert "--nproc_per_node=2" in printed("gradio_multi_gpu.sh", gpus=2)
    assert "--nproc_per_node=1" in printed("gradio_multi_gpu.sh", gpus=0)
