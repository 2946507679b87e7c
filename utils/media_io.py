"""Pictures and videos on disk. Frames are uint8 arrays [P, H, W, 3] (RGB); whatever is written is written whole.

A file appears under its final name only when it is complete and on the disk; until then it has a temporary name.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import struct
import textwrap
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from utils.atomic import atomic_write, explain_full_disk, sync_file, sync_folder

FRAGMENTED = "frag_keyframe+empty_moov+default_base_moof"  # an MP4 that is cut off stays playable
KEYFRAME_SECONDS = 2  # then only the last few seconds are lost
BT709 = 1  # the number of this colour matrix, its primaries and its transfer curve
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


class VideoWriter:
    """Writes an H.264 MP4 chunk by chunk: `with VideoWriter(path, 16) as video: video.write(frames)`.

    Until the end it is a playable `<name>.partial.mp4`. Leaving the block renames it; an exception (Ctrl-C too)
    removes it, or with keep_partial=True finishes it and leaves it under the partial name. Equal frames give equal
    bytes, however they are cut into chunks: one encoder thread, no time stamps or versions in the container.
    size: (H, W), by default that of the first frames. crf: 0 lossless .. 51; fps may be a fraction.
    Errors: ValueError for no frames at all, odd or changing sizes, wrong arrays; OSError for a full disk.
    """

    def __init__(self, path, fps: float, size: tuple[int, int] | None = None, *, crf: int = 18, keep_partial=False):
        self.path = Path(path)
        if self.path.suffix != ".mp4":
            raise ValueError(f"a video is written as .mp4, not as {self.path.name!r}")
        if not (math.isfinite(fps) and fps > 0) or not 0 <= crf <= 51:
            raise ValueError(f"fps {fps} must be above 0 and crf {crf} within 0..51")
        self.partial = self.path.with_suffix(".partial.mp4")
        self.fps, self.crf, self.keep_partial = Fraction(fps).limit_denominator(1001), crf, keep_partial
        self.size, self.num_frames, self._over = None, 0, False
        self._container = self._stream = None
        if size is not None:
            self._set_size(size)

    def write(self, frames_PHWC) -> None:
        """Appends uint8 frames [P, H, W, 3]; P may be 0."""
        import av

        frames = check_frames(frames_PHWC)
        self._check_running()
        self._set_size(frames.shape[1:3])
        if len(frames) and self._container is None:
            self._open()
        try:
            with explain_full_disk(self.path):
                for frame in frames:
                    self._encode(frame)
                    self.num_frames += 1
        except (OSError, av.FFmpegError):
            self._release()  # to write to a failed container again crashes the process
            raise

    def close(self) -> None:
        """Finishes the file and gives it its final name."""
        self._check_running()
        if not self.num_frames:
            raise ValueError(f"no frames were written to {self.path}; a video needs at least one")
        self._finish()
        os.replace(self.partial, self.path)
        sync_folder(self.path.parent)

    def abort(self) -> None:
        """Gives up: removes the partial file, or with keep_partial finishes it. Nothing gets the final name."""
        try:
            if self.keep_partial and self.num_frames and self._container:
                self._finish()
        finally:
            self._release()
            if not (self.keep_partial and self.num_frames):
                self.partial.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        import av

        if kind is not None:
            with contextlib.suppress(OSError, av.FFmpegError):  # the first error is the one to report
                self.abort()
            return
        try:
            self.close()
        except BaseException:
            self.abort()
            raise

    def _check_running(self) -> None:
        if self._over:
            raise ValueError(f"the writer of {self.path} is closed or has failed; start a new one")

    def _set_size(self, size) -> None:
        size = tuple(int(n) for n in size)
        if self.size not in (None, size):
            raise ValueError(f"{self.path.name} has frames of {self.size} (H, W); now came {size}; keep one size")
        if size[0] % 2 or size[1] % 2 or min(size) < 2:
            raise ValueError(f"frames of {size} (H, W) do not fit yuv420p video; crop or resize both to even numbers")
        self.size = size

    def _open(self) -> None:
        import av

        self.path.parent.mkdir(parents=True, exist_ok=True)
        # By name, not as a file object: PyAV loses an interrupt (Ctrl-C) that comes while it calls back into Python.
        options = {"movflags": FRAGMENTED, "fflags": "+bitexact", "flush_packets": "1"}
        self._container = av.open(f"file:{self.partial}", "w", format="mp4", options=options)
        keyframes = str(max(1, round(KEYFRAME_SECONDS * self.fps)))
        # x264's macroblock tree gives other bytes for equal frames in about one run of ten (its assembly reads
        # memory that nobody set), so it is off; without it 60 runs of 60 agree.
        options = {"crf": str(self.crf), "g": keyframes, "flags": "+bitexact", "x264-params": "mbtree=0"}
        self._stream = self._container.add_stream("libx264", rate=self.fps, options=options)
        self._stream.height, self._stream.width = self.size
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.thread_count = 1  # slices and rate control depend on the number of threads
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = BT709

    def _encode(self, frame: np.ndarray) -> None:
        import av

        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        # Converted and tagged as BT.709: untagged files change their colours from player to player.
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        self._container.mux(self._stream.encode(picture))

    def _finish(self) -> None:
        try:
            with explain_full_disk(self.path):
                self._container.mux(self._stream.encode(None))
                self._container.close()
                with open(self.partial, "rb+") as file:
                    sync_file(file)
                    _check_whole(file)
        finally:
            self._release()

    def _release(self) -> None:
        """Closes without caring for the content; a second time does nothing."""
        import av

        container, self._container, self._stream, self._over = self._container, None, None, True
        if container is not None:
            with contextlib.suppress(OSError, av.FFmpegError):
                container.close()


def _check_whole(file) -> None:
    """Raises OSError unless the boxes of a finished MP4 fill the file and the last one is its index.

    The muxer keeps silent about a disk that is full at its last write.
    """
    size, start, kind = os.fstat(file.fileno()).st_size, 0, b""
    while start + 8 <= size:
        file.seek(start)
        length, kind, wide = struct.unpack(">I4sQ", file.read(16).ljust(16))
        start += max(8, wide if length == 1 else length)
    if start != size or kind != b"mfra":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_video(path: str | Path, seconds: float | None = None, most: int = 0) -> tuple[np.ndarray, float]:
    """Returns (uint8 frames [P, H, W, 3], frames per second); only the first `seconds` or `most` frames if given.

    Errors: ValueError naming a file that is no video.
    """
    with open_video(path) as (frames, rate):
        count = (most or None) if seconds is None else math.ceil(seconds * rate) + 1
        return np.stack(list(itertools.islice(frames, count))), float(rate)


@contextlib.contextmanager
def open_video(path: str | Path) -> Iterator[tuple[Iterator[np.ndarray], Fraction]]:
    """A context: (iterator over uint8 frames [H, W, 3], frames per second), for videos too long for the memory.

    Errors: ValueError naming a file that is no video, also while the frames are taken.
    """
    import av

    path = _existing(path)
    with _explain_damage(path):
        container = av.open(f"file:{path}")
    with container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no video stream")
        stream = container.streams.video[0]
        frames = _decode(path, container, stream)
        if (first := next(frames, None)) is None:
            raise ValueError(f"{path} holds a video stream without a frame")
        yield itertools.chain([first], frames), stream.average_rate or stream.guessed_rate


def _decode(path, container, stream) -> Iterator[np.ndarray]:
    with _explain_damage(path):
        for frame in container.decode(stream):
            yield frame.to_ndarray(format="rgb24")


@contextlib.contextmanager
def _explain_damage(path: Path):
    import av

    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(
            f"{path} cannot be read as a video ({error.strerror}); it is damaged or of another kind"
        ) from error


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; check the path")
    return path


def read_image(path: str | Path, size: tuple[int, int], mode: str = "stretch"):
    """Returns a float32 tensor [3, H, W] in [-1, 1] of an image brought to `size` (H, W).

    mode: "stretch" changes the aspect (as Self-Forcing does: Pillow's antialiased bilinear), "crop" keeps it and cuts
    the borders evenly. A camera's rotation tag is applied. Errors: ValueError naming a file that is no whole image.
    """
    import torch
    from PIL import Image, ImageOps

    if mode not in ("stretch", "crop"):
        raise ValueError(f"mode is {mode!r}; write 'stretch' or 'crop'")
    path, (height, width) = _existing(path), size
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); it is damaged or of another kind") from error
    if image.mode[0] in "IF":
        raise ValueError(f"{path} has pixels of kind {image.mode}; save it with 8 bits per channel")
    image = image.convert("RGB")
    if mode == "stretch":
        image = image.resize((width, height), Image.BILINEAR)
    else:
        image = ImageOps.fit(image, (width, height), Image.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(127.5).sub(1).contiguous()


def write_gif(path: str | Path, frames_PHWC, fps: float) -> None:
    """Writes uint8 frames [P, H, W, 3] as an endless GIF; its clock ticks in 1/100 s, so fps holds on average."""
    from PIL import Image

    frames = check_frames(frames_PHWC)
    if not len(frames) or not 0 < fps <= 50:
        raise ValueError(f"a GIF needs frames and an fps within (0, 50]; got {len(frames)} frames at {fps}")
    ticks = [round(100 * i / fps) for i in range(len(frames) + 1)]
    durations = [10 * (b - a) for a, b in zip(ticks, ticks[1:], strict=False)]
    first, *others = [Image.fromarray(f).quantize(256, dither=Image.Dither.NONE) for f in frames]
    options = {"format": "GIF", "save_all": True, "append_images": others, "duration": durations, "loop": 0}
    atomic_write(path, lambda file: first.save(file, disposal=1, **options))


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

    shown = np.linspace(0, len(clip) - 1, min(num_frames, len(clip))).round().astype(int)
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
