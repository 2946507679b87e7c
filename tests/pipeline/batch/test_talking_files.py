"""Talking videos on the disk: with their sound, killed and gone on with, and never with another sound."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest
import torch

from tests.architecture.source import ROOT
from tests.digits_fixture import files
from tests.pipeline.talking_videos import SECONDS, make, prepare
from utils.media.audio import FileSound
from utils.media.mp4 import find_damage
from utils.media.video import read_video


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a video that was made at once."""
    folder, before = tmp_path_factory.mktemp("whole"), torch.get_num_threads()
    torch.set_num_threads(1)
    prepare(folder)
    make(folder)
    yield folder
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def left_by_kill(tmp_path_factory):
    """A folder in which a process was killed behind its second snapshot."""
    folder = tmp_path_factory.mktemp("killed")
    prepare(folder)
    snapshot, seen = folder / "out" / "talk.partial.safetensors", set()
    command = [sys.executable, "-m", "tests.pipeline.talking_videos", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        while len(seen) < 2 and process.poll() is None:
            seen |= {snapshot.stat().st_mtime_ns} if snapshot.exists() else set()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert len(seen) == 2 and not (folder / "out" / "talk.mp4").exists()
    return folder


@pytest.fixture
def killed(left_by_kill):
    """The same folder as the kill left it, whatever a test did to it."""
    kept = left_by_kill.with_name("kept")
    shutil.copytree(left_by_kill, kept)
    yield left_by_kill
    shutil.rmtree(left_by_kill)
    kept.rename(left_by_kill)


def strength(samples: np.ndarray, pitch: float, rate: int) -> float:
    """Returns the amplitude of a tone."""
    turn = np.exp(-2j * np.pi * pitch * np.arange(len(samples)) / rate)
    return 2 * abs((samples * turn).mean())


def test_video_plays_the_sound_of_the_file(whole):
    frames, fps = read_video(whole / "out/talk.mp4")
    assert len(frames) / fps >= SECONDS and find_damage(whole / "out/talk.mp4", len(frames)) is None
    heard = FileSound(whole / "out/talk.mp4", 48_000, channels=2).read(48_000, 5 * 48_000)
    tones = [[strength(heard[:, side], pitch, 48_000) for pitch in (220.0, 440.0)] for side in (0, 1)]
    assert np.allclose(tones, np.diag([9_000 / 32_768] * 2), atol=0.01), "left and right as in the file"


def test_killed_process_is_gone_on_with_to_equal_bytes(whole, killed):
    with av.open(str(killed / "out/talk.partial.mp4")) as file:
        assert {stream.type for stream in file.streams if next(file.decode(stream), None)} == {"video", "audio"}
    make(killed, resume=True)
    made, wanted = files(killed / "out"), files(whole / "out")
    assert set(made) == set(wanted) and {"talk.mp4", "talk.gif"} < set(wanted)
    assert all(made[name] == wanted[name] for name in wanted if not name.endswith(".json"))


def test_another_sound_is_another_video(killed):
    """Its second half would say what its first half did not: the snapshot is refused and kept."""
    left = files(killed / "out")
    prepare(killed, pitch=330.0)
    with pytest.raises(ValueError, match=r"belongs to another video: .*voice\.wav was \w+ and is \w+"):
        make(killed, resume=True)
    assert files(killed / "out") == left
