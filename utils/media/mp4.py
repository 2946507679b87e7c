"""Writes H.264 MP4s while their frames are made: cut off at any time they play, and they can be gone on with.

Frames are uint8 arrays [P, H, W, 3] (RGB). A file gets its final name when it is complete and on the disk.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from utils.atomic import GrowingFile, explain_full_disk
from utils.media.fragments import boxes, fragments, index
from utils.media.image import check_frames, evenly_spaced
from utils.media.sound_track import SoundTrack
from utils.media.video import read_strip

# An MP4 that is cut off stays playable, and stretches of one video can be put one behind the other.
FRAGMENTED = "frag_keyframe+empty_moov+default_base_moof+frag_discont+skip_trailer"
REORDERED = 2  # frames by which the encoder may show one later than it is decoded
KEYFRAME_SECONDS = 2  # then only the last few seconds are lost
BT709 = 1  # the number of this colour matrix, its primaries and its transfer curve


class VideoWriter:
    """Writes an H.264 MP4 chunk by chunk: `with VideoWriter(path, 16) as video: video.write(frames)`.

    Until the end it is a playable `<name>.partial.mp4`. Leaving the block renames it; an exception (Ctrl-C too)
    removes it, or with keep_partial=True leaves it under the partial name. Equal frames and marks give equal bytes,
    however the frames are cut into chunks: one encoder thread, no time stamps or versions in the container.
    size: (H, W), by default that of the first frames. crf: 0 lossless .. 51; fps may be a fraction.
    mark: what `mark()` of an earlier writer with the same settings returned: the file is cut there and gone on with,
    no picture is encoded again, and in the end it has the bytes of a video that was never cut off.
    sound: samples at 48 kHz, one or two channels (utils/media/audio.py): an AAC track, taken from it as frames come;
    silence where it has ended. It starts with the first frame.
    Errors: ValueError for no frames at all, odd or changing sizes, wrong arrays, a file that is not the marked one;
    OSError for a full disk.
    """

    def __init__(
        self, path, fps: float, size=None, *, crf: int = 18, keep_partial=False, mark: dict | None = None, sound=None
    ):
        self.path = Path(path)
        if self.path.suffix != ".mp4":
            raise ValueError(f"a video is written as .mp4, not as {self.path.name!r}")
        if not (math.isfinite(fps) and fps > 0) or not 0 <= crf <= 51:
            raise ValueError(f"fps {fps} must be above 0 and crf {crf} within 0..51")
        self.partial = self.path.with_suffix(".partial.mp4")
        self.fps, self.crf, self.keep_partial = Fraction(fps).limit_denominator(1001), crf, keep_partial
        self.size, self.num_frames, self._num_fragments, self._over = None, 0, 0, False
        self._file = self._container = self._stream = self._head = None
        self._sound = None if sound is None else SoundTrack(sound, self.fps, REORDERED)
        if size is not None:
            self._set_size(size)
        if mark is not None:
            self._go_on(mark)

    def write(self, frames_PHWC) -> None:
        """Appends uint8 frames [P, H, W, 3]; P may be 0."""
        import av

        frames = check_frames(frames_PHWC)
        self._check_running()
        self._set_size(frames.shape[1:3])
        try:
            with explain_full_disk(self.path):
                if len(frames) and self._container is None:
                    self._open()
                for frame in frames:
                    self._encode(frame)
                    self.num_frames += 1
        except (OSError, ValueError, av.FFmpegError):  # the disk, the sound, the encoder
            self._release()
            raise

    def mark(self) -> dict:
        """Brings all frames to the disk, as fragments that need nothing that follows; the next one is a keyframe.

        Returns what `VideoWriter(..., mark=...)` takes: {"frames", "fragments", "size", "bytes", "tail"}.
        """
        self._check_running()
        if not self.num_frames:
            raise ValueError(f"no frames were written to {self.path}; there is nothing to go on from")
        self._end_stretch()
        facts = {"frames": self.num_frames, "fragments": self._num_fragments, "size": list(self.size)}
        facts |= {"sound_packets": self._sound.count} if self._sound else {}
        return facts | self._file.mark()

    def close(self) -> None:
        """Finishes the file and gives it its final name."""
        self._check_running()
        if not self.num_frames:
            raise ValueError(f"no frames were written to {self.path}; a video needs at least one")
        try:
            self._end_stretch()
            found = fragments(self._file.file)
            assert sum(f.num_frames for f in found) == self.num_frames, f"{self.partial} lost frames"
            self._file.write(index(found))
            self._file.finish()
        finally:
            self._release()

    def abort(self) -> None:
        """Gives up: removes the partial file, or with keep_partial leaves it. Nothing gets the final name."""
        keep = bool(self.keep_partial and self.num_frames)
        try:
            if keep and not self._over:
                self._end_stretch()
        finally:
            self._release()
            if self._file is not None:
                self._file.give_up(keep)

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

    def _go_on(self, mark: dict) -> None:
        self._set_size(mark["size"])
        if bool(self._sound) != ("sound_packets" in mark):
            raise ValueError(f"{self.partial} was begun {'without' if self._sound else 'with'} sound; begin it anew")
        if self._sound:
            self._sound.skip(mark["sound_packets"])
        self._file = GrowingFile(self.path, self.partial, mark)
        self.num_frames, self._num_fragments = mark["frames"], mark["fragments"]
        raw = self._file.file
        begin = next(offset for offset, _, kind in boxes(raw) if kind == b"moof")
        raw.seek(0)
        self._head = raw.read(begin)
        self._open()  # here, so that another encoder is refused before frames are made for it

    def _open(self) -> None:
        """Begins a stretch: a muxer and an encoder that know nothing of earlier frames."""
        import av

        if self._file is None:
            self._file = GrowingFile(self.path, self.partial)
        self._begin, self._decoded = self._file.file.seek(0, io.SEEK_END), self.num_frames
        # Into the memory, by a built-in `write`: to call a Python function back, PyAV loses an interrupt (Ctrl-C) that
        # comes meanwhile. What goes wrong on the disk is then told by Python, and the muxer never fails.
        self._muxed = io.BytesIO()
        options = {"movflags": FRAGMENTED, "fragment_index": str(self._num_fragments + 1), "fflags": "+bitexact"}
        options |= {"flush_packets": "1", "avoid_negative_ts": "disabled", "use_editlist": "0"}
        self._container = av.open(SimpleNamespace(write=self._muxed.write), "w", format="mp4", options=options)
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
        if self._sound:
            self._sound.add_to(self._container)
        self._converter = av.video.reformatter.VideoReformatter()
        self._container.start_encoding()
        self._check_head(self._taken())

    def _check_head(self, head: bytes) -> None:
        """Writes the head of the file, or checks that a later stretch would have the same."""
        if self._head is None:
            self._head = head
            self._file.write(head)
        elif self._head != head:
            self._release()
            self._file.give_up(keep=True)
            raise ValueError(f"{self.partial} was begun by another version of the encoder or with other settings")

    def _encode(self, frame: np.ndarray) -> None:
        import av

        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        # Converted and tagged as BT.709: untagged files change their colours from player to player. A converter of its
        # own, in this thread: one for each frame, with as many threads as cores, takes 20 times as long.
        options = {"format": "yuv420p", "dst_colorspace": "ITU709", "dst_color_range": "MPEG", "threads": 1}
        picture = self._converter.reformat(picture, **options)
        picture.pts, picture.time_base = self.num_frames, 1 / self.fps
        self._mux(picture)

    def _mux(self, picture) -> None:
        """Encodes a picture (None: what the encoder still holds) and writes the fragments that are complete."""
        for packet in self._stream.encode(picture):
            # One clock for all stretches, also for those that are too short for the encoder's own delay.
            packet.pts, packet.dts, packet.duration = packet.pts + REORDERED, self._decoded, 1
            self._decoded += 1
            self._mux_sound(self._decoded - REORDERED)
            self._container.mux(packet)
        self._file.write(self._taken())

    def _mux_sound(self, frame: int) -> None:
        """Puts the sound before a frame into the file: in the order of its packets alone, not as frames came."""
        for packet in self._sound.until(frame) if self._sound else ():
            self._container.mux(packet)

    def _taken(self) -> bytes:
        """Returns what the muxer has put out since."""
        data = self._muxed.getvalue()
        self._muxed.seek(0)
        self._muxed.truncate()
        return data

    def _end_stretch(self) -> None:
        """Empties the encoder and the muxer; the next frame begins anew."""
        if self._container is None:
            return
        self._mux(None)
        self._mux_sound(self.num_frames)
        container, self._container, self._stream = self._container, None, None
        container.close()
        self._file.write(self._taken())
        self._num_fragments += len(fragments(self._file.file, self._begin))

    def _release(self) -> None:
        """Closes without caring for the content; a second time does nothing."""
        import av

        container, self._container, self._stream, self._over = self._container, None, None, True
        if container is not None:
            with contextlib.suppress(OSError, av.FFmpegError):
                container.close()


def find_damage(path: str | Path, num_frames: int | None = None) -> str | None:
    """Returns what is wrong with a finished MP4, or None. Reads no picture: the boxes, and the number of frames.

    num_frames: how many it has. Of a file that another program wrote the frames are not counted.
    """
    with Path(path).open("rb") as file:
        try:
            kinds = [kind for _, _, kind in boxes(file)]
            count = sum(fragment.num_frames for fragment in fragments(file))
        except (ValueError, KeyError, IndexError, struct.error) as error:
            return f"it is damaged: {error}"
    if b"moov" not in kinds:
        return "it is empty" if not kinds else "it has no head (moov)"
    if b"moof" in kinds and kinds[-1] != b"mfra":
        return "its end is missing"
    if b"moof" in kinds and num_frames not in (None, count):
        return f"it has {count} of {num_frames} frames"
    return None


def sample_frames(path: str | Path, count: int) -> np.ndarray:
    """Returns `count` evenly spaced frames [<= count, H, W, 3] of an MP4; of ours only those parts are decoded.

    Errors: ValueError for a file that is not a video.
    """
    import av

    with Path(path).open("rb") as file:
        found = fragments(file)
        if not found:
            return read_strip(path, count)
        ends = [start for start, _, kind in boxes(file) if kind in (b"moof", b"mfra")][1:]
        file.seek(0)
        head, picked, first = file.read(found[0].offset), [], 0
        picks = evenly_spaced(sum(fragment.num_frames for fragment in found), count)
        for fragment, end in zip(found, [*ends, None][: len(found)], strict=True):
            numbers = [number - first for number in picks if first <= number < first + fragment.num_frames]
            first += fragment.num_frames
            if numbers:
                file.seek(fragment.offset)
                content = io.BytesIO(head + file.read(-1 if end is None else end - fragment.offset))
                with av.open(content) as container:
                    frames = list(container.decode(video=0))
                picked += [frames[number].to_ndarray(format="rgb24") for number in numbers]
    return np.stack(picked)
