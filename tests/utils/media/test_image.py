"""Pictures, contact sheets and bytes of pixels, checked by decoding what was written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.media.image import contact_sheet, read_image, to_uint8


def clip(num_frames=12, height=64, width=48):
    """A square that moves down a grey ramp."""
    frames = np.broadcast_to(np.arange(width, dtype=np.uint8)[:, None] * 5, (num_frames, height, width, 3)).copy()
    for t in range(num_frames):
        frames[t, 4 * t : 4 * t + 8, 8:16] = (255, 40, 40)
    return frames


def test_to_uint8_rounds():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 2 / 255 - 1, 2.9 / 255 - 1, 3.1 / 255 - 1])
    frames = to_uint8(x.view(8, 1, 1, 1).expand(8, 3, 1, 2))
    assert frames.shape == (8, 1, 2, 3) and frames.dtype == np.uint8
    assert frames[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255, 1, 1, 2]


def test_all_levels_survive_a_round_trip(tmp_path):
    levels = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3, -1)
    Image.fromarray(levels).save(tmp_path / "i.png")
    pixels = read_image(tmp_path / "i.png", (16, 16))
    assert (to_uint8(pixels) == levels).all()
    assert (to_uint8(pixels[None, None].bfloat16())[0, 0].astype(int) - levels <= 1).all()


def test_to_uint8_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.full((3, 2, 2), float("nan")))
    for pixels in (torch.zeros(2, 2, 3), torch.zeros(3, 2), torch.zeros(3, 2, 2, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="give floats"):
            to_uint8(pixels)


def test_image_modes(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 255  # crop to a square leaves the white middle
    Image.fromarray(pixels).save(tmp_path / "i.png")
    crop, extend = (read_image(tmp_path / "i.png", (20, 20), mode) for mode in ("crop", "stretch"))
    assert crop.shape == extend.shape == (3, 20, 20) and crop.dtype == torch.float32
    # The filter reaches half a pixel over the cut.
    assert crop.min() > 0 and crop[:, :, 1:-1].min() == 1
    assert extend[:, :, 0].max() == -1 and extend[:, :, 10].min() == 1
    with pytest.raises(ValueError, match="mode is 'fit'"):
        read_image(tmp_path / "i.png", (20, 20), "fit")


def test_image_rotation_tag_and_kinds(tmp_path):
    wide = Image.fromarray(np.repeat(np.arange(8, dtype=np.uint8)[None] * 30, 4, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    wide.save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png", (8, 4))
    assert (turned[:, :, 0].diff() > 0).all() and (turned[:, 0, :].diff() == 0).all()
    Image.new("RGBA", (4, 4), (255, 0, 0, 255)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", (2, 2)).flatten(1)[:, 0].tolist() == [1, -1, -1]
    Image.new("I;16", (4, 4), 40_000).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png .* 8 bits"):
        read_image(tmp_path / "deep.png", (2, 2))


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_truncated_images_are_named(tmp_path, kind):
    path = tmp_path / f"i.{kind}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for part in (0, 4, 20, len(whole) // 2):
        path.write_bytes(whole[:part])
        with pytest.raises(ValueError, match=rf"i\.{kind} cannot be read as an image"):
            read_image(path, (8, 8))
    with pytest.raises(ValueError, match="is not a file"):
        read_image(tmp_path, (8, 8))


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255), kind=st.sampled_from(["png", "jpg", "webp", "gif"]))
def test_a_damaged_image_is_read_or_refused_clearly(tmp_path_factory, place, value, kind):
    path = tmp_path_factory.mktemp("i") / f"i.{kind}"
    Image.fromarray(clip(1)[0]).save(path)
    content = bytearray(path.read_bytes())
    content[place % len(content)] = value
    path.write_bytes(content)
    try:
        assert read_image(path, (8, 8)).shape == (3, 8, 8)
    except ValueError as error:
        assert path.name in str(error)


def test_contact_sheet_shows_first_and_last_frame_of_eachclip(tmp_path):
    long, short = np.zeros((33, 64, 64, 3), np.uint8), np.zeros((3, 32, 64, 3), np.uint8)
    long[0], long[-1], short[0], short[-1] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
    labels = ["a " + "very " * 60 + "long prompt", "\u732b caf\u00e9"]
    contact_sheet(tmp_path / "s.png", [long, short], labels, num_frames=5, height=96)
    sheet = np.asarray(Image.open(tmp_path / "s.png").convert("RGB"))
    width, header = 3 * 194 - 2, 30
    assert sheet.shape == (4 + 2 * (96 + header + 4), 4 + width + 4, 3)
    top, second = 4 + header, 4 + (96 + header + 4) + header
    assert (sheet[top : top + 64, 4:68] == (255, 0, 0)).all()
    assert (sheet[top : top + 64, 4 + 4 * 66 : 4 + 4 * 66 + 64] == (0, 255, 0)).all()
    assert (sheet[second : second + 96, 4 : 4 + 192] == (0, 0, 255)).all()  # 32 pixels high: three times as large
    assert (sheet[second : second + 96, 4 + 388 : 4 + width] == (255, 255, 0)).all()
    for y in (top, second):  # there is ink above each strip
        assert (sheet[y - header : y] < 128).any()


def test_contact_sheet_columns_and_large_frames(tmp_path):
    clips = [np.full((4, 192, 320, 3), level, np.uint8) for level in (10, 20, 30)]
    contact_sheet(tmp_path / "s.png", clips, columns=2, num_frames=2, height=48)
    sheet = np.asarray(Image.open(tmp_path / "s.png").convert("RGB"))
    assert sheet.shape == (4 + 2 * 52, 4 + 2 * (2 * 82 - 2 + 4), 3)
    assert [sheet[20, 20, 0], sheet[20, 190, 0], sheet[80, 20, 0], sheet[80, 190, 0]] == [10, 20, 30, 255]


@pytest.mark.parametrize(("clips", "labels"), [([], None), ([clip()], ["a", "b"]), ([clip()[:0]], None)])
def test_bad_contact_sheets_are_refused(tmp_path, clips, labels):
    with pytest.raises(ValueError, match="a contact sheet needs"):
        contact_sheet(tmp_path / "s.png", clips, labels)
    assert list(tmp_path.iterdir()) == []
