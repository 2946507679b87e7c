"""Talking videos by the real command: with sound, killed and gone on with, on several ranks, and bad input refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from PIL import Image

from tests.architecture.source import ROOT
from tests.digits_fixture import Door, files, videos
from tests.utils.media.test_audio import save
from utils.digits.speaking import random_talk
from utils.digits.talks import measure_talks, read_talk
from utils.media.mp4 import VideoWriter

RECIPE = ROOT / "configs/infer/digits_avatar.yaml"
TALK = random_talk(4, 57, seed=77)


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """A portrait and a sound of seven seconds that no training drew."""
    folder = tmp_path_factory.mktemp("talk")
    Image.fromarray(TALK.picture).save(folder / "face.png")
    save(folder / "voice.wav", 16_000, samples=TALK.sound[None])
    return folder


@pytest.fixture
def door(capsys):
    return Door(RECIPE, ROOT / "assets/digits", capsys)


def ask(talk, out, *more):
    given = ["--image", talk / "face.png", "--audio", talk / "voice.wav", "--prompt", TALK.prompt]
    return [*given, "--output_folder", out, "output.sheet=false", *more]


@pytest.fixture(scope="module")
def made(talk, tmp_path_factory):
    """The video as one process makes it, with snapshots on the way."""
    out = tmp_path_factory.mktemp("made")
    command = [sys.executable, "inference.py", "--config_path", RECIPE, *ask(talk, out, "output.save_every_seconds=1")]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, capture_output=True)
    return out


def test_the_digit_follows_the_sound(made):
    (path,) = made.glob("*.mp4")
    with av.open(str(path)) as file:
        assert [stream.type for stream in file.streams] == ["video", "audio"]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    found = measure_talks([read_talk(frames[:57], TALK.subject)], [TALK.rows])
    assert found["follow"] > 0.8 and found["colour"] > 0.9 and abs(found["lag"]) <= 1
    assert measure_talks([read_talk(frames[:57], TALK.subject)], [TALK.rows[::-1].copy()])["follow"] < 0.6
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["start"].endswith("face.png") and facts["frames"] == len(frames)


def test_kill_9_and_resume_give_the_same_bytes(talk, made, tmp_path):
    command = [
        sys.executable,
        "inference.py",
        "--config_path",
        RECIPE,
        *ask(talk, tmp_path, "output.save_every_seconds=1"),
    ]
    run = subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*.partial.safetensors")) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    run.kill()
    assert run.wait() == -signal.SIGKILL and not videos(tmp_path).get(f"{TALK.prompt}-0.mp4")
    done = subprocess.run([*map(str, command), "--resume"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "goes on at" in done.stderr, done.stderr[-600:]
    assert videos(tmp_path) == videos(made)


@pytest.mark.dist
def test_ranks_that_share_the_steps_make_the_same_file(talk, made, tmp_path):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3", "inference.py"]
    recipe = ["--config_path", ROOT / "configs/infer/digits_avatar_tpp.yaml", "generation.portrait.refresh=0"]
    command = [sys.executable, *words, *recipe, *ask(talk, tmp_path)]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-800:]
    plain = tmp_path / "plain"
    again = [sys.executable, "inference.py", "--config_path", RECIPE, *ask(talk, plain)]
    subprocess.run(list(map(str, again)), cwd=ROOT, check=True, capture_output=True)
    assert videos(tmp_path) == videos(plain)


def test_a_list_of_talks(talk, door, tmp_path):
    lines = [
        {"image": "face.png", "audio": "voice.wav", "prompt": TALK.prompt, "name": "one"},
        {"image": "face.png", "audio": ["voice.wav", "voice.wav"], "prompt": "a four moves left", "name": "two"},
    ]
    (talk / "talks.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert door("--data_path", talk / "talks.jsonl", "--seconds", "1", "--output_folder", tmp_path) == 0, door.error
    assert set(videos(tmp_path)) == {"one-0.mp4", "two-0.mp4"}


def test_bad_lines_of_a_list_are_all_named(talk, door, tmp_path):
    lines = [
        '{"image": "face.png", "audio": "voice.wav", "prompt": "a two moves left"}',
        '{"image": "face.png", "audio": 3, "prompt": "x"}',
        '{"image": "face.png", "audio": "voice.wav", "promt": "x"}',
        '{"audio": "voice.wav", "prompt": "x"}',
        '{"image": "face.png", "audio": "", "prompt": "x"}',
    ]
    (talk / "bad.jsonl").write_text("\n".join(lines) + "\n")
    said = door.fails("--data_path", talk / "bad.jsonl", "--output_folder", tmp_path)
    for text in (
        "line 2: audio is 3",
        "line 3: 'promt' is unknown",
        "line 4",
        "it must be a text",
        "line 5: audio is empty",
    ):
        assert text in said
    assert not videos(tmp_path)


def test_bad_sounds_and_portraits_are_refused(talk, door, tmp_path):
    (talk / "empty.wav").write_bytes(b"")
    (talk / "text.png").write_text("no picture")
    with VideoWriter(talk / "silent.mp4", 8) as video:
        video.write(np.zeros((8, 16, 16, 3), np.uint8))
    save(talk / "short.wav", seconds=0.02)
    for change, message in {
        ("--audio", talk / "none.wav"): "none.wav is not a file",
        ("--audio", talk / "empty.wav"): "cannot be read as sound",
        ("--audio", talk / "silent.mp4"): "has no sound track",
        ("--audio", talk / "short.wav"): "holds 0.02 s of sound",
        ("--image", talk / "text.png"): "cannot be read as an image",
        ("--image", talk / "none.png"): "is not a file",
        ("--size", "64"): "write an area as width and height",
        ("--size", "32*32"): "too small",
        ("--prompt", "a red three moves up"): "not a prompt of the talking digits",
    }.items():
        assert message in door.fails(*ask(talk, tmp_path), *change), change
    assert "needs a portrait and a sound" in door.fails("--prompt", TALK.prompt, "--output_folder", tmp_path)
    assert "executor.name=tpp" in door.fails(*ask(talk, tmp_path), "--num_gpus_dit", "4")
    assert not files(tmp_path, "*.mp4")


def test_a_pose_video_and_num_clip_on_the_command_line(talk, door, tmp_path):
    with VideoWriter(tmp_path / "pose.mp4", 30) as out:
        out.write(np.full((20, 48, 80, 3), 200, np.uint8))
    short = ["--num_clip", 1, "generation.cache.window_frames=6", "sampler.name=multi_step", "sampler.num_steps=1"]
    assert door(*ask(talk, tmp_path / "out", "--pose_video", tmp_path / "pose.mp4", *short)) == 0
    (path,) = (tmp_path / "out").glob("*.mp4")
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["frames"] == 21 and facts["pose"] == [str(tmp_path / "pose.mp4")]
    (tmp_path / "no.mp4").write_bytes(b"no video")
    said = door.fails(*ask(talk, tmp_path / "no", "--pose_video", tmp_path / "no.mp4"))
    assert "no.mp4 cannot be read as a video" in said
