"""From the chunks of a batch of films to files: streaming decode, MP4, and a JSON beside each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.request import Request
from pipeline.rollout import Chunk
from utils.atomic import write_json
from utils.media_io import VideoWriter, to_uint8, write_gif
from wan.tensor_file import write_safetensors

DECODED_TOGETHER = 4  # latent frames of a long chunk, so that a whole clip needs no more memory than a stream


class Films:
    """Writes a batch of films chunk by chunk; files of the `wanted` rows only, whole or not at all."""

    def __init__(self, vae, requests: Sequence[Request], wanted: Sequence[bool], output, fps: float):
        self.vae, self.requests, self.wanted = vae, list(requests), list(wanted)
        self.output, self.fps = output, output.fps or fps
        self.seconds = {"decode": 0.0, "write": 0.0}
        self.shown: dict[int, np.ndarray] = {}  # frames of each wanted row, for the sheet and the GIF

    def write(self, chunks: Iterable[Chunk], on_chunk=lambda count: None) -> None:
        """Decodes and writes all chunks; `on_chunk(pixel frames)` after each generated one.

        An exception (Ctrl-C too) leaves no file of these films.
        """
        folder, state, kept = Path(self.output.folder), None, []
        rows = [row for row, wanted in enumerate(self.wanted) if wanted]
        frames: dict[int, list[np.ndarray]] = {row: [] for row in rows}
        with contextlib.ExitStack() as stack:
            writers = {
                row: stack.enter_context(VideoWriter(film(self.requests[row], folder), self.fps, crf=self.output.crf))
                for row in rows
            }
            for chunk in chunks:
                before = sum(map(len, frames[rows[0]]))
                if self.output.latents:
                    kept.append(chunk.latents.float().cpu())
                for latents in chunk.latents.split(DECODED_TOGETHER, 1):
                    pixels, state = self._timed("decode", self._decode, latents, state)
                    self._timed("write", self._append, writers, pixels, frames)
                if not chunk.given:
                    on_chunk((sum(map(len, frames[rows[0]])) - before) * len(rows))
            for row in rows:  # a film that is replaced is unfinished until its own JSON is there
                sidecar(self.requests[row], folder).unlink(missing_ok=True)
        self.shown = {row: np.concatenate(parts) for row, parts in frames.items()}
        for row in rows:
            path = folder / self.requests[row].stem
            if self.output.gif:
                write_gif(path.with_name(path.name + ".gif"), self.shown[row], self.fps)
            if kept:
                clip = torch.cat([part[row] for part in kept])
                write_safetensors(path.with_name(path.name + ".safetensors"), {"latents": clip})

    def sidecars(self, facts: dict, each: Sequence[dict] = ()) -> None:
        """Writes `<name>.json` of each wanted film: its prompt and keys, the run's facts, and its own of `each`."""
        for row, request in enumerate(self.requests):
            if self.wanted[row]:
                own = {"prompt": request.prompt, "index": request.index, "sample": request.sample}
                own |= {"frames": len(self.shown[row]), "fps": self.fps}
                write_json(sidecar(request, self.output.folder), own | facts | (each[row] if each else {}))

    def _decode(self, latents, state):
        with torch.no_grad():
            return self.vae.decode_stream(latents, state)

    def _append(self, writers, pixels, frames) -> None:
        for row, writer in writers.items():
            levels = to_uint8(pixels[row])
            writer.write(levels)
            frames[row].append(levels)

    def _timed(self, name: str, call, *arguments):
        begin = time.perf_counter()
        result = call(*arguments)
        self.seconds[name] += time.perf_counter() - begin
        return result


def film(request: Request, folder: str | Path) -> Path:
    """Returns the path of the request's MP4."""
    return Path(folder) / f"{request.stem}.mp4"


def sidecar(request: Request, folder: str | Path) -> Path:
    """Returns the path of the request's JSON."""
    return Path(folder) / f"{request.stem}.json"


def finished(request: Request, folder: str | Path) -> bool:
    """True if the film and its JSON are both there."""
    return film(request, folder).exists() and sidecar(request, folder).exists()
