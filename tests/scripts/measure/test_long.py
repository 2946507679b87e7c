"""`evaluate.py lengths` and `evaluate.py switches` on synthetic videos whose faults and switches are known."""

import json

import numpy as np
import pytest

from tests.scripts.measure.evaluation import refusal, run
from utils.digits.world import Subject, parse_prompt, prompt_clip, quantise, render
from utils.media.mp4 import VideoWriter

SCRIPT = ["a red three moves right", "a blue three moves right", "a blue three moves up"]
FRAMES, CHUNK = (0, 12, 24), 12  # latent frames of the prompts: pixel frames 0, 45 and 93
LENGTH = 93 + 48


def write(path, clip, **sidecar):
    with VideoWriter(path, 8) as video:
        video.write(clip)
    path.with_suffix(".json").write_text(json.dumps(sidecar))


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory):
    """Two videos of 101 frames that stand still from frame 60 on, and their prompt file."""
    folder = tmp_path_factory.mktemp("long")
    prompts = []
    for number in (1, 62):
        clip, subject = prompt_clip(number, 101, 3)
        clip[60:] = clip[60]
        write(folder / f"{number}.mp4", clip, prompt=subject.text(), seed=3)
        prompts.append(subject.text())
    (folder / "prompts.txt").write_text("\n".join(prompts))
    return folder


def test_each_length_is_measured_in_the_window_that_ends_there(long_videos, tmp_path):
    flags = ("--prompts", long_videos / "prompts.txt", "--ends", 101, 33, 69)
    status, result, text = run(tmp_path, "lengths", "--videos", long_videos, *flags)
    rows = result["rows"]
    assert status == 0 and list(rows) == ["33", "69", "101"]
    assert [row["metrics"]["direction"]["mean"] for row in rows.values()] == [1, pytest.approx(21 / 29, abs=0.08), 0]
    assert [row["metrics"]["colour"]["mean"] for row in rows.values()] == [1, 1, 1]
    assert rows["33"]["change"]["direction"]["mean"] == 0 and rows["101"]["change"]["direction"]["mean"] == -1
    assert rows["101"]["frechet"]["mean"] > 1.1 * rows["33"]["frechet"]["mean"] and rows["33"]["floor"]["mean"] > 0
    assert result["videos"]["videos"] == 2 and "| 101 | 2 | 1.000 +-0.000 |" in text


def test_lengths_that_cannot_be_measured_are_refused(long_videos, capsys):
    flags = ("lengths", "--videos", long_videos, "--prompts", long_videos / "prompts.txt", "--ends")
    assert "has 101 frames, 102 are requested" in refusal(capsys, *flags, 33, 102)
    assert "write ends of at least 33" in refusal(capsys, *flags, 32, 101)
    every = flags[:3]
    assert "answers 2 of the 240 prompts" in refusal(capsys, *every, "--ends", 33)


def scheduled(folder, late, name="video", **more):
    """Writes a video that answers SCRIPT, the colour `late` frames after it was requested, the direction at once."""
    red, blue, up = (parse_prompt(text)[0] for text in SCRIPT)
    clip = quantise(render([blue], LENGTH, np.random.default_rng(0)))
    clip[: 45 + late] = quantise(render([red], 45 + late, np.random.default_rng(0)))
    risen = quantise(render([Subject("blue", 3, "up")], LENGTH - 93, np.random.default_rng(0)))
    clip[93:] = np.roll(risen, 2 * 93, 2)
    assert up.direction == "up"
    switches = [{"text": t, "asked_frame": f, "frame": f} for t, f in zip(SCRIPT, FRAMES, strict=True)]
    write(folder / f"{name}.mp4", clip, **{"prompt": SCRIPT[0], "seed": 0, "switches": switches} | more)


def script_file(folder, *scripts):
    path = folder / "scripts.jsonl"
    cues = [[{"text": t, "end_frame": 12 * (k + 1)} for k, t in enumerate(texts)] for texts in scripts]
    path.write_text("".join(json.dumps({"prompts": own}) + "\n" for own in cues))
    return path


@pytest.mark.parametrize("late", [0, 12])
def test_switches_are_looked_for_where_the_video_made_them(tmp_path, late):
    scheduled(tmp_path, late)
    flags = ("--videos", tmp_path, "--scripts", script_file(tmp_path, SCRIPT))
    status, result, text = run(tmp_path, "switches", *flags)
    rows = result["rows"]
    assert status == 0 and list(rows) == ["all", "colour", "direction"]
    assert rows["colour"]["chunks"]["mean"] == 1 + late / 12 and rows["direction"]["chunks"]["mean"] == 1
    assert rows["all"]["chunks"]["mean"] == 1 + late / 24 and rows["all"]["switches"] == 2
    assert [row["jump"]["mean"] for row in rows.values()] == [pytest.approx(2, abs=0.2)] * 3
    assert rows["colour"]["kept"]["mean"] > 0.95 and len(rows["colour"]["curve"]) == 3 + 4
    assert result["videos"] == {"folder": str(tmp_path), "videos": 1, "scripts": 1, "seeds": ["0"]}
    assert "| direction | 1 | 1.000 +-0.000 | 1.000 +-0.000 |" in text


def test_every_script_must_be_answered(tmp_path, capsys):
    other = [SCRIPT[0], "a green three moves right", "a green three moves up"]
    scheduled(tmp_path, 0)
    flags = ("switches", "--videos", tmp_path, "--scripts", script_file(tmp_path, SCRIPT, other))
    printed = refusal(capsys, *flags)
    assert "answers 1 of the 2 schedules" in printed and "a green three moves right" in printed
    assert run(tmp_path, *flags, "--partial")[0] == 0


def test_videos_that_tell_of_no_switches_are_refused(tmp_path, capsys):
    scheduled(tmp_path, 0, switches=[])
    flags = ("switches", "--videos", tmp_path, "--scripts", script_file(tmp_path, SCRIPT))
    assert "video.json names no switches" in refusal(capsys, *flags)
    early = [{"text": t, "frame": f} for t, f in zip(SCRIPT, (0, 6, 24), strict=True)]
    scheduled(tmp_path, 0, switches=early)
    assert "video.mp4: the colour changes at pixel frame 21" in refusal(capsys, *flags)
