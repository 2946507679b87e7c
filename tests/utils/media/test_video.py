"""Videos and GIFs, checked by decoding what was written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import av
import numpy as np
import pytest
import torch
from PIL import Image

from utils.data.media_kinds import media_kind
from utils.media.gif import write_gif
from utils.media.mp4 import VideoWriter
from utils.media.video import read_video

COLOURS = [(255, 40, 40), (25, 217, 50), (50, 90, 255), (255, 230, 25), (190, 50, 230), (255, 255, 255), (0, 0, 0)]


def _clip(num_frames=12, height=64, width=48):
    """A bar that moves over colour stripes: every frame is told apart by its bar."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    for i, colour in enumerate(COLOURS):
        frames[:, i * 8 : i * 8 + 8] = colour
    for t in range(num_frames):
        frames[t, 56:, t * 4 % width : t * 4 % width + 4] = 255
    return frames


def _write(path, frames, chunks=(5, 1, 6), **options):
    with VideoWriter(path, 16, **options) as video:
        for part in np.split(frames, np.cumsum(chunks)[:-1]):
            video.write(part)
    return path


def _names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_video_is_what_was_written(tmp_path):
    frames = _clip()
    decoded, fps = read_video(_write(tmp_path / "v.mp4", frames))
    assert fps == 16 and decoded.shape == frames.shape and decoded.dtype == np.uint8
    assert _names(tmp_path) == ["v.mp4"]
    for i, colour in enumerate(COLOURS):  # the colour matrix is the one that is tagged
        assert np.abs(decoded[:, i * 8 + 3 : i * 8 + 5].astype(int) - colour).max() <= 8
    distance = np.abs(decoded[:, None, 56:].astype(int) - frames[None, :, 56:]).mean((2, 3, 4))
    assert (distance.argmin(1) == np.arange(len(frames))).all()  # the order of the frames


def test_bytes_do_not_depend_on_chunks_or_names(tmp_path):
    frames = _clip()
    one = _write(tmp_path / "a.mp4", frames).read_bytes()
    assert one == _write(tmp_path / "other name.mp4", frames, (12, 0)).read_bytes()
    assert one == _write(tmp_path / "b.mp4", torch.from_numpy(frames), size=frames.shape[1:3]).read_bytes()
    assert one != _write(tmp_path / "c.mp4", frames[::-1]).read_bytes()
    assert b"Lavf" not in one


def test_fractional_rate_and_quality(tmp_path):
    path = tmp_path / "v.mp4"
    with VideoWriter(path, 29.97, crf=40) as video:
        video.write(_clip())
    assert read_video(path)[1] == pytest.approx(29.97, abs=1e-3)
    assert path.stat().st_size < _write(tmp_path / "w.mp4", _clip()).stat().st_size


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("keep", [False, True])
def test_an_exception_leaves_no_final_file(tmp_path, error, keep):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"an older result")
    with pytest.raises(error), VideoWriter(path, 16, keep_partial=keep) as video:
        video.write(_clip())
        raise error
    assert path.read_bytes() == b"an older result"
    assert _names(tmp_path) == (["v.mp4", "v.partial.mp4"] if keep else ["v.mp4"])
    if keep:
        assert len(read_video(tmp_path / "v.partial.mp4")[0]) == len(_clip())


def _run(code, folder):
    imports = "import os, signal, numpy as np\nfrom utils.media.gif import write_gif\n"
    code = f"{imports}from utils.media.mp4 import VideoWriter\n{textwrap.dedent(code)}"
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)


def test_a_killed_writer_leaves_a_playable_partial_file(tmp_path):
    code = """
        import sys
        os.chdir(sys.argv[1])
        frames = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
        video = VideoWriter("v.mp4", 8)
        for _ in range(6):
            video.write(frames)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert _run(code, tmp_path).returncode == -signal.SIGKILL
    assert _names(tmp_path) == ["v.partial.mp4"]
    assert 32 <= len(read_video(tmp_path / "v.partial.mp4")[0]) < 120


@pytest.mark.skipif(os.name != "posix", reason="the size limit of a process is POSIX")
def test_a_full_disk_is_named_and_finished_files_stay(tmp_path):
    code = """
        import resource, sys
        os.chdir(sys.argv[1])
        frames = np.random.default_rng(0).integers(0, 255, (24, 96, 96, 3), dtype=np.uint8)

        def write_video(name, keep=False):
            with VideoWriter(name, 16, keep_partial=keep) as video:
                for _ in range(4):
                    video.write(frames)

        with VideoWriter("first.mp4", 16) as video:
            video.write(frames[:2, :32, :32])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for limit in (0, 3_000, 100_000):  # in the header, in the first and in a later fragment
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            for write in (lambda: write_gif("b.gif", frames, 8), lambda: write_video("a.mp4")):
                try:
                    write()
                except OSError as error:
                    print(error)
            try:
                write_video(f"kept{limit}.mp4", keep=True)
            except OSError as error:
                print(error)
    """
    done = _run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished files are kept; free space") == 9
    assert all(done.stdout.count(repr(name)) == 3 for name in ("a.mp4", "b.gif"))
    assert set(_names(tmp_path)) <= {"first.mp4", *(f"kept{n}.partial.mp4" for n in (0, 3_000, 100_000))}
    assert len(read_video(tmp_path / "first.mp4")[0]) == 2


def test_a_failed_writer_stays_failed(tmp_path, monkeypatch):
    video = VideoWriter(tmp_path / "v.mp4", 16)
    with monkeypatch.context() as patch:
        patch.setattr(video, "_encode", lambda frame: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match=r"No space left.*v\.mp4"):
            video.write(_clip())
    for action in (video.close, lambda: video.write(_clip())):
        with pytest.raises(ValueError, match="closed or has failed"):
            action()
    video.abort()
    assert _names(tmp_path) == []


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (_clip(height=63), r"\(63, 48\) .* even"),
        (_clip(width=49), r"\(64, 49\) .* even"),
        (_clip().astype(np.float32), r"float32 .* give uint8"),
        (_clip()[..., 0], r"\[12, 64, 48\]"),
        (_clip().transpose(0, 3, 1, 2), r"\[12, 3, 64, 48\]"),
        (_clip()[:0], "no frames were written"),
        (_clip(height=32), r"has frames of \(64, 48\) \(H, W\); now came \(32, 48\)"),
    ],
)
def test_bad_frames_are_refused(tmp_path, frames, message):
    size = (64, 48) if "now came" in message else None
    with pytest.raises(ValueError, match=message), VideoWriter(tmp_path / "v.mp4", 16, size) as video:
        video.write(frames)
    assert _names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("v.avi", {"fps": 16}, r"not as 'v\.avi'"),
        ("v.mp4", {"fps": 0}, "fps 0"),
        ("v.mp4", {"fps": float("nan")}, "fps nan"),
        ("v.mp4", {"fps": 16, "crf": 52}, "crf 52"),
    ],
)
def test_bad_writer_options_are_refused(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        VideoWriter(tmp_path / name, **options)


def test_bad_videos_are_named(tmp_path):
    path = tmp_path / "v.mp4"
    with pytest.raises(ValueError, match=r"v\.mp4 is not a file"):
        read_video(path)
    for content in (b"", b"no video" * 100, _write(tmp_path / "w.mp4", _clip()).read_bytes()[:600]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"v\.mp4"):
            read_video(path)


def test_titles_in_old_letters_do_no_harm(tmp_path):
    """As older programs wrote them: no UTF-8. By name and by content it is a video."""
    frames = _clip(3)
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        file.metadata["title"] = "Maerchen"
        stream = file.add_stream("libx264", 8)
        stream.width, stream.height, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(stream.encode(None))
    content = (tmp_path / "a.mp4").read_bytes()
    assert b"Maerchen" in content
    for name in ("b.mp4", "b.unknown"):
        (tmp_path / name).write_bytes(content.replace(b"Maerchen", b"M\xe4rchen_"))
        assert len(read_video(tmp_path / name)[0]) == 3 and media_kind(tmp_path / name) == "video"


def test_gif(tmp_path):
    frames = _clip(17)
    write_gif(tmp_path / "v.gif", frames, 16)
    with Image.open(tmp_path / "v.gif") as gif:
        assert gif.n_frames == 17 and gif.info["loop"] == 0
        total = 0
        for t in range(17):
            gif.seek(t)
            total += gif.info["duration"]
            assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frames[t]).max() <= 8
    assert abs(total - 17 * 1000 / 16) < 10
    for count, fps in ((0, 16), (2, 0), (2, 60)):
        with pytest.raises(ValueError, match="a GIF needs"):
            write_gif(tmp_path / "w.gif", frames[:count], fps)
