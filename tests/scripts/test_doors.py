"""Every door where it cannot write, and under limits of disk and memory: one line, status 2, nothing half written."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from tests import digits_fixture
from tests.architecture.source import ROOT, python_sources

PROMPT = "a red three moves right"
INFER = ["inference.py", "--config_path", "configs/infer/digits_student.yaml", "--prompt", PROMPT]
INFER += ["--num_output_frames", "3"]
TEACHER = "configs/train/digits_teacher.yaml"
PAIRS = ["--teacher", "configs/infer/digits_teacher.yaml", "--student", "configs/train/digits_ode_init.yaml"]
PAIRS += ["--prompts", "prompts/digits.txt", "--pairs", "1", "--num_steps", "1", "--guidance", "1"]
# door -> arguments that write to OUT
WRITERS = {
    "inference.py": [*INFER[1:], "--output_folder", "OUT"],
    "train.py": ["--config_path", TEACHER, "trainer.source.path=LATENTS", "--logdir", "OUT"],
    "scripts/encode_latents.py": ["digits", "--vae", "assets/digits/vae", "--clips", "1", "--output", "OUT"],
    "scripts/make_ode_pairs.py": [*PAIRS, "--output", "OUT"],
    "scripts/evaluate.py": ["digits", "--real", "--frames", "5", "--output", "OUT/a.json"],
    "scripts/estimate_memory.py": ["--output", "OUT/a.json"],
    "scripts/benchmark.py": ["infer", "--config_path", "configs/infer/digits.yaml", "--output_folder", "OUT"],
    "scripts/build_digits_text.py": ["--output", "OUT"],
    "scripts/convert_weights.py": ["convert", "assets/digits/teacher", "OUT/a.safetensors", "--to", "longtake"],
    "scripts/migrate_config.py": ["--kind", "infer", "OLD", "OUT/a.yaml"],
    "scripts/train_features.py": ["--steps", "1", "--test", "1", "--output", "OUT"],
    "scripts/export_checkpoint.py": ["RUN", "OUT/a.safetensors"],
}


def call(door: str, arguments: list[str], limit=None) -> subprocess.CompletedProcess:
    """Runs a door in a process of its own; limit: (resource, bytes)."""

    def prepare():
        if limit:
            resource.setrlimit(limit[0], (limit[1], limit[1]))

    command = [sys.executable, door, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, preexec_fn=prepare)


def answered(done: subprocess.CompletedProcess, door: str, words: str) -> None:
    """Asserts that a door ended with status 2 and one line of its own that has these words."""
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert words in done.stderr.splitlines()[-1] and done.stderr.splitlines()[-1].startswith(door.split("/")[-1])


def filled(door: str, tmp_path, out) -> list[str]:
    """Returns a door's arguments with the places of this test."""
    (tmp_path / "old.yaml").write_text("num_frame_per_block: 3\ndenoising_step_list: [1000, 500]\n")
    places = {"OUT": str(out), "OLD": str(tmp_path / "old.yaml"), "RUN": str(tmp_path), "LATENTS": str(tmp_path / "l")}
    arguments = []
    for word in WRITERS[door]:
        for name, place in places.items():
            word = word.replace(name, place)
        arguments.append(word)
    return arguments


@pytest.mark.parametrize("door", WRITERS)
def test_a_place_below_a_file_is_refused_before_the_work(door, tmp_path, capsys):
    import importlib

    (tmp_path / "file").write_text("")
    if door == "train.py":
        digits_fixture.latent_folder(tmp_path / "l")
    main = importlib.import_module(door.removesuffix(".py").replace("/", ".")).main
    assert main(filled(door, tmp_path, tmp_path / "file/out")) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(door.split("/")[-1] + ": ") and str(tmp_path / "file") in said[-1]
    assert (tmp_path / "file").read_text() == ""


def test_every_script_is_a_door():
    doors = [s for s in python_sources(with_tests=False) if s.path.count("/") <= 1 and "__main__" in s.text]
    bare = [s.path for s in doors if s.room in ("scripts", "train", "inference") and "@door(" not in s.text]
    assert len(doors) > 12 and bare == []


@pytest.mark.parametrize("door", ["inference.py", "scripts/encode_latents.py"])
def test_a_full_disk_is_one_line(door, tmp_path):
    out = tmp_path / "out"
    done = call(door, filled(door, tmp_path, out), (resource.RLIMIT_FSIZE, 2000))
    answered(done, door, "oo large")
    assert not [path for path in out.rglob("*") if path.suffix in (".mp4", ".safetensors")]


@pytest.mark.parametrize(("door", "gigabytes"), [("inference.py", 1.0), ("scripts/encode_latents.py", 0.4)])
def test_a_limit_of_memory_is_one_line(door, gigabytes, tmp_path):
    done = call(door, filled(door, tmp_path, tmp_path / "out"), (resource.RLIMIT_AS, int(gigabytes * 1e9)))
    answered(done, door, "not enough memory (`ulimit -v` lets")
