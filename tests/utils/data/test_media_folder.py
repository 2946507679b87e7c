"""Folders of videos or images with captions: what is listed, how frames are picked and sized."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data.media_folder import list_media, read_caption, read_clip, read_end, resize
from utils.data.records import BadRecord
from utils.media.mp4 import VideoWriter
from utils.media.video import read_video

SIZE = (16, 32)


def video(path, count: int = 9, fps: float = 8, size=SIZE):
    """Writes a video whose frame i is grey of level 20 i."""
    frames = np.broadcast_to((20 * np.arange(count, dtype=np.uint8))[:, None, None, None], (count, *size, 3))
    with VideoWriter(path, fps, crf=0) as writer:
        writer.write(frames)
    path.with_suffix(".txt").write_text(f"{path.stem},\n two  lines\n")
    return path


def levels(clip: torch.Tensor) -> list[int]:
    """Returns the number of the source frame that each frame of a clip shows."""
    return ((clip.mean((1, 2, 3)) + 1) * 127.5 / 20).round().int().tolist()


def test_videos_are_listed_by_name(tmp_path):
    for name in ("b", "a"):
        video(tmp_path / f"{name}.mp4", 1)
    assert [p.stem for p in list_media(tmp_path)[1]] == ["a", "b"]
    assert read_caption(tmp_path / "a.mp4") == "a, two lines"


def test_unclear_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no videos or images"):
        list_media(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="two images with the name 'a'"):
        list_media(tmp_path)
    video(tmp_path / "b.mp4", 1)
    with pytest.raises(ValueError, match="1 videos and 2 images"):
        list_media(tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        list_media(tmp_path / "no")


def test_bad_captions_are_named(tmp_path):
    with pytest.raises(BadRecord, match=r"write a\.txt"):
        read_caption(tmp_path / "a.mp4")
    for content, why in ((b" \n", "empty"), (b"\xff\xfe\x00", "UTF-8"), (b"a\x00b", "control")):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(BadRecord, match=rf"a\.txt.*{why}"):
            read_caption(tmp_path / "a.mp4")


def test_frames_are_picked_at_the_rate(tmp_path):
    path = video(tmp_path / "a.mp4", 12)
    assert levels(read_clip(path, 5, SIZE)) == [0, 1, 2, 3, 4]
    assert levels(read_clip(path, 5, SIZE, fps=4)) == [0, 2, 4, 6, 8]
    assert levels(read_clip(path, 5, SIZE, fps=16)) == [0, 0, 1, 1, 2]
    assert read_clip(path, 5, SIZE).shape == (5, 3, *SIZE)


def test_short_and_broken_videos_are_named(tmp_path):
    path = video(tmp_path / "a.mp4", 8)
    read_clip(path, 5, SIZE)
    with pytest.raises(BadRecord, match=r"a\.mp4 has 8 frames"):
        read_clip(path, 9, SIZE)
    with pytest.raises(BadRecord, match=r"a\.mp4 has 1 s, 4 frames at 4 fps"):
        read_clip(path, 5, SIZE, fps=4)
    path.write_bytes(b"no video")
    with pytest.raises(BadRecord, match=r"a\.mp4 cannot be read"):
        read_clip(path, 5, SIZE)


def test_only_what_is_needed_is_decoded(tmp_path):
    path = video(tmp_path / "a.mp4", 12)
    assert len(read_video(path, most=3)[0]) == 3
    assert len(read_video(path, seconds=0.5)[0]) == 5
    assert len(read_video(path)[0]) == 12


def test_an_image_is_a_clip_of_one_frame(tmp_path):
    Image.new("RGB", (64, 32), (255, 0, 0)).save(tmp_path / "a.png")
    clip = read_clip(tmp_path / "a.png", 1, SIZE)
    assert clip.shape == (1, 3, *SIZE) and torch.equal(clip[0, :, 0, 0], torch.tensor([1.0, -1.0, -1.0]))


def test_crop_keeps_the_aspect_and_stretch_does_not():
    pixels = torch.full((2, 3, 20, 60), -1.0)
    pixels[..., 20:40] = 1  # the middle third
    cropped, stretched = resize(pixels, (20, 20), "crop"), resize(pixels, (20, 20), "stretch")
    assert cropped.shape == stretched.shape == (2, 3, 20, 20)
    assert cropped.mean() > 0.99 and -0.5 < stretched.mean() < 0
    assert resize(pixels, (20, 60), "crop") is pixels
    with pytest.raises(ValueError, match="mode"):
        read_clip(None, 1, SIZE, mode="squeeze")


@pytest.mark.parametrize(
    ("rate", "fps", "requested", "shown"),
    [
        (8, 8, 4, [5, 6, 7, 8]),
        (8, 8, 20, list(range(9))),  # all there are
        (8, 4, 3, [4, 6, 8]),
        (8, 4, 9, [0, 2, 4, 6, 8]),
        (4, 8, 4, [6, 7, 7, 8]),  # repeated: of two as near, the earlier
        (8, 3, 4, [0, 3, 5, 8]),
    ],
)
def test_the_end_of_a_video_is_read_at_the_rate_of_the_video(tmp_path, rate, fps, requested, shown):
    path = video(tmp_path / "a.mp4", fps=rate)
    pixels, found = read_end(path, requested, fps, SIZE)
    assert found == rate and levels(pixels) == shown and pixels.shape[1:] == (3, *SIZE)


def test_the_end_of_a_video_is_cropped_to_the_videos_size(tmp_path):
    path = video(tmp_path / "a.mp4", 3, size=(32, 32))
    pixels, _ = read_end(path, 2, 8, SIZE)
    whole = torch.from_numpy(read_video(path)[0][-2:]).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.equal(pixels, whole[:, :, 8:24])
    assert read_end(path, 2, 8, (8, 8))[0].shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="no.mp4 is not a file"):
        read_end(tmp_path / "no.mp4", 2, 8, SIZE)
