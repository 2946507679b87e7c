"""Videos and GIFs that are cut off, killed and gone on with: frame by frame and byte by byte what was never cut."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import av
import numpy as np
import pytest
from PIL import Image

from utils.atomic import GrowingFile
from utils.media.fragments import boxes, fragments, index
from utils.media.gif import GifWriter
from utils.media.image import evenly_spaced
from utils.media.mp4 import VideoWriter
from utils.media.video import read_strip, read_video

RATES = [8, 16, 12.5, 29.97, 30000 / 1001]


def clip(num_frames, height=32, width=48):
    """Noise that stands still at first and then moves: the encoder reorders frames in the second half."""
    base = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.stack([np.roll(base, max(0, 3 * (i - num_frames // 2)), 1) for i in range(num_frames)])


def stamps(path):
    """Returns (presentation times of the decoded frames, in ticks; ticks of one frame; what the container tells)."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shown = [frame.pts for frame in container.decode(stream)]
        one = 1 / (stream.average_rate * stream.time_base)
        return shown, one, (stream.duration, stream.start_time, stream.average_rate)


def write(path, frames, fps, marks=(), **options):
    """Writes a video with marks before the frames of these numbers."""
    with VideoWriter(path, fps, **options) as video:
        for number, frame in enumerate(frames):
            if number in marks:
                video.mark()
            video.write(frame[None])
    return path


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("crf", [18, 0])
def test_stretches_have_the_clock_of_one_video(tmp_path, fps, crf):
    """Also those of one frame, which the encoder does not delay."""
    frames = clip(60)
    one = write(tmp_path / "one.mp4", frames, fps, crf=crf)
    cut = write(tmp_path / "cut.mp4", frames, fps, (1, 2, 4, 25, 59), crf=crf)
    (shown, tick, message), other = stamps(one), stamps(cut)
    assert len(shown) == 60 and other == (shown, tick, message)
    assert set(np.diff(shown)) == {tick} and message[0] == 60 * tick
    if crf == 0:
        assert np.array_equal(read_video(one)[0], read_video(cut)[0])
    with open(cut, "rb") as file:
        kinds = [kind for _, _, kind in boxes(file)]
        numbers = []
        for fragment in fragments(file):
            file.seek(fragment.offset + 20)
            numbers.append(int.from_bytes(file.read(4), "big"))
    assert numbers == list(range(1, len(numbers) + 1)), "fragments are numbered in order"
    assert kinds == [b"ftyp", b"moov", *[b"moof", b"mdat"] * len(numbers), b"mfra"]


def test_each_stretch_decodes_alone(tmp_path):
    """The file cut at a mark, before the next frame, plays to the last frame: nothing of it is still in the encoder."""
    frames = clip(30)
    with VideoWriter(tmp_path / "v.mp4", 8) as video:
        for number in range(3):
            video.write(frames[10 * number : 10 * number + 10])
            mark = video.mark()
            assert mark["frames"] == 10 * number + 10
            assert (tmp_path / "v.partial.mp4").stat().st_size == mark["bytes"]
            assert len(read_video(tmp_path / "v.partial.mp4")[0]) == 10 * number + 10


@pytest.mark.parametrize("fps", RATES)
def test_a_video_that_is_gone_on_with_has_the_bytes_of_one_that_was_not_cut(tmp_path, fps):
    frames, draws = clip(50), random.Random(fps)
    wanted = write(tmp_path / "whole.mp4", frames, fps, (12, 13, 30)).read_bytes()
    for _ in range(4):
        path, mark, done = tmp_path / "v.mp4", None, 0
        while done < 50:
            video = VideoWriter(path, fps, mark=mark)
            stop = draws.randrange(done, 70)
            for number in range(done, min(stop, 50)):
                if number in (12, 13, 30) and number > done:
                    mark, done = video.mark(), number
                video.write(frames[number][None])
            if stop < 50:  # killed: nobody closes it, and half a fragment may lie behind
                video._file.write(b"\0\0\1\0moof and then")
                video._release()
                if mark is None:
                    done = 0
            else:
                video.close()
                done = 50
        assert path.read_bytes() == wanted
        path.unlink()


def test_a_file_that_was_finished_takes_its_partial_name_again(tmp_path):
    frames = clip(20)
    with VideoWriter(tmp_path / "v.mp4", 8) as video:
        video.write(frames[:10])
        mark = video.mark()
        video.write(frames[10:])
    wanted = (tmp_path / "v.mp4").read_bytes()
    with VideoWriter(tmp_path / "v.mp4", 8, mark=mark) as video:
        assert [p.name for p in tmp_path.iterdir()] == ["v.partial.mp4"]
        video.write(frames[10:])
    assert (tmp_path / "v.mp4").read_bytes() == wanted


def test_an_exception_keeps_what_it_is_told_to_keep(tmp_path):
    frames = clip(20)
    for keep in (True, False):
        with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "v.mp4", 8, keep_partial=keep) as video:
            video.write(frames[:10])
            mark = video.mark()
            video.write(frames[10:15])
            raise KeyboardInterrupt
        assert (tmp_path / "v.partial.mp4").exists() == keep
        if keep:
            assert len(read_video(tmp_path / "v.partial.mp4")[0]) == 15
            video = VideoWriter(tmp_path / "v.mp4", 8, keep_partial=True, mark=mark)
            video.abort()  # before the first new frame
            assert len(read_video(tmp_path / "v.partial.mp4")[0]) == 10


def test_other_files_are_refused(tmp_path):
    path, half = tmp_path / "v.mp4", tmp_path / "v.partial.mp4"
    with pytest.raises(ValueError, match="no frames were written"):
        VideoWriter(path, 8).mark()
    video = VideoWriter(path, 8, keep_partial=True)
    video.write(clip(10))
    mark = video.mark()
    video.abort()
    raw = half.read_bytes()
    for other in (raw[:-1], raw[:-9] + b"x" + raw[-8:], b""):
        half.write_bytes(other)
        with pytest.raises(ValueError, match="is not the file that its snapshot knows, or was cut"):
            VideoWriter(path, 8, mark=mark)
        assert half.read_bytes() == other
    half.write_bytes(raw)
    with pytest.raises(ValueError, match="other settings"):
        VideoWriter(path, 16, mark=mark)
    with pytest.raises(ValueError, match=r"has frames of \(32, 32\)"):
        VideoWriter(path, 8, (32, 32), mark=mark)
    assert half.read_bytes() == raw
    half.unlink()
    with pytest.raises(ValueError, match=r"v\.partial\.mp4 is gone"):
        VideoWriter(path, 8, mark=mark)


def test_the_index_is_that_of_the_muxer(tmp_path):
    """Ours is read off the fragments; libavformat writes one for a video of one stretch, shifted by our clock."""
    write(tmp_path / "v.mp4", clip(60), 8)
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "fflags": "+bitexact"}
    with av.open(str(tmp_path / "v.mp4")) as source, av.open(str(tmp_path / "w.mp4"), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    ends = []
    for name in ("v.mp4", "w.mp4"):
        with open(tmp_path / name, "rb") as file:
            (place,) = [offset for offset, _, kind in boxes(file) if kind == b"mfra"]
            file.seek(place)
            end = file.read()
            assert index(fragments(file)) == end
            assert sum(f.num_frames for f in fragments(file)) == 60
            ends.append(end)
    assert len(ends[0]) == len(ends[1]) and len(fragments(open(tmp_path / "v.mp4", "rb"))) == 4


def test_a_torn_file_is_told(tmp_path):
    path = write(tmp_path / "v.mp4", clip(10), 8)
    path.write_bytes(path.read_bytes()[:-3])
    with open(path, "rb") as file, pytest.raises(ValueError, match="is cut off"):
        fragments(file)


def test_a_gif_that_is_gone_on_with(tmp_path):
    frames = clip(24)
    frames[3:6] = frames[2]  # a pause has nothing that differs
    with GifWriter(tmp_path / "a.gif", 12.5) as gif:
        gif.write(frames[:9])
        gif.mark()
        gif.write(frames[9:])
    first = GifWriter(tmp_path / "b.gif", 12.5)
    first.write(frames[:9])
    mark = first.mark()
    first.write(frames[9:14])
    first.abort(keep=True)
    with GifWriter(tmp_path / "b.gif", 12.5, mark) as gif:
        gif.write(frames[9:])
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    shown = 0
    with Image.open(tmp_path / "b.gif") as gif:
        for number in range(gif.n_frames):
            gif.seek(number)
            picture = np.asarray(gif.convert("RGB")).astype(int)
            here = round(shown * 12.5 / 1000)
            assert np.abs(picture - frames[here]).mean() < 12
            shown += gif.info["duration"]
    assert shown == pytest.approx(24 / 12.5 * 1000, abs=10)


def test_a_strip_of_a_long_video(tmp_path):
    frames = clip(70)
    path = write(tmp_path / "v.mp4", frames, 8, (30,))
    assert evenly_spaced(70, 8) == [0, 10, 20, 30, 39, 49, 59, 69] and evenly_spaced(3, 8) == [0, 1, 2]
    assert np.array_equal(read_strip(path, 8), read_video(path)[0][evenly_spaced(70, 8)])


def test_a_growing_file_says_when_the_disk_is_full(tmp_path):
    code = """
        import resource, sys
        from utils.atomic import GrowingFile
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        file = GrowingFile(sys.argv[1] + "/f", sys.argv[1] + "/f.partial")
        file.write(b"x" * 600)
        try:
            file.write(b"y" * 600)
        except OSError as error:
            print(error)
        assert (file.partial).stat().st_size == 600, "all or nothing of a write"
        file.give_up()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path], capture_output=True, text=True)
    assert "finished files are kept; free space" in done.stdout and done.stdout.strip().endswith("/f'"), done
    assert list(tmp_path.iterdir()) == []
    file = GrowingFile(tmp_path / "f", tmp_path / "f.partial")
    file.write(b"abc")
    mark = file.mark()
    file.write(b"def")
    file.give_up(keep=True)
    again = GrowingFile(tmp_path / "f", tmp_path / "f.partial", mark)
    again.write(b"xyz")
    again.finish()
    assert (tmp_path / "f").read_bytes() == b"abcxyz"


def test_an_interrupt_comes_through_at_any_time(tmp_path):
    """PyAV loses one that comes while it calls a Python function back; it must not call one of ours."""
    code = """
        import random, signal, sys, time
        import numpy as np
        from utils.media.mp4 import VideoWriter
        frames = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        draws, through, turns = random.Random(0), 0, 60
        for turn in range(turns):
            video = VideoWriter(f"{sys.argv[1]}/{turn}.mp4", 0.5)  # each frame is a fragment
            try:
                video.write(frames)
                signal.setitimer(signal.ITIMER_REAL, draws.uniform(1e-5, 2e-2))
                end = time.monotonic() + 5
                while time.monotonic() < end:
                    video.write(frames)
            except KeyboardInterrupt:
                through += 1
            video.abort()
        print(through, turns)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path], capture_output=True, text=True)
    assert done.stdout.split() == ["60", "60"], done
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_loses_at_most_the_last_seconds(tmp_path):
    code = """
        import sys, time
        import numpy as np
        from utils.media.mp4 import VideoWriter
        frames = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
        video = VideoWriter(sys.argv[1] + "/v.mp4", 8)
        while True:
            video.write(frames)
            print(video.num_frames, video.num_frames % 100 or video.mark() and 0, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        written = 0
        while written < 260:
            written = int(run.stdout.readline().split()[0])
        time.sleep(0.01)
        os.kill(run.pid, signal.SIGKILL)
        rest = run.stdout.read().split("\n")[:-1]
    written = int(rest[-1].split()[0]) if rest else written
    shown = len(read_video(tmp_path / "v.partial.mp4")[0])
    assert 200 <= shown <= written + 4
