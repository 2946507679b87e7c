"""Writes a batch of videos: decodes chunks as a stream into MP4, GIF and latents, with a JSON sidecar next to each.

Memory does not grow with the video's length: frames and latents are written as they come.
"""

from __future__ import annotations

import contextlib
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pipeline.batch.provenance import file_facts
from pipeline.batch.request import Request
from pipeline.config import OutputConfig
from pipeline.decoder import Decoder, Parts
from pipeline.rollout import Chunk
from utils.atomic import GrowingFile, write_json
from utils.json_reader import JsonError, read_json
from utils.media.gif import GifWriter
from utils.media.image import contact_sheet, to_uint8
from utils.media.mp4 import VideoWriter, find_damage, sample_frames
from wan.checkpoint.tensor_file import safetensors_head
from wan.codec.base import StreamingDecoder
from wan.geometry import Geometry

SHEET_FRAMES = 8  # of each video


class VideoFiles:
    """Holds the growing files of one video: its MP4, and on request its latents and a GIF."""

    def __init__(self, path: Path, output, fps: float, latents: tuple[int, ...], mark: dict | None = None, sound=None):
        """path: without a suffix. latents: (F, C, h, w) of the video. mark: from an earlier `mark`, to append there.
        sound: of the MP4, or None (see `utils.media.mp4`).

        Errors: ValueError if the files are not those of the mark.
        """
        mark, self.keep, self.latents, self.gif = mark or {}, bool(mark), None, None
        names = {kind: path.with_name(f"{path.name}.{kind}") for kind in ("mp4", "gif", "safetensors")}
        half = path.with_name(f"{path.name}.latents.partial")
        for taken in [name for name in names.values() if name.is_dir()]:  # now, and not when the video is finished
            raise ValueError(f"{taken} is a folder, and a video's file is to have this name; move it")
        if not mark:
            for old in (half, names["gif"].with_suffix(".partial.gif")):  # of a run that was killed and wrote more
                old.unlink(missing_ok=True)
        self.video = VideoWriter(names["mp4"], fps, crf=output.crf, mark=mark.get("video"), sound=sound)
        try:
            if output.gif:
                self.gif = GifWriter(names["gif"], fps, mark.get("gif"))
            if output.latents:
                self.latents = GrowingFile(names["safetensors"], half, mark.get("latents"))
                if not mark:
                    self.latents.write(safetensors_head("latents", latents))
        except BaseException:
            self.give_up()
            raise

    def add_latents(self, latents_FCHW: torch.Tensor) -> None:
        """Appends latents, if they are requested."""
        if self.latents is not None:
            self.latents.write(latents_FCHW.float().cpu().contiguous().numpy().tobytes())

    def add(self, frames_PHWC: np.ndarray) -> None:
        """Appends uint8 frames [P, H, W, 3]."""
        self.video.write(frames_PHWC)
        if self.gif is not None:
            self.gif.write(frames_PHWC)

    def mark(self) -> dict:
        """Syncs all files; returns their lengths, for `mark=...`. From now on `give_up` keeps the files."""
        parts = {"video": self.video, "gif": self.gif, "latents": self.latents}
        marks = {name: part.mark() for name, part in parts.items() if part is not None}
        self.keep = True
        return marks

    def close(self) -> None:
        """Finishes the files under their final names."""
        self.video.close()
        if self.gif is not None:
            self.gif.close()
        if self.latents is not None:
            self.latents.finish()

    def give_up(self) -> None:
        """Removes unfinished files, or keeps them if a snapshot refers to them."""
        if self.latents is not None:
            self.latents.give_up(self.keep)
        if self.gif is not None:
            self.gif.abort(self.keep)
        self.video.keep_partial = self.keep
        self.video.abort()


class VideoBatchWriter:
    """Writes a batch of videos chunk by chunk; files of the `wanted` rows only, whole or not at all.

    `num_frames`: pixel frames so far.
    `decoder`: on a model with its own device it decodes and writes while the next chunk is generated.
    `next_frame`: the latent frame that comes next.
    """

    def __init__(
        self,
        model: StreamingDecoder,
        requests: Sequence[Request],
        wanted: Sequence[bool],
        output: OutputConfig,
        fps: float,
        geometry: Geometry,
        total: int,
        sounds: Sequence | None = None,
        may_end: bool = False,
    ):
        """fps: of the model, used if `output.fps` is 0. geometry, total: size and latent frames of the videos.
        sounds: of each video, if they have any. may_end: the chunks may end before `total`, and the videos with them.
        """
        self.decoder = Decoder(model, model.own_device)
        self.requests, self.wanted, self.output = list(requests), list(wanted), output
        self.fps, self.geometry, self.total = output.fps or fps, geometry, total
        self.rows = [row for row, wanted in enumerate(self.wanted) if wanted]
        self._write_seconds, self.num_frames, self.next_frame = 0.0, 0, 0
        self._files: dict[int, VideoFiles] = {}
        self._sounds, self._may_end = list(sounds) if sounds else [None] * len(self.requests), may_end

    @property
    def may_save(self) -> bool:
        """True if these videos are long enough for a snapshot."""
        period = self.output.save_every_seconds * self.fps
        return 0 < period < self.geometry.pixel_frames(self.total)

    @property
    def seconds(self) -> dict[str, float]:
        """The time spent decoding and writing so far."""
        return {"decode": self.decoder.seconds, "write": self._write_seconds}

    def write(self, chunks: Iterable[Chunk], on_chunk=lambda count: None, save=None) -> None:
        """Decodes and writes all chunks; `on_chunk(pixel frames)` after each generated one.

        save: called without arguments every `save_every_seconds` of the videos, when `state` may be called.
        An exception (Ctrl-C too) leaves no file of these videos, unless `state` was called.
        """
        with contextlib.ExitStack() as stack:
            for row in self.rows:
                if row not in self._files:
                    self._files[row] = self._open_files(row)
                stack.callback(self._files[row].give_up)
            with self.decoder:
                for chunk in chunks:
                    self.decoder.submit(chunk.latents, partial(self._add, on_chunk=None if chunk.given else on_chunk))
                    self.next_frame = chunk.span.stop
                    if save is not None and self._due(chunk):
                        self.decoder.drain()
                        save()
            whole = self.next_frame == self.total or self._may_end
            assert whole, f"{self.total} latent frames were announced, {self.next_frame} came"
            for row in self.rows:  # a video that is replaced counts as unfinished until its own JSON is there
                sidecar(self.requests[row], self.output.folder).unlink(missing_ok=True)
            for row in self.rows:
                self._files[row].close()

    def state(self) -> dict:
        """Syncs all files; returns JSON values for `resume`."""
        marks = {str(row): files.mark() for row, files in self._files.items()}
        return {"files": marks, "frames": self.num_frames, "seconds": self.seconds}

    def resume(self, book: dict, next_frame: int) -> None:
        """Cuts the files to their lengths at `state`, to append there; the caller sets the decoder's state of then.

        Errors: ValueError if the files do not match, or lack a wanted video.
        """
        try:
            for row in self.rows:
                if str(row) not in book["files"]:
                    raise ValueError(f"the snapshot does not hold {self.requests[row].stem}")
                self._files[row] = self._open_files(row, book["files"][str(row)])
        except BaseException:
            for files in self._files.values():
                files.give_up()
            self._files = {}
            raise
        self.next_frame, self.num_frames = next_frame, book["frames"]
        self.decoder.seconds, self._write_seconds = book["seconds"]["decode"], book["seconds"]["write"]

    def sidecars(self, facts: dict, each: Sequence[dict] = ()) -> None:
        """Writes `<name>.json` of each wanted video: its own facts, those of the batch, and its own of `each`."""
        for row in self.rows:
            own = file_facts(self.requests[row], self.num_frames, self.fps) | facts
            write_json(sidecar(self.requests[row], self.output.folder), own | (each[row] if each else {}))

    def _open_files(self, row: int, mark: dict | None = None) -> VideoFiles:
        path = Path(self.output.folder) / self.requests[row].stem
        latents = self.geometry.latent_shape(self.total)
        return VideoFiles(path, self.output, self.fps, latents, mark, self._sounds[row])

    def _due(self, chunk: Chunk) -> bool:
        """True if a save is due after this chunk; depends on the frame number only.

        Never after a conditioning chunk: a resumed run would need the remaining ones.
        """
        period = self.output.save_every_seconds * self.fps
        if not period or chunk.given or chunk.span.stop >= self.total:
            return False
        begin, end = (self.geometry.pixel_frames(frame) for frame in (chunk.span.start, chunk.span.stop))
        return begin // period < end // period

    def _add(self, parts: Parts, on_chunk: Callable | None) -> None:
        """Writes latents and pixel frames of a chunk as they are decoded."""
        before = self.num_frames
        for latents, pixels in parts:
            begin = time.perf_counter()
            for row, files in self._files.items():
                files.add_latents(latents[row])
                files.add(to_uint8(pixels[row]))
            self.num_frames += pixels.shape[1]
            self._write_seconds += time.perf_counter() - begin
        if on_chunk is not None:
            on_chunk((self.num_frames - before) * len(self.rows))


def video_path(request: Request, folder: str | Path) -> Path:
    """Returns the path of the request's MP4."""
    return Path(folder) / f"{request.stem}.mp4"


def sidecar(request: Request, folder: str | Path) -> Path:
    """Returns the path of the request's JSON."""
    return Path(folder) / f"{request.stem}.json"


def write_sheet(path: Path, requests: Sequence[Request], folder: str | Path) -> None:
    """Writes the contact sheet of finished videos. Of their files alone: whoever made them, and in how many runs."""
    clips = [sample_frames(video_path(r, folder), SHEET_FRAMES) for r in requests]
    contact_sheet(path, clips, [", then ".join(r.prompts) for r in requests], num_frames=SHEET_FRAMES)


def finished(request: Request, folder: str | Path) -> bool:
    """True if the video and its JSON are both there and whole; errors: as `why_unfinished`."""
    return why_unfinished(request, folder) is None


def why_unfinished(request: Request, folder: str | Path) -> str | None:
    """Returns why the request's video is to be made: "" if it is not there, else what is wrong with it; None: finished.

    Errors: ValueError if its name is that of something else than a file.
    """
    path, facts = video_path(request, folder), sidecar(request, folder)
    if not (_is_there(path) and _is_there(facts)):
        return ""
    try:
        frames = read_json(facts).get("frames")
    except JsonError:
        frames = None  # who compares the JSON with the request says what is wrong with it
    return find_damage(path, frames if isinstance(frames, int) else None)


def _is_there(path: Path) -> bool:
    """True if the file is there. Errors: ValueError for a folder, pipe or device of that name."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no ordinary file"
        raise ValueError(f"{path} is {kind}, and a video is to have this name; move it, or write another output.folder")
    return True


def noted(chunks: Iterable[Chunk], recaches: list[float]) -> Iterator[Chunk]:
    """Yields the chunks and appends the seconds of each recache."""
    for chunk in chunks:
        if chunk.recache_seconds is not None:
            recaches.append(chunk.recache_seconds)
        yield chunk
