"""Sound that is written while disks fill up, users interrupt and processes die: equal bytes, or an error and a file."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import wave

import av
import numpy as np
import pytest

from tests.architecture.source import ROOT
from tests.utils.media.test_sound_track import FPS, SIZE, scene
from utils.media.audio import ArraySound, FileSound
from utils.media.mp4 import VideoWriter
from utils.media.sound_track import RATE, SoundTrack

# Writes 20 s of frames that a number makes, with a mark every 2 s; MARK: a JSON file that says how far it is.
WRITER = """
    import json, os, sys
    import numpy as np
    from utils.media.audio import FileSound
    from utils.media.mp4 import VideoWriter
    folder, stop = sys.argv[1], int(sys.argv[2])
    path = folder + "/mark.json"
    mark = json.load(open(path)) if os.path.exists(path) else None
    sound = FileSound(folder + "/../voice.wav", 48_000, channels=2)
    video = VideoWriter(folder + "/a.mp4", 25, mark=mark, keep_partial=True, sound=sound)
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for number in range(video.num_frames, 500):
        video.write(np.roll(base, number, 1)[None])
        if video.num_frames % 50 == 0:
            with open(path + ".new", "w") as file:
                json.dump(video.mark(), file)
            os.replace(path + ".new", path)
        print(video.num_frames, flush=True)
        if number == stop:
            sys.stdin.read()
    video.close()
"""


def start(folder, stop=-1):
    """Starts a process that writes into a folder; it waits behind a frame if told to."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(folder), str(stop)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def played(path) -> tuple[int, float]:
    """Returns (frames, seconds of sound) that a player gets of a file."""
    counts = {"video": 0, "audio": 0}
    with av.open(str(path)) as file:
        for packet in file.demux():
            kind = packet.stream.type
            counts[kind] += sum(frame.samples if kind == "audio" else 1 for frame in packet.decode())
    return counts["video"], counts["audio"] / RATE


@pytest.fixture
def voice(tmp_path):
    """18 s of a stereo file at 44.1 kHz: shorter than the video."""
    time = np.arange(18 * 44_100) / 44_100
    sides = np.stack([np.sin(2 * np.pi * (200 + 20 * time) * time), np.sin(2 * np.pi * 300 * time)], 1)
    with wave.open(str(tmp_path / "voice.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44_100)
        file.writeframes((sides * 9_000).astype("<i2").tobytes())


def test_killed_again_and_again_it_has_equal_bytes(tmp_path, voice):
    """kill -9 wherever the process is: right behind a mark, in a stretch, as it encodes."""
    with start(tmp_path / "whole") as whole:
        whole.communicate()
    folder, draws = tmp_path / "killed", random.Random(0)
    for stop in (99, 100, -1, 327):
        with start(folder, stop) as process:
            last = stop + 1 if stop >= 0 else draws.randrange(160, 240)
            assert any(int(line) == last for line in process.stdout)
            process.send_signal(signal.SIGKILL)
        frames, seconds = played(folder / "a.partial.mp4")
        marked = json.loads((folder / "mark.json").read_text())["frames"]
        assert marked <= frames and abs(seconds - frames / FPS) < 0.1, "what a kill leaves plays with its sound"
    with start(folder) as last:
        last.communicate()
    assert (folder / "a.mp4").read_bytes() == (tmp_path / "whole" / "a.mp4").read_bytes()
    assert played(folder / "a.mp4")[0] == 500


def test_a_disk_that_fills_up_loses_nothing(tmp_path):
    """At any byte: an error that says it, no half file, and from the mark on the bytes of a whole one."""
    frames, sound = scene(3)
    frames[:, ::3] = np.arange(len(frames), dtype=np.uint8)[:, None, None, None]

    def write(name, mark=None, keep=False):
        with VideoWriter(tmp_path / name, FPS, mark=mark, keep_partial=keep, sound=ArraySound(sound, RATE)) as video:
            for number in range(video.num_frames, len(frames)):
                video.write(frames[number][None])
                if video.num_frames == 25:
                    found.append(video.mark())

    found: list[dict] = []
    write("whole.mp4")
    wanted, old = (tmp_path / "whole.mp4").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    first, marks = found[0]["bytes"], found[:]
    for limit in [*range(100, len(wanted), len(wanted) // 23), first + 1, len(wanted) - 1]:
        found.clear()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
        try:
            with pytest.raises(OSError, match="finished files are kept; free space"):
                write("a.mp4", keep=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert not (tmp_path / "a.mp4").exists() and found == marks[: limit >= first], limit
        if found:
            seen, seconds = played(tmp_path / "a.partial.mp4")
            assert seen >= 25 and abs(seconds - seen / FPS) < 0.1
        write("a.mp4", found[0] if found else None)
        assert (tmp_path / "a.mp4").read_bytes() == wanted, limit
        (tmp_path / "a.mp4").unlink()


def test_an_interrupt_leaves_a_file_that_plays(tmp_path):
    """Also one that comes while the sound is encoded: what the encoders held may be missing, nothing else."""
    code = """
        import random, signal, sys, time
        import numpy as np
        from utils.media.audio import ArraySound
        from utils.media.mp4 import VideoWriter
        frames = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3), dtype=np.uint8)
        sound = ArraySound(np.sin(np.arange(9_000_000) / 20).astype("float32") * 0.3, 48_000)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        draws, through = random.Random(0), 0
        for turn in range(40):
            video = VideoWriter(f"{sys.argv[1]}/{turn}.mp4", 4, sound=sound, keep_partial=True)
            try:
                video.write(frames)
                signal.setitimer(signal.ITIMER_REAL, draws.uniform(1e-5, 5e-2))
                end = time.monotonic() + 1
                while time.monotonic() < end:
                    video.write(frames)
            except KeyboardInterrupt:
                through += 1
            video.abort()
            print(video.num_frames, flush=True)
        print(through)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path], capture_output=True, text=True)
    *counts, result = done.stdout.splitlines()
    assert int(result) > 35, done  # PyAV loses some
    for turn, count in enumerate(counts):
        assert played(tmp_path / f"{turn}.partial.mp4")[0] <= int(count) + 1, turn


class Ending(ArraySound):
    """A sound whose file is lost behind its first second."""

    def read(self, start, stop):
        """Returns samples."""
        if start > RATE:
            raise ValueError("voice.wav is gone")
        return super().read(start, stop)


class Wrong(ArraySound):
    """A sound of another kind with a sample that is no number."""

    def read(self, start, stop):
        """Returns samples."""
        found = super().read(start, stop)
        found[(np.arange(start, stop) == 2 * RATE + 5)] = np.nan
        return found


@pytest.mark.parametrize("keep", [False, True])
def test_a_sound_that_fails_is_the_error(tmp_path, keep):
    samples = np.zeros(5 * RATE, np.float32)
    for sound, message in (
        (Ending(samples, RATE), "voice.wav is gone"),
        (Wrong(samples, RATE), "holds samples that are not finite numbers after 1."),
    ):
        with (
            pytest.raises(ValueError, match=message) as raised,
            VideoWriter(tmp_path / "a.mp4", FPS, sound=sound, keep_partial=keep) as video,
        ):
            video.write(np.zeros((150, SIZE, SIZE, 3), np.uint8))
        assert raised.value.__context__ is None, "one error, and not a second one of giving up"
        assert [path.name for path in tmp_path.iterdir()] == ["a.partial.mp4"] * keep


def test_an_interrupted_track_goes_on_where_it_was(tmp_path):
    sound, told = ArraySound(np.sin(np.arange(RATE) / 20).astype(np.float32), RATE), []

    class Interrupted(ArraySound):
        def read(self, start, stop):
            if start >= RATE and not told:
                told.append(start)
                raise KeyboardInterrupt
            return super().read(start, stop)

    tracks = [SoundTrack(sound, FPS, 0), SoundTrack(Interrupted(sound.samples, RATE), FPS, 0)]
    with pytest.raises(KeyboardInterrupt):
        tracks[1].skip(60)
    for track in tracks:
        track.skip(70)
    assert bytes(tracks[0]._peek()) == bytes(tracks[1]._peek()) and tracks[0]._peek().pts == tracks[1]._peek().pts


def test_a_file_of_any_kind_is_played_in_step(tmp_path):
    """8 kHz mono, 44.1 kHz stereo, 48 kHz with 8 channels: a click at the first and at the last frame."""
    for rate, channels in ((8_000, 1), (44_100, 2), (48_000, 8)):
        samples = np.zeros((3 * rate, channels), "<i2")
        for place in (0, 3 * rate - rate // FPS):
            samples[place : place + rate // 100] = 20_000
        with wave.open(str(tmp_path / "a.wav"), "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(samples.tobytes())
        with VideoWriter(tmp_path / "a.mp4", FPS, sound=FileSound(tmp_path / "a.wav", RATE, 2)) as video:
            video.write(np.zeros((3 * FPS, SIZE, SIZE, 3), np.uint8))
        with av.open(str(tmp_path / "a.mp4")) as file:
            shown = [frame.time for frame in file.decode(video=0)]
        with av.open(str(tmp_path / "a.mp4")) as file:
            loud = [
                frame.time + np.flatnonzero(level > 0.2)[0] / RATE
                for frame in file.decode(audio=0)
                if (level := np.abs(frame.to_ndarray()).max(0)).max() > 0.2
            ]
        assert abs(loud[0] - shown[0]) < 0.02 and abs(loud[-1] - shown[-1]) < 0.03, (rate, channels)
        assert min(abs(time - shown[-1]) for time in loud) < 0.02
