"""Long videos: --duration, and runs that are killed, interrupted and gone on with by --resume."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.architecture.source import ROOT
from tests.cli.test_flags import load_config
from tests.digits_fixture import PROMPTS, files
from utils.media.video import read_video

QUICK = ("sampler.num_steps=1", "sampler.guidance=1.0", "output.latents=true", "output.fps=8")
SNAPSHOT = "*.partial.safetensors"


@pytest.fixture
def script(prompts):
    """Two videos that are made together, with switches and seeds of their own."""
    ends = (17, 40, None)
    lines = []
    for seed in (3, 4):
        cues = [{"text": PROMPTS[(i + seed) % 3]} | ({"end_frame": e} if e else {}) for i, e in enumerate(ends)]
        lines.append(json.dumps({"prompts": cues, "seed": seed, "name": f"video {seed}"}))
    return prompts(*lines, name="videos.jsonl")


def content(folder):
    """Returns name -> content of what is not JSON."""
    return {name: data for name, data in files(folder).items() if not name.endswith(".json")}


def started(door, arguments):
    """Returns the process of an inference.py."""
    command = [sys.executable, "inference.py", "--config_path", door.recipe, *arguments]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for_snapshot(run, out, then=0.0):
    """Waits until the process writes its next snapshot, and a while."""
    before = {p: p.stat().st_mtime_ns for p in out.glob(SNAPSHOT)}
    deadline = time.monotonic() + 240
    while run.poll() is None and time.monotonic() < deadline:
        if any(before.get(p) != p.stat().st_mtime_ns for p in out.glob(SNAPSHOT)):
            break
        time.sleep(0.002)
    time.sleep(then)


def test_kill_9_and_resume_until_it_is_done(custom_door, script, tmp_path):
    """Bit by bit the videos, the latents and the switches of a run that nobody killed."""
    door, out, draws = custom_door, tmp_path / "out", random.Random(0)
    arguments = ["--data_path", script, "--duration", "30s", "batch=2", "output.save_every_seconds=1", *QUICK]
    assert door(*arguments, "--output_folder", tmp_path / "whole") == 0, door.error
    whole = content(tmp_path / "whole")
    assert sorted(whole) == [f"video {n}-0.{kind}" for n in (3, 4) for kind in ("mp4", "safetensors")]
    arguments += ["--output_folder", out, "--resume"]
    kills = 0
    for _ in range(2):
        with started(door, arguments) as run:
            wait_for_snapshot(run, out, draws.uniform(0, 0.5))
            kills += run.poll() is None
            run.send_signal(signal.SIGKILL)
        for half in out.glob("*.partial.mp4"):
            assert len(read_video(half)[0]) >= 8, "what was left does not play"
    assert kills == 2
    assert door(*arguments) == 0, door.error
    assert content(out) == whole
    for name in files(out, "*.json"):
        made, wanted = (json.loads((folder / name).read_text()) for folder in (out, tmp_path / "whole"))
        assert [(s["text"], s["frame"]) for s in made["switches"]] == [
            (s["text"], s["frame"]) for s in wanted["switches"]
        ]
        assert made["frames"] == wanted["frames"] == len(read_video(out / f"{name[:-5]}.mp4")[0])


def test_an_interrupt_keeps_the_video_and_says_how_to_go_on(custom_door, tmp_path):
    door, out = custom_door, tmp_path / "out"
    arguments = ["--prompt", PROMPTS[0], "--output_folder", out, "--duration", "60s", "output.save_every_seconds=1"]
    with started(door, [*arguments, *QUICK]) as run:
        wait_for_snapshot(run, out)
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=120)[1]
    assert run.returncode == 130 and "Traceback" not in said, said
    assert "run again with --resume" in said and "interrupted; finished videos are kept" in said
    assert len(files(out)) == 3 and len(read_video(*out.glob("*.partial.mp4"))[0]) >= 8
    left = files(out)
    said = door.fails(*arguments, *QUICK, "--resume", "--seed", 9)
    assert "belongs to another video: config.seed was 0 and is 9" in said and files(out) == left
    assert door(*arguments, *QUICK, "--resume") == 0 and "goes on at" in door.error
    assert sorted(files(out)) == [f"{PROMPTS[0]}-0.{kind}" for kind in ("json", "mp4", "safetensors")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1], ids=lambda n: n.name)
def test_signal_of_a_scheduler_ends_as_ctrl_c_does(custom_door, tmp_path, monkeypatch, number):
    """Sent twice, as schedulers do; and the rerun is the same command with --resume."""
    from wan.codec.vae import StreamingVAE

    door, out, decode, calls = custom_door, tmp_path / "out", StreamingVAE.decode_stream, []
    arguments = ["--prompt", PROMPTS[1], "--duration", "6s", "output.save_every_seconds=1", *QUICK]

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 6:
            try:
                os.kill(os.getpid(), number)
                time.sleep(60)
            finally:
                os.kill(os.getpid(), number)
        return decode(*given)

    with monkeypatch.context() as patch:
        patch.setattr(StreamingVAE, "decode_stream", interrupted)
        assert door(*arguments, "--output_folder", out) == 128 + number
    assert f"inference.py: stopped by {number.name}; finished videos are kept" in door.error
    assert "run again with --resume" in door.error and "Traceback" not in door.error
    assert len(files(out)) == 3 and len(read_video(*out.glob("*.partial.mp4"))[0]) >= 8
    assert door(*arguments, "--output_folder", out, "--resume") == 0 and "goes on at" in door.error
    assert door(*arguments, "--output_folder", tmp_path / "whole") == 0
    assert content(out) == content(tmp_path / "whole")


def test_resume_on_several_ranks(custom_door, prompts, tmp_path, monkeypatch):
    """Who goes on with a video does not matter: what one rank began, another one finishes."""
    door, path = custom_door, prompts(*PROMPTS)
    arguments = ["--data_path", path, "--duration", "6s", "output.save_every_seconds=1", *QUICK]
    assert door(*arguments, "--output_folder", tmp_path / "whole") == 0, door.error
    out, decoded = tmp_path / "out", []

    def broken(vae, *given, decode=None):
        decoded.append(1)
        if len(decoded) % 6 == 0:
            raise OSError("the machine is gone")
        return decode(vae, *given)

    from wan.codec.vae import StreamingVAE

    decode = StreamingVAE.decode_stream
    with monkeypatch.context() as patch:
        patch.setattr(StreamingVAE, "decode_stream", lambda vae, *given: broken(vae, *given, decode=decode))
        for rank in range(3):
            patch.setenv("RANK", str(rank))
            patch.setenv("WORLD_SIZE", "3")
            assert door(*arguments, "--output_folder", out) == 2
    assert len(list(out.glob(SNAPSHOT))) == 3
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert door(*arguments, "--output_folder", out, "--resume") == 0, door.error
        assert "anew" not in door.error
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m", 600), ("90s", 90), ("1h", 3600), ("1h30m", 5400), ("4.5s", 4.5), ("7", 7), ("2.5", 2.5)],
)
def test_a_duration_is_a_time(text, seconds):
    assert load_config("--duration", text).seconds == seconds
    assert load_config("--duration", text, "--seconds", str(seconds)).seconds == seconds


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["ten minutes"], "--duration is 'ten minutes'; write a time like"),
        (["0s"], "--duration is '0s'"),
        (["-5s"], "--duration"),
        ([""], "--duration is ''"),
        (["1s2m"], "--duration is '1s2m'"),
        (["10m", "--num_output_frames", "21"], "--duration 10m and --num_output_frames 21 both tell the length"),
        (["10m", "num_output_frames=21"], "--duration 10m and num_output_frames=21 both tell the length"),
        (["10m", "--seconds", "60"], "--duration 10m and --seconds 60 both tell the length; write one"),
        (["10m", "seconds=60"], "--duration 10m and seconds=60 both tell the length"),
    ],
)
def test_other_durations_are_refused(door, given, words):
    assert door("--prompt", PROMPTS[0], "--duration", *given) == 2
    assert words in door.error and "Traceback" not in door.error


def test_a_duration_is_the_length_of_the_video(custom_door, tmp_path):
    assert custom_door("--prompt", "a cat", "--duration", "1.5s", "--output_folder", tmp_path, *QUICK) == 0
    (video,) = tmp_path.glob("*.mp4")
    assert len(read_video(video)[0]) == 13  # 12 frames are 1 + 3 times 4


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf"])
def test_bad_clocks_of_snapshots_are_refused(door, seconds):
    said = door.fails("--prompt", PROMPTS[0], f"output.save_every_seconds={seconds}")
    assert "save_every_seconds" in said
