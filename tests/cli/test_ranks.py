"""What a file may depend on: the prompt's line, the sample and the seed; never who makes it, or next to what."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests import digits_fixture, tiny
from tests.architecture.source import ROOT
from tests.digits_fixture import PROMPTS, files, videos


@pytest.mark.parametrize(("world", "batch"), [(2, 1), (3, 2), (5, 1)])
def test_ranks_share_the_videos_and_change_none(door, prompts, tmp_path, monkeypatch, world, batch):
    path = prompts(*PROMPTS)
    assert door("--data_path", path, "--output_folder", tmp_path / "one", f"batch={batch}") == 0
    made = {}
    for rank in range(world):  # as torchrun sets it; no rank waits for another
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        out = tmp_path / f"rank{rank}"
        assert door("--data_path", path, "--output_folder", out, f"batch={batch}") == 0, door.error
        assert not made.keys() & videos(out).keys()
        made |= videos(out)
        assert ("nothing to do" in door.error) == (not videos(out))
    assert made == videos(tmp_path / "one")


@pytest.mark.dist
def test_under_torchrun(door, prompts, tmp_path):
    path, flags = prompts(*PROMPTS), ["--config_path", door.recipe, "output.sheet=true", "--data_path"]
    assert door(*flags[2:], path, "--output_folder", tmp_path / "one") == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "inference.py"]
    command += [*map(str, flags), str(path), "--output_folder", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert videos(tmp_path / "two") == videos(tmp_path / "one")
    said = [line for line in done.stdout.splitlines() if "videos in" in line]
    assert said == [f"{len(PROMPTS)} videos in {tmp_path / 'two'}"]  # those of all ranks, once
    assert sorted(files(tmp_path / "two", "*.png")) == ["contact_sheet_0.png", "contact_sheet_1.png"]


def test_more_prompts_or_samples_change_no_other_video(door, prompts, tmp_path):
    calls = {"few": (PROMPTS[:1], 1), "more": (PROMPTS, 1), "samples": (PROMPTS[:1], 2)}
    for name, (lines, samples) in calls.items():
        assert door("--data_path", prompts(*lines), "--output_folder", tmp_path / name, "--num_samples", samples) == 0
    (name,) = few = videos(tmp_path / "few")
    for other in ("more", "samples"):
        assert videos(tmp_path / other)[name] == few[name]
    second = f"{PROMPTS[0]}-1.mp4"
    assert videos(tmp_path / "samples")[second] != few[name]


def test_equal_prompts_on_two_lines_are_two_videos(door, prompts, tmp_path):
    assert door("--data_path", prompts(PROMPTS[0], PROMPTS[0]), "--output_folder", tmp_path / "out") == 0
    assert len(set(videos(tmp_path / "out").values())) == 2


def test_batch_sizes_agree_in_latents(door, prompts, tmp_path):
    path = prompts(*PROMPTS)
    for batch in (1, 2):
        out = tmp_path / str(batch)
        assert door("--data_path", path, "--output_folder", out, f"batch={batch}", "output.latents=true") == 0
    for prompt in PROMPTS:
        one, two = (load_file(tmp_path / b / f"{prompt}-0.safetensors")["latents"] for b in "12")
        assert tiny.error(one, two) < digits_fixture.rounding(passes=9)
        assert one.std() > 0.1
    first, second = (load_file(tmp_path / "2" / f"{p}-0.safetensors")["latents"] for p in PROMPTS[:2])
    assert tiny.error(first, second) > 0.1, "two prompts of a batch made one video"


def test_the_seed_changes_the_video(door, tmp_path):
    for seed in (0, 1):
        assert door("--prompt", PROMPTS[0], "--output_folder", tmp_path / str(seed), "--seed", seed) == 0
    assert videos(tmp_path / "0") != videos(tmp_path / "1")
