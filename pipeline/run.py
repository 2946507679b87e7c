"""One generation run: requests in, files out. Ranks share the batches; nothing else depends on them."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.config import InferConfig
from pipeline.decode import Films, film, finished, sidecar
from pipeline.kit import Kit, load_kit
from pipeline.request import KeyedNoise, Request, batches, check_grammar, read_requests
from utils import distributed
from utils.config import config_hash
from utils.log import VideoProgress
from utils.media_io import contact_sheet, read_image, read_video
from utils.rng import Rng
from wan.geometry import Geometry

logger = logging.getLogger(__name__)
SHEET_CLIPS, SHEET_FRAMES = 16, 8


def run(config: InferConfig) -> list[Path]:
    """Generates every request that is not finished; returns the paths of this rank's videos.

    Errors: ValueError for bad input, before any video is begun.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    suffix = "ema" if config.model.use_ema else ""
    requests = read_requests(config.data, config.output, config.num_samples, suffix)  # before any weight is read
    mine = distributed.split(batches(requests, config.batch))
    videos, folder = [r for group in mine for r in group], config.output.folder
    if not config.output.overwrite:
        report_finished(videos, config)
        if all(finished(r, folder) for r in videos):
            return [film(r, folder) for r in videos]
    kit = load_kit(config.model, config.vae, config.text)
    check_grammar(requests, kit.spec.name)
    return Run(config, kit).films(mine)


def report_finished(videos: list[Request], config: InferConfig) -> None:
    """Says how many videos are there already, and warns of those that were asked for with other words or seed."""
    folder = config.output.folder
    there = [r for r in videos if finished(r, folder)]
    for request in there:
        try:
            facts = json.loads(sidecar(request, folder).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{sidecar(request, folder)} is damaged ({error}); remove it") from error
        now = {"prompt": request.prompt, "seed": config.seed}
        if other := {name: facts.get(name) for name, value in now.items() if facts.get(name) != value}:
            name = film(request, folder)
            logger.warning("%s is kept though it was made with %s; --overwrite makes it anew", name, other)
    if there:
        logger.info("%d of %d videos are finished and are skipped", len(there), len(videos))


class Run:
    """A configured model that turns batches of requests into files."""

    def __init__(self, config: InferConfig, kit: Kit):
        self.config, self.kit = config, kit
        self.geometry = Geometry.of(kit.spec, config.height, config.width)
        self.sampler = config.sampler.build()
        self.pipeline = config.pipeline.build(kit, self.sampler, self.geometry)
        self.rng = Rng(config.seed)
        shape = self.geometry.latent_shape(1)[1:]
        self.noise = _tensor(config.data.noise, "noise", shape)
        self.initial = _tensor(config.data.initial_latents, "latents", shape)

    def films(self, groups: list[list[Request]]) -> list[Path]:
        """Writes the films of all batches; a finished one is computed again only for another of its batch."""
        output, videos = self.config.output, [r for group in groups for r in group]
        self.check(videos)
        chunks = len(self.pipeline.spans(*self.length()))
        strips: dict[str, np.ndarray] = {}
        with VideoProgress(len(videos), chunks * len(groups)) as bar:
            for group in groups:
                wanted = [output.overwrite or not finished(r, output.folder) for r in group]
                shown = self.batch(group, wanted, bar).shown if any(wanted) else {}
                for row, request in enumerate(group):
                    if row in shown:
                        strips[request.stem] = _strip(shown[row])
                        bar.video()
                    else:
                        bar.skip(0 if shown or row else chunks)
        if output.sheet:
            self.sheet(videos[:SHEET_CLIPS], strips)
        return [film(r, output.folder) for r in videos]

    def check(self, videos: list[Request]) -> None:
        """Raises ValueError for given noise, latents or images that do not serve all these videos."""
        total, _ = self.length()
        if self.noise is not None and self.noise.shape[1] < total:
            raise ValueError(
                f"{self.config.data.noise} has {self.noise.shape[1]} latent frames and the films {total}; ask for fewer"
            )
        for tensor, path in ((self.noise, self.config.data.noise), (self.initial, self.config.data.initial_latents)):
            _rows(tensor, videos, path)
        if self.kit.joins_image and not self.config.data.i2v:
            raise ValueError(f"{self.kit.spec.name} starts from images: give --i2v and a folder of them as --data_path")
        for request in videos:  # before the first video is begun
            self.images([request])

    def sheet(self, videos: list[Request], strips: dict[str, np.ndarray]) -> None:
        """Writes the contact sheet of this rank's first videos; finished ones are read back."""
        folder = Path(self.config.output.folder)
        clips = [strips[r.stem] if r.stem in strips else _strip(read_video(film(r, folder))[0]) for r in videos]
        name = "contact_sheet.png" if distributed.world_size() == 1 else f"contact_sheet_{distributed.rank()}.png"
        contact_sheet(folder / name, clips, [r.prompt for r in videos], num_frames=SHEET_FRAMES)

    def batch(self, group: list[Request], wanted: list[bool], bar) -> Films:
        """Generates, decodes and writes one batch; returns what was written."""
        begin = time.perf_counter()
        negative = None if self.sampler.guidance == 1 else self.config.negative_prompt
        condition = self.kit.condition([r.prompt for r in group], negative)
        images, given = self.images(group), None
        total, _ = self.length()
        if images is not None and self.kit.joins_image:
            condition = self.kit.with_image(condition, images, self.geometry.pixel_frames(total))
        else:
            given = self.given(group, images)
        noise = KeyedNoise(
            self.rng, group, self.geometry.latent_shape(1)[1:], self.kit.dtype, _rows(self.noise, group, "noise")
        )
        films = Films(self.kit.vae, group, wanted, self.config.output, self.kit.spec.fps)
        chunks = self.pipeline.generate(condition, noise, len(group), total, given)
        films.write(chunks, bar.chunk)
        seconds = time.perf_counter() - begin
        films.sidecars(
            {
                "seed": self.config.seed,
                "model": self.kit.spec.name,
                "config_hash": config_hash(self.config),
                "weights_hash": self.kit.weights_hash,
                "latent_frames": total,
                "seconds": {"total": seconds, **films.seconds, "denoise": seconds - sum(films.seconds.values())},
            }
        )
        return films

    def length(self) -> tuple[int, int]:
        """Returns (latent frames of the film, how many of them are given)."""
        config = self.config
        if self.initial is not None:
            given = self.initial.shape[1]
        else:
            given = int(config.data.i2v and not self.kit.joins_image)
        if config.seconds:
            frames = self.geometry.latent_frames_for(config.seconds, config.output.fps or self.kit.spec.fps)
            return self.pipeline.round_up(max(frames, given + 1), given), given
        self.pipeline.spans(config.num_output_frames, given)  # raises if they do not fill chunks
        return config.num_output_frames, given

    def images(self, group: list[Request]) -> torch.Tensor | None:
        """Returns the start images [B, 3, H, W] in [-1, 1] of the batch, or None."""
        if not self.config.data.i2v:
            return None
        return torch.stack([read_image(r.image, (self.geometry.height, self.geometry.width)) for r in group])

    def given(self, group: list[Request], images: torch.Tensor | None) -> torch.Tensor | None:
        """Returns the clean latents [B, F, C, h, w] before the generated ones: given latents, or the images'."""
        if self.initial is not None:
            return _rows(self.initial, group, "initial_latents")
        return None if images is None else self.kit.vae.encode(images[:, None].to(self.kit.device))


def _strip(frames_PHWC: np.ndarray) -> np.ndarray:
    """Returns the evenly spaced frames that a contact sheet shows."""
    return frames_PHWC[np.linspace(0, len(frames_PHWC) - 1, min(SHEET_FRAMES, len(frames_PHWC))).round().astype(int)]


def _tensor(path: str, name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
    """Returns tensor `name` [N, F, C, h, w] of a safetensors file, or None for an empty path; shape: (C, h, w)."""
    if not path:
        return None
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    if name not in tensors:
        raise ValueError(f"{path} has no tensor {name!r}; it has {sorted(tensors)}")
    found = tuple(tensors[name].shape)
    if len(found) != 5 or found[2:] != shape or 0 in found:
        raise ValueError(f"{path}: {name} is {list(found)}; this model at this size takes [N, F, {str(shape)[1:-1]}]")
    return tensors[name]


def _rows(tensor: torch.Tensor | None, group: list[Request], what: str) -> torch.Tensor | None:
    """Returns the batch's rows by prompt index; a single row serves all."""
    if tensor is None:
        return None
    if len(tensor) == 1:
        return tensor.expand(len(group), *tensor.shape[1:])
    need = max(r.index for r in group)
    if need >= len(tensor):
        raise ValueError(f"{what} has {len(tensor)} rows, prompt number {need} needs one of its own")
    return tensor[np.array([r.index for r in group])]
