"""Videos and pictures are read as a player shows them, and nothing but the file itself is opened."""

from __future__ import annotations

import io
import logging
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from tests.utils.media import foreign
from utils.data.media_folder import read_clip, read_end
from utils.media.image import read_image
from utils.media.video import CONTAINERS, open_timed, read_at, read_video

NEAR = 24  # of 255: what lossy codecs change in a flat patch


def near(a: np.ndarray, b: np.ndarray) -> bool:
    """True if two frames have the same size and the same colours in the middle of their quarters."""
    if a.shape != b.shape:
        return False
    rows, columns = (np.array([1, 3]) * n // 4 for n in a.shape[:2])
    return np.abs(a[np.ix_(rows, columns)].astype(int) - b[np.ix_(rows, columns)]).max() <= NEAR


def grey(number: int, size: int = 32) -> np.ndarray:
    return np.full((size, size, 3), 20 + 12 * number, np.uint8)


def numbers(frames) -> list[int]:
    """Returns which `grey` each frame is."""
    return [round((float(np.asarray(frame, float).mean()) - 20) / 12) for frame in frames]


@pytest.mark.parametrize(("turn", "mirrored"), foreign.MATRICES)
def test_the_display_matrix_turns_the_frames(tmp_path, turn, mirrored):
    frame = foreign.corners()
    path = foreign.write(tmp_path / "v.mp4", [frame] * 3)
    foreign.set_matrix(path, foreign.MATRICES[turn, mirrored], 96, 64)
    found, _ = read_video(path)
    assert near(found[0], foreign.shown(frame, turn, mirrored)), found.shape


def test_an_angle_between_quarter_turns_is_told(tmp_path, caplog):
    import struct

    path = foreign.write(tmp_path / "v.mp4", [foreign.corners()] * 2)
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    data[place : place + 20] = struct.pack(">5i", 60000, 20000, 0, -20000, 60000)
    path.write_bytes(data)
    read_video(path)
    assert "v.mp4 is to be shown turned by an angle between quarter turns" in caplog.text


@pytest.mark.parametrize(("aspect", "size"), [("2/1", (64, 192)), ("1/2", (128, 96)), ("4/3", (64, 128))])
def test_pixels_are_made_square(tmp_path, aspect, size):
    frame = foreign.corners()
    found, _ = read_video(foreign.write(tmp_path / "v.mp4", [frame] * 2, aspect=aspect))
    assert found.shape[1:3] == size
    assert near(found[0], np.array(Image.fromarray(frame).resize(size[::-1])))


def test_wide_pixels_are_turned_after_they_are_made_square(tmp_path):
    path = foreign.write(tmp_path / "v.mp4", [foreign.corners()] * 2, aspect="2/1")
    foreign.set_matrix(path, foreign.MATRICES[90, False], 96, 64)
    assert read_video(path)[0].shape[1:3] == (192, 64)


TIMES = [0, 0.05, 0.1, 0.2, 0.6, 1.6, 2.0, 2.05, 3.0]  # bursts and pauses


def wanted(moments) -> list[int]:
    """Returns the frame nearest to each moment."""
    return [int(np.abs(np.array(TIMES) - m).round(9).argmin()) for m in moments]


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.webm"])
@pytest.mark.parametrize("start", [0.0, 5.0])
@pytest.mark.parametrize("fps", [2.0, 5.0, 12.5])
def test_frames_are_taken_by_their_times(tmp_path, name, start, fps):
    codec = {"codec": "libvpx", "deadline": "realtime"} if name == "v.webm" else {"codec": "libx264", "bf": 0}
    path = foreign.write(tmp_path / name, [grey(n) for n in range(len(TIMES))], TIMES, 30, start=start, **codec)
    count = int(3.0 * fps) + 1
    found, end = read_at(path, count, fps)
    assert numbers(found) == wanted(np.arange(count) / fps) and end >= 3.0
    clip = read_clip(path, count, (32, 32), fps)
    assert numbers(clip.numpy() * 127.5 + 127.5) == wanted(np.arange(count) / fps)
    last = read_end(path, count, fps, (32, 32))[0]
    assert numbers(last.numpy() * 127.5 + 127.5) == wanted(3.0 - np.arange(count)[::-1] / fps)


def test_reordered_frames_keep_their_times(tmp_path):
    path = foreign.write(tmp_path / "v.mp4", [grey(n) for n in range(9)], TIMES, 30, bf=3)
    with open_timed(path) as (frames, _):
        found = [time for time, _ in frames]
    assert found == pytest.approx(TIMES, abs=2e-3)


def test_frames_without_a_constant_rate_are_told(tmp_path, caplog):
    path = foreign.write(tmp_path / "v.mp4", [grey(n) for n in range(9)], TIMES, 30)
    read_video(path)
    assert "v.mp4: frame" in caplog.text and "its rate is not constant" in caplog.text
    caplog.clear()
    for rate in (8, 24, 30):
        read_video(foreign.write(tmp_path / f"{rate}.mp4", [grey(n) for n in range(9)], rate=rate))
    assert not caplog.text


@pytest.mark.parametrize(("number", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_told_with_its_curve(tmp_path, caplog, number, name):
    path = foreign.write(tmp_path / "v.mp4", [foreign.corners()] * 2, transfer=number)
    read_clip(path, 2, (32, 32))
    assert f"v.mp4 is HDR video with the transfer curve {name}" in caplog.text
    caplog.clear()
    read_clip(foreign.write(tmp_path / "sdr.mp4", [foreign.corners()] * 2, transfer=1), 2, (32, 32))
    assert not caplog.text


def square(hidden: tuple[int, int, int], soft: int = 255) -> Image.Image:
    """A red square on nothing, below which a colour is hidden."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[..., :3] = hidden
    pixels[8:24, 8:24] = (220, 20, 20, soft)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("ending", ["png", "webp", "tiff"])
@pytest.mark.parametrize("soft", [255, 100])
def test_pictures_that_look_the_same_are_the_same(tmp_path, caplog, ending, soft):
    options = {"lossless": True, "exact": True} if ending == "webp" else {}
    made = []
    for name, hidden in (("a", (0, 255, 0)), ("b", (9, 9, 200))):
        square(hidden, soft).save(tmp_path / f"{name}.{ending}", **options)
        made.append(read_image(tmp_path / f"{name}.{ending}", (32, 32)))
    assert torch.equal(*made) and torch.equal(made[0][:, 0, 0], torch.ones(3))
    assert f"a.{ending} is transparent in places; it is laid over white" in caplog.text


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_a_transparent_palette_is_laid_over_white(tmp_path, ending):
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((0, 0), 0)
    picture.save(tmp_path / f"a.{ending}", transparency=1)
    found = read_image(tmp_path / f"a.{ending}", (8, 8))
    assert found[:, 0, 0].tolist() == [1, -1, -1] and found[:, 4, 4].tolist() == [1, 1, 1]


def test_opaque_alpha_is_not_told(tmp_path, caplog):
    Image.new("RGBA", (8, 8), (1, 2, 3, 255)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", (8, 8))[2, 0, 0].item() == pytest.approx(3 / 127.5 - 1)
    assert not caplog.text


def test_a_transparent_animation_is_laid_over_white(tmp_path, caplog):
    frames = [Image.new("RGBA", (16, 16), (0, 255, 0, 0)), Image.new("RGBA", (16, 16), (200, 0, 0, 255))]
    frames[0].paste((0, 0, 200, 255), (0, 0, 8, 16))
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], disposal=2, duration=100)
    found, _ = read_video(tmp_path / "a.gif")
    assert (found[0][8, 12] >= 250).all() and found[0][8, 2, 2] > 150 and "laid over white" in caplog.text


def test_a_profile_is_brought_to_srgb(tmp_path):
    """A profile whose red and blue are exchanged shows blue where the file holds red."""
    picture = Image.new("RGB", (8, 8), (200, 100, 50))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    picture.save(tmp_path / "same.png", icc_profile=lab.tobytes())
    found = read_image(tmp_path / "same.png", (8, 8))[:, 0, 0] * 127.5 + 127.5
    assert found.round().tolist() == [200, 100, 50]
    profile = bytearray(lab.tobytes())
    for tag, other in ((b"rXYZ", b"tmp0"), (b"bXYZ", b"rXYZ"), (b"tmp0", b"bXYZ")):
        place = profile.index(tag, 128)
        profile[place : place + 4] = other
    picture.save(tmp_path / "turned.png", icc_profile=bytes(profile))
    found = read_image(tmp_path / "turned.png", (8, 8))[:, 0, 0] * 127.5 + 127.5
    assert found.round().tolist() == [50, 100, 200]


def test_a_damaged_profile_is_told(tmp_path, caplog):
    Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / "a.png", icc_profile=b"nothing of the kind")
    assert read_image(tmp_path / "a.png", (8, 8))[0, 0, 0].item() == pytest.approx(200 / 127.5 - 1)
    assert "a.png has a colour profile that cannot be used" in caplog.text


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"
HOSTILE = {
    "a.png": EPS,
    "a.eps": EPS,
    "a.jpg": b"\xd7\xcd\xc6\x9a" + bytes(40),  # WMF
    "a.webp": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>',
    "a.mp4": b"#EXTM3U\n#EXTINF:1,\nOTHER\n#EXT-X-ENDLIST\n",
    "b.mp4": b"ffconcat version 1.0\nfile OTHER\n",
    "c.mkv": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "d.mov": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>OTHER</BaseURL></MPD>',
    "e.mp4": b"[playlist]\nFile1=OTHER\n",
}
WATCHED = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.fork", "socket.connect", "socket.bind")
_seen: list[str] = []
_hooks: list = []


@pytest.mark.parametrize("name", HOSTILE)
def test_no_file_starts_a_program_or_opens_another(tmp_path, name, monkeypatch):
    """An audit hook stays silent, the other file unread, and the message names the file."""
    if not _hooks:
        _hooks.append(lambda event, args: _seen.append(event) if event in WATCHED else None)
        sys.addaudithook(_hooks[0])
    other = foreign.write(tmp_path / "other.mp4", [foreign.corners()] * 2)
    path = tmp_path / name
    path.write_bytes(HOSTILE[name].replace(b"OTHER", str(other).encode()))
    _seen.clear()
    for read in (lambda: read_image(path, (32, 32)), lambda: read_video(path)):
        with pytest.raises(ValueError, match=name):
            read()
    assert _seen == []


def test_a_video_is_read_whatever_its_name(tmp_path):
    path = foreign.write(tmp_path / "v.mp4", [foreign.corners()] * 2)
    found = read_video(path.rename(tmp_path / "clip.avi"))[0]
    assert near(found[0], foreign.corners())
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(buffer, "JPEG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    assert read_image(tmp_path / "a.png", (8, 8))[0].mean() > 0.9


@pytest.mark.parametrize("format", ["matroska", "avi", "mpegts", "flv", "ogg", "gif", "mov"])
def test_the_usual_containers_are_read(format):
    assert format in CONTAINERS.split(",")


def test_nothing_is_told_of_a_plain_video(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    read_clip(foreign.write(tmp_path / "v.mp4", [foreign.corners()] * 3), 3, (32, 32))
    assert not caplog.text
