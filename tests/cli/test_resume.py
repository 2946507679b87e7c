"""What stays: finished videos are skipped, an interrupt or a full disk leaves no half file."""

from __future__ import annotations

import json
import logging
import resource
import signal
import subprocess
import sys
import time

import pytest

from tests.architecture.source import ROOT
from tests.digits_fixture import PROMPTS, files, videos
from utils.media.video import read_video


def test_finished_videos_are_skipped_and_the_rest_is_made(door, prompts, tmp_path):
    out, path = tmp_path / "out", prompts(*PROMPTS)
    assert door("--data_path", path, "--output_folder", out) == 0
    whole = videos(out)
    times = {p.name: p.stat().st_mtime_ns for p in out.glob("*.mp4")}
    lost, half = sorted(whole)[0], sorted(whole)[1]
    (out / lost).unlink()
    (out / half).with_suffix(".json").unlink()  # a video without its JSON is not finished
    assert door("--data_path", path, "--output_folder", out) == 0
    assert videos(out) == whole
    again = {p.name for p in out.glob("*.mp4") if p.stat().st_mtime_ns != times[p.name]}
    assert again == {lost, half}
    assert "1 of 3 videos are finished" in door.error


def test_nothing_is_loaded_when_all_is_finished(door, tmp_path, monkeypatch):
    arguments = ["--prompt", PROMPTS[0], "--output_folder", tmp_path / "out"]
    assert door(*arguments) == 0
    monkeypatch.setattr("pipeline.batch.run.load_bundle", None)
    assert door(*arguments) == 0
    assert "1 videos in" in door.said
    with pytest.raises(TypeError):  # the twin: with --overwrite it is needed
        door(*arguments, "--overwrite")


def test_overwrite_makes_anew(door, tmp_path, caplog):
    out = tmp_path / "out"
    arguments = ["--prompt", PROMPTS[0], "--output_folder", out]
    assert door(*arguments) == 0
    (name,), (old,) = videos(out), videos(out).values()
    with caplog.at_level(logging.WARNING):
        assert door(*arguments, "--seed", 7) == 0
    assert videos(out) == {name: old}
    assert "made with {'seed': 0}" in caplog.text  # kept, but not without a word
    assert door(*arguments, "--seed", 7, "--overwrite") == 0
    assert videos(out)[name] != old
    assert json.loads((out / name).with_suffix(".json").read_text())["seed"] == 7


def test_a_batch_is_completed_without_touching_its_finished_half(door, prompts, tmp_path):
    out, path = tmp_path / "out", prompts(*PROMPTS)
    assert door("--data_path", path, "--output_folder", out, "batch=2") == 0
    whole, name = videos(out), f"{PROMPTS[1]}-0.mp4"
    time_of = (out / f"{PROMPTS[0]}-0.mp4").stat().st_mtime_ns
    (out / name).unlink()
    assert door("--data_path", path, "--output_folder", out, "batch=2") == 0
    assert videos(out) == whole
    assert (out / f"{PROMPTS[0]}-0.mp4").stat().st_mtime_ns == time_of


def test_sheet_of_a_resumed_run_is_that_of_a_whole_one(door, prompts, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    for folder, counts in ((out, (1, 3)), (whole, (3,))):
        for count in counts:
            assert door("--data_path", prompts(*PROMPTS[:count]), "--output_folder", folder, "output.sheet=true") == 0
    assert (out / "contact_sheet.png").read_bytes() == (whole / "contact_sheet.png").read_bytes()
    assert door("--data_path", prompts(*PROMPTS[:2]), "--output_folder", tmp_path / "two", "output.sheet=true") == 0
    assert (tmp_path / "two/contact_sheet.png").read_bytes() != (whole / "contact_sheet.png").read_bytes()


@pytest.mark.parametrize("damage", ["emptied", "cut", "without its index", "another video", "text"])
def test_video_that_is_not_whole_is_made_again(door, prompts, tmp_path, caplog, damage):
    path = prompts(*PROMPTS[:2])
    assert door("--data_path", path, "--output_folder", tmp_path / "out") == 0
    whole = videos(tmp_path / "out")
    video, other = (tmp_path / "out" / f"{prompt}-0.mp4" for prompt in PROMPTS[:2])
    content = video.read_bytes()
    if damage == "another video":
        assert door("--prompt", "a red one moves up", "--num_output_frames", 2, "--output_folder", tmp_path / "b") == 0
    changed = {
        "emptied": b"",
        "cut": content[: len(content) // 2],
        "without its index": content[: content.rindex(b"mfra") - 4],
        "another video": damage == "another video" and next((tmp_path / "b").glob("*.mp4")).read_bytes(),
        "text": b"not a video at all, but a note of somebody\n",
    }[damage]
    video.write_bytes(changed)
    time_of = other.stat().st_mtime_ns
    assert door("--data_path", path, "--output_folder", tmp_path / "out") == 0
    assert f"{video.name} is made anew: it" in caplog.text and "1 of 2 videos are finished" in caplog.text
    assert videos(tmp_path / "out") == whole and other.stat().st_mtime_ns == time_of


@pytest.mark.parametrize("kind", ["mp4", "json", "gif", "safetensors"])
def test_folder_of_a_videos_name_is_refused_at_once(door, tmp_path, kind):
    taken = tmp_path / f"{PROMPTS[0]}-0.{kind}"
    taken.mkdir()
    (tmp_path / f"{PROMPTS[0]}-0.mp4").touch()
    said = door.fails("--prompt", PROMPTS[0], "--output_folder", tmp_path, "output.gif=true", "output.latents=true")
    assert f"{taken} is a folder" in said and taken.is_dir()


def test_an_interrupt_keeps_finished_videos_and_leaves_nothing_half(door, prompts, tmp_path):
    out, path = tmp_path / "out", prompts(*PROMPTS)
    assert door("--data_path", path, "--output_folder", tmp_path / "whole", "--num_samples", 3) == 0
    flags = ["--config_path", door.recipe, "--data_path", path, "--output_folder", out, "--num_samples", 3]
    command = [sys.executable, "inference.py", *map(str, flags)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + 240
        while not list(out.glob("*-0.mp4")) and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        while not list(out.glob("*.partial.mp4")) and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=120)[1]
    assert run.returncode == 130, said
    assert "interrupted; finished videos are kept" in said and "Traceback" not in said
    left = files(out)
    assert 1 <= len(videos(out)) < 9
    assert {name.rsplit(".", 1)[1] for name in left} == {"mp4", "json"} and not any("partial" in n for n in left)
    for name in videos(out):
        assert len(read_video(out / name)[0]) == 9
    assert door(*flags[2:]) == 0
    assert videos(out) == videos(tmp_path / "whole")


@pytest.mark.parametrize("also", ["output.sheet=false", "output.latents=true"])
def test_a_full_disk_keeps_finished_videos_and_leaves_nothing_half(door, prompts, tmp_path, also):
    out, path = tmp_path / "out", prompts(*PROMPTS)
    assert door("--prompt", PROMPTS[0], "--output_folder", out) == 0
    finished = files(out)
    frames = 6 if also.startswith("output.latents") else 3
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000 if frames == 3 else 6000, old[1]))
    try:
        said = door.fails("--data_path", path, "--output_folder", out, f"num_output_frames={frames}", also)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "free space" in said and PROMPTS[1] in said
    left = files(out)
    assert {name: left[name] for name in finished} == finished
    assert set(left) == set(finished)
    assert door("--data_path", path, "--output_folder", out, f"num_output_frames={frames}", also) == 0
    assert len(videos(out)) == 3
