"""Reads pictures, writes contact sheets, turns pixels into bytes. Frames are uint8 arrays [P, H, W, 3] (RGB)."""

from __future__ import annotations

import io
import logging
import struct
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.atomic import atomic_write

logger = logging.getLogger(__name__)
BACKGROUND = "white"  # below transparent pixels, of pictures and of videos
# Decoders of Pillow that read the file alone. EPS and WMF would start a program.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM", "TGA", "JPEG2000", "ICO", "DDS", "PSD", "QOI")
SHEET_MARGIN, SHEET_FONT, SHEET_LABEL_LINES = 4, 12, 2


def to_uint8(pixels) -> np.ndarray:
    """Returns uint8 [..., H, W, 3] from a float tensor [..., 3, H, W] in [-1, 1] on any device.

    round(127.5 x + 127.5) after clamping, so that 0..255 survive a round trip.
    Differs from Self-Forcing and LongLive: they truncate, which darkens by half a level.
    Errors: ValueError for NaN, or when the third dimension from the right is not 3.
    """
    import torch

    if pixels.dim() < 3 or pixels.shape[-3] != 3 or not pixels.is_floating_point():
        raise ValueError(f"pixels are {pixels.dtype} {list(pixels.shape)}; give floats [..., 3, H, W] in [-1, 1]")
    pixels = pixels.detach().float()
    if bool(torch.isnan(pixels).any()):
        raise ValueError("the pixels hold NaN; the weights or the precision that made them are wrong")
    levels = (pixels.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return levels.movedim(-3, -1).contiguous().cpu().numpy()


def check_frames(frames) -> np.ndarray:
    """Returns frames as a contiguous uint8 array [P, H, W, 3]; errors: ValueError for another type or shape."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}; give uint8 [P, H, W, 3] (see to_uint8)")
    return np.ascontiguousarray(frames)


def evenly_spaced(num_frames: int, count: int) -> list[int]:
    """Returns the numbers of `count` frames of a clip, or of all if there are fewer; first and last among them."""
    return np.linspace(0, num_frames - 1, min(count, num_frames)).round().astype(int).tolist()


def existing_file(path: str | Path) -> Path:
    """Returns the path; errors: ValueError if it is not a file."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; check the path")
    return path


def compose(pixels_HWA: np.ndarray) -> np.ndarray:
    """Returns uint8 [H, W, 3] of RGBA pixels laid over `BACKGROUND`: what lies below alpha 0 is not seen."""
    alpha = pixels_HWA[..., 3:].astype(np.uint16)
    return ((pixels_HWA[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def read_image(path: str | Path, size: tuple[int, int], mode: str = "stretch"):
    """Returns a float32 tensor [3, H, W] in [-1, 1] of an image brought to `size` (H, W).

    mode: "stretch" changes the aspect (as Self-Forcing does: Pillow's antialiased bilinear), "crop" keeps it and cuts
    the borders evenly. Errors: those of `open_image`.
    """
    import torch
    from PIL import Image, ImageOps

    if mode not in ("stretch", "crop"):
        raise ValueError(f"mode is {mode!r}; write 'stretch' or 'crop'")
    image, (height, width) = open_image(path), size
    if mode == "stretch":
        image = image.resize((width, height), Image.BILINEAR)
    else:
        image = ImageOps.fit(image, (width, height), Image.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(127.5).sub(1).contiguous()


def image_size(path: str | Path) -> tuple[int, int]:
    """Returns (height, width) of a picture as viewers show it. Errors: those of `open_image`."""
    width, height = open_image(path).size
    return height, width


def open_image(path: str | Path):
    """Returns a picture as viewers show it: Pillow, mode RGB, turned by the camera's tag, in sRGB, over `BACKGROUND`.

    What the file is, its bytes say, not its name; only formats are read that start no program. Of several frames, the
    first. Errors: ValueError naming a file that is not a whole image.
    """
    from PIL import Image, ImageOps

    path = existing_file(path)
    try:
        with Image.open(path, formats=FORMATS) as file:
            if getattr(file, "n_frames", 1) > 1:
                logger.warning("%s holds %d pictures; the first is taken", path, file.n_frames)
            image = ImageOps.exif_transpose(file)
            image.load()
    except Image.UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise ValueError(
            f"{path} cannot be read as an image: it is none of the formats that are read ({known})"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); it is damaged or of another kind") from error
    if image.mode[0] in "IF":
        raise ValueError(f"{path} has pixels of kind {image.mode}; save it with 8 bits per channel")
    return _flat(path, _in_srgb(path, image))


def _in_srgb(path: Path, image):
    """Returns the picture with the colours of its profile brought to sRGB."""
    from PIL import Image, ImageCms

    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return image
    try:
        own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, own, srgb, outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        logger.warning("%s has a colour profile that cannot be used (%s); it is read as sRGB", path, error)
        return image if image.mode != "CMYK" else image.convert("RGB", Image.Dither.NONE)


def _flat(path: Path, image):
    """Returns the picture without transparency, as RGB."""
    from PIL import Image

    if "A" not in image.getbands() and "a" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    pixels = np.array(image.convert("RGBA"))
    if pixels[..., 3].min() < 255:
        logger.warning("%s is transparent in places; it is laid over %s", path, BACKGROUND)
    return Image.fromarray(compose(pixels))


def contact_sheet(path, clips: Sequence, labels: Sequence[str] | None = None, *, columns=1, num_frames=8, height=128):
    """Writes a PNG: each clip (uint8 [P, H, W, 3]) as a strip of `num_frames` evenly spaced frames under its label.

    The first and the last frame are always among them. columns: strips side by side. height: of a shown frame in
    pixels; smaller frames are enlarged by whole factors, so that their pixels stay visible.
    """
    from PIL import Image, ImageDraw, ImageFont

    clips = [check_frames(clip) for clip in clips]
    if not clips or not all(map(len, clips)) or (labels is not None and len(labels) != len(clips)):
        count = "no" if labels is None else len(labels)
        raise ValueError(
            f"a contact sheet needs clips with frames and a label each; got {len(clips)} and {count} labels"
        )
    strips = [_strip(clip, num_frames, height) for clip in clips]
    font = ImageFont.load_default(SHEET_FONT)
    wide, tall = max(s.width for s in strips), max(s.height for s in strips)
    header = 0 if labels is None else SHEET_LABEL_LINES * (SHEET_FONT + 3)
    cell = (wide + SHEET_MARGIN, tall + header + SHEET_MARGIN)
    rows = -(-len(clips) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + SHEET_MARGIN, rows * cell[1] + SHEET_MARGIN), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for i, strip in enumerate(strips):
        x, y = SHEET_MARGIN + i % columns * cell[0], SHEET_MARGIN + i // columns * cell[1]
        if labels is not None:
            draw.multiline_text((x, y), _fold(labels[i], font, wide), fill=(0, 0, 0), font=font, spacing=2)
        sheet.paste(strip, (x, y + header))
    atomic_write(path, lambda file: sheet.save(file, format="PNG"))


def _strip(clip: np.ndarray, num_frames: int, height: int):
    from PIL import Image

    shown = evenly_spaced(len(clip), num_frames)
    tall, wide = clip.shape[1:3]
    factor = height / tall if tall > height else max(1, height // tall)
    size = (max(1, round(wide * factor)), max(1, round(tall * factor)))
    strip = Image.new("RGB", (len(shown) * (size[0] + 2) - 2, size[1]), (128, 128, 128))
    for i, frame in enumerate(clip[shown]):
        resized = Image.fromarray(frame).resize(size, Image.BOX if factor < 1 else Image.NEAREST)
        strip.paste(resized, (i * (size[0] + 2), 0))
    return strip


def _fold(label: str, font, width: int) -> str:
    """Returns the label in at most SHEET_LABEL_LINES lines of about `width` pixels; the rest becomes '...'."""
    label = label.encode("latin-1", "replace").decode("latin-1").strip()  # the built-in font knows no other letters
    letters = int(0.95 * width * len(label) / max(font.getlength(label), 1))
    return "\n".join(textwrap.wrap(label, max(letters, 8), max_lines=SHEET_LABEL_LINES, placeholder=" ..."))
