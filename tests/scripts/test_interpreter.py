"""Which Python the shell scripts run: PYTHON, else that of .venv, else the one that the shell finds."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.architecture.source import ROOT

CALLS = {
    "build_digits.sh": (),
    "evaluate_digits.sh": (),
    "gradio_multi_gpu.sh": (),
    "gradio_single_gpu.sh": (),
    "inference.sh": ("--prompt", "x"),
    "infinite_inference_multi_gpu.sh": ("--prompt", "x"),
    "infinite_inference_single_gpu.sh": ("--prompt", "x"),
    "interactive_inference.sh": ("--prompt", "x"),
    "launch_node.sh": ("--config_path", "x.yaml"),
    "launch_nodes.sh": ("1", "localhost:0", "--config_path", "x.yaml"),
    "train_init.sh": (),
    "train_long.sh": (),
}


def tool(path, name):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/bash\necho "{name}" >> "$RECORD"\n')
    path.chmod(0o755)


@pytest.mark.parametrize("script", CALLS)
def test_scripts_take_the_python_that_is_there(script, tmp_path):
    project, found = tmp_path / "a project", tmp_path / "bin"
    shutil.copytree(ROOT / "scripts", project / "scripts", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    tool(found / "nvidia-smi", "nvidia-smi")
    tool(found / "python3", "python3")

    def used(**environment) -> set[str]:
        record = tmp_path / "record"
        record.unlink(missing_ok=True)
        settings = {"PATH": f"{found}:/usr/bin:/bin", "RECORD": str(record), "RANKS": "1", **environment}
        words = ["/bin/bash", str(project / "scripts" / script), *CALLS[script]]
        subprocess.run(words, env=settings, cwd=tmp_path, timeout=60, capture_output=True)
        return set(record.read_text().split()) - {"nvidia-smi"}

    tool(found / "python", "python")
    assert used() == {"python"}
    tool(project / ".venv/bin/python", "own")
    assert used() == {"own"}
    tool(tmp_path / "other", "other")
    assert used(PYTHON=str(tmp_path / "other")) == {"other"}


def test_every_script_that_runs_python_is_tried():
    texts = {path.name: path.read_text() for path in (ROOT / "scripts").glob("*.sh")}
    called = {name for name, text in texts.items() if "scripts/python.sh" in text or "scripts/avatar.sh" in text}
    assert called - {"avatar.sh"} <= set(CALLS)
    assert not [name for name, text in texts.items() if ".venv/bin/python}" in text and name != "python.sh"]


def test_python3_will_do(tmp_path):
    tool(tmp_path / "python3", "python3")
    text = f'. "{ROOT}/scripts/python.sh"; echo "$python"'
    done = subprocess.run(
        ["/bin/bash", "-c", text], env={"PATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(tmp_path / "python3")
