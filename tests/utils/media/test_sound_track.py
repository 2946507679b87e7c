"""Sound and picture in one file: in step from start to end, the same bytes however it was written or gone on with."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import av
import numpy as np
import pytest

from tests.architecture.source import ROOT
from utils.media import mp4
from utils.media.audio import ArraySound, FileSound
from utils.media.fragments import fragments
from utils.media.mp4 import VideoWriter, find_damage, sample_frames
from utils.media.sound_track import RATE, SoundTrack
from utils.media.video import read_at, read_strip, read_video

FPS, SIZE = 25, 32


def scene(seconds: int, every: int = 2):
    """Returns (frames that flash, samples that click at the same time)."""
    frames = np.zeros((seconds * FPS, SIZE, SIZE, 3), np.uint8)
    sound = np.zeros(seconds * RATE, np.float32)
    for second in range(1, seconds, every):
        frames[second * FPS] = 255
        sound[second * RATE : second * RATE + 480] = 0.8
    return frames, sound


def write(path, frames, sound, cuts=(7,), marks=(), **options):
    """Writes frames in pieces of these lengths, in turn; returns the last mark."""
    mark, start, number = None, 0, 0
    with VideoWriter(path, FPS, sound=sound and ArraySound(sound[0], RATE), **options) as video:
        while start < len(frames):
            stop = min([start + cuts[number % len(cuts)], *[m for m in marks if m > start]])
            video.write(frames[start:stop])
            start, number = stop, number + 1
            if start in marks:
                mark = video.mark()
    return mark


def events(path) -> tuple[list[float], list[float]]:
    """Returns the times of flashes and clicks as a player meets them."""
    with av.open(str(path)) as file:
        flashes = [f.time for f in file.decode(video=0) if bytes(f.planes[0])[SIZE // 2] > 100]
    clicks: list[float] = []
    with av.open(str(path)) as file:
        for frame in file.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray()).max(0) > 0.3)
            if len(loud) and (not clicks or frame.time + loud[0] / RATE - clicks[-1] > 0.5):
                clicks.append(frame.time + loud[0] / RATE)
    return flashes, clicks


def apart(path) -> list[float]:
    flashes, clicks = events(path)
    assert len(flashes) == len(clicks) > 2
    return [abs(a - b) for a, b in zip(flashes, clicks, strict=True)]


def test_sound_and_picture_are_in_step(tmp_path):
    """Ten minutes, with a mark every two, from the first second to the last frame."""
    frames, sound = scene(600, every=13)
    frames[-1], sound[-RATE // FPS :] = 255, 0.8
    write(tmp_path / "a.mp4", frames, (sound,), marks=range(3000, 15_000, 3000))
    assert max(apart(tmp_path / "a.mp4")) < 0.02
    assert find_damage(tmp_path / "a.mp4", len(frames)) is None


def test_without_the_pictures_delay_it_would_lead(tmp_path, monkeypatch):
    """The mutation: sound that starts at 0 is two frames early."""
    monkeypatch.setattr(mp4, "SoundTrack", lambda sound, fps, delay: SoundTrack(sound, fps, 0))
    frames, sound = scene(8)
    write(tmp_path / "a.mp4", frames, (sound,))
    assert min(apart(tmp_path / "a.mp4")) > 0.05


def test_bytes_do_not_depend_on_how_frames_come(tmp_path):
    frames, sound = scene(6)
    files = {}
    for cuts in ((150,), (1,), (7, 13, 2)):
        write(tmp_path / "a.mp4", frames, (sound,), cuts)
        files[cuts] = (tmp_path / "a.mp4").read_bytes()
    assert len(set(files.values())) == 1


def test_fragments_count_the_pictures(tmp_path):
    frames, sound = scene(5)
    write(tmp_path / "a.mp4", frames, (sound,))
    with (tmp_path / "a.mp4").open("rb") as file:
        assert [fragment.num_frames for fragment in fragments(file)] == [50, 50, 25]
    assert sample_frames(tmp_path / "a.mp4", 5).shape == (5, SIZE, SIZE, 3)


@pytest.mark.parametrize("marks", [(30,), (25, 60, 61)])
def test_a_resumed_file_has_the_bytes_of_one_that_was_not(tmp_path, marks):
    frames, sound = scene(4)
    mark = write(tmp_path / "whole.mp4", frames, (sound,), marks=marks)
    first = VideoWriter(tmp_path / "cut.mp4", FPS, sound=ArraySound(sound, RATE), keep_partial=True)
    done = 0
    for stop in marks:
        first.write(frames[done:stop])
        again, done = first.mark(), stop
    assert again == mark
    first.write(frames[done : done + 9])
    first.abort()
    with VideoWriter(tmp_path / "cut.mp4", FPS, mark=again, sound=ArraySound(sound, RATE)) as second:
        second.write(frames[done:])
    assert (tmp_path / "cut.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    with pytest.raises(ValueError, match="was begun with sound; begin it anew"):
        VideoWriter(tmp_path / "cut.mp4", FPS, mark=again)


def test_a_killed_process_leaves_a_file_that_plays(tmp_path):
    script = f"""
        import numpy as np
        from utils.media.audio import ArraySound
        from utils.media.mp4 import VideoWriter
        sound = ArraySound(np.sin(np.arange(480000) / 20).astype("float32") * 0.3, 48000)
        video = VideoWriter({str(tmp_path / "a.mp4")!r}, 25, sound=sound, keep_partial=True)
        video.write(np.zeros((160, 32, 32, 3), np.uint8))
        print("ready", flush=True)
        input()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    with av.open(str(tmp_path / "a.partial.mp4")) as file:
        heard = sum(frame.samples for frame in file.decode(audio=0))
    with av.open(str(tmp_path / "a.partial.mp4")) as file:
        seen = sum(1 for _ in file.decode(video=0))
    assert seen >= 50 and abs(heard / RATE - seen / FPS) < 0.2


@pytest.mark.parametrize("length", [0.5, 9.0])
def test_sound_ends_with_the_video(tmp_path, length):
    frames, sound = scene(3)
    write(tmp_path / "a.mp4", frames, (np.resize(sound, int(length * RATE)),))
    with av.open(str(tmp_path / "a.mp4")) as file:
        last = [frame.time + frame.samples / RATE for frame in file.decode(audio=0)][-1]
    assert last == pytest.approx(3 + mp4.REORDERED / FPS, abs=0.03)


def test_a_silent_video_has_the_bytes_it_had(tmp_path):
    frames, _ = scene(3)
    write(tmp_path / "a.mp4", frames, None)
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert [stream.type for stream in file.streams] == ["video"]


def test_stereo_is_kept_and_read_back(tmp_path):
    frames, _ = scene(3)
    time = np.arange(3 * RATE) / RATE
    sides = np.stack((np.sin(2 * np.pi * 300 * time), np.zeros_like(time)), 1).astype(np.float32) * 0.5
    write(tmp_path / "a.mp4", frames, (sides,))
    found = FileSound(tmp_path / "a.mp4", RATE, channels=2).read(RATE, 2 * RATE)
    assert np.abs(found[:, 0]).max() > 0.4 and np.abs(found[:, 1]).max() < 0.05


def test_another_rate_is_refused(tmp_path):
    with pytest.raises(ValueError, match="48000 samples a second and one or two channels; this one has 16000"):
        VideoWriter(tmp_path / "a.mp4", FPS, sound=ArraySound(np.zeros(10, np.float32), 16_000))


def test_counting_the_last_track_would_count_the_sound(tmp_path, monkeypatch):
    """The mutation: the last track of a fragment is not the pictures'."""
    monkeypatch.setattr("utils.media.fragments.PICTURES", 2)
    frames, sound = scene(5)
    with pytest.raises(AssertionError, match="lost frames"):
        write(tmp_path / "a.mp4", frames, (sound,))


def test_first_and_last_frame_are_in_step(tmp_path):
    frames, sound = np.zeros((75, SIZE, SIZE, 3), np.uint8), np.zeros(3 * RATE, np.float32)
    for frame in (0, 30, 74):
        frames[frame] = 255
        sound[frame * RATE // FPS :][:480] = 0.8
    write(tmp_path / "a.mp4", frames, (sound,), marks=(20, 31))
    assert max(apart(tmp_path / "a.mp4")) < 0.02


@pytest.mark.parametrize("fps", [0.5, 12.5, 30_000 / 1001, 120, 240])
def test_any_rate_is_in_step_from_no_time_before_0(tmp_path, fps):
    count = max(3, round(3 * fps))
    frames, sound = np.zeros((count, SIZE, SIZE, 3), np.uint8), np.zeros(round(count * RATE / fps), np.float32)
    for frame in (count // 2, count - 1):
        frames[frame] = 255
        sound[round(frame * RATE / fps) :][:480] = 0.8
    with VideoWriter(tmp_path / "a.mp4", fps, sound=ArraySound(sound, RATE)) as video:
        video.write(frames)
    flashes, clicks = events(tmp_path / "a.mp4")
    assert len(flashes) == len(clicks) == 2
    assert max(abs(a - b) for a, b in zip(flashes, clicks, strict=True)) < 0.02
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert all(stream.start_time >= 0 for stream in file.streams)


def test_sound_changes_no_picture(tmp_path):
    """The same packets at the same times, the same frames for all who read them, also around marks."""
    frames, sound = scene(5)
    frames[:, ::3] = np.arange(len(frames), dtype=np.uint8)[:, None, None, None]
    found = []
    for name, samples in (("loud", (sound,)), ("silent", None)):
        path = tmp_path / f"{name}.mp4"
        write(path, frames, samples, marks=(30, 71))
        with av.open(str(path)) as file:
            packets = [(p.pts, p.dts, p.duration, p.is_keyframe, bytes(p)) for p in file.demux(video=0) if p.size]
        found.append((packets, read_video(path), read_strip(path, 8), read_at(path, 20, 8), sample_frames(path, 8)))
    (packets, *loud), (others, *silent) = found
    assert packets == others and len(packets) == len(frames)
    for one, other in zip(loud, silent, strict=True):
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else np.array_equal(one[0], other[0])
    assert loud[0][1] == silent[0][1] and loud[2][1] == silent[2][1]


def test_silence_stays_silence(tmp_path):
    frames, _ = scene(3)
    write(tmp_path / "a.mp4", frames, (np.zeros(3 * RATE, np.float32),))
    heard = FileSound(tmp_path / "a.mp4", RATE)
    assert heard.length >= 3 * RATE and not heard.read(0, heard.length).any()


@pytest.mark.parametrize("order", ["va", "av", "a"])
def test_files_of_other_programs_are_whole(tmp_path, order):
    """Their sound may have fragments of its own, or the first track."""
    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "frag_every_frame+empty_moov"}) as file:
        streams = {kind: file.add_stream(*(("libx264", 25) if kind == "v" else ("aac", RATE))) for kind in order}
        if "v" in streams:
            streams["v"].width = streams["v"].height = SIZE
            streams["v"].pix_fmt = "yuv420p"
        for number in range(20):
            if "v" in streams:
                picture = av.VideoFrame.from_ndarray(np.zeros((SIZE, SIZE, 3), np.uint8), format="rgb24")
                picture.pts = number
                file.mux(streams["v"].encode(picture))
            part = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.float32), format="fltp", layout="mono")
            part.sample_rate, part.pts = RATE, number * 1920
            file.mux(streams["a"].encode(part))
        for stream in streams.values():
            file.mux(stream.encode(None))
    assert find_damage(tmp_path / "a.mp4") is None
