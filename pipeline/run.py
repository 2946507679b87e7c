"""One generation run: requests in, files out. Ranks share the batches; nothing else depends on them."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.config import InferConfig
from pipeline.decode import Films, finished
from pipeline.kit import Kit, load_kit
from pipeline.request import GRAMMARS, KeyedNoise, Request, batches, read_requests
from utils import distributed
from utils.config import config_hash
from utils.log import VideoProgress
from utils.media_io import contact_sheet, read_image
from utils.rng import Rng
from wan.geometry import Geometry

logger = logging.getLogger(__name__)
SHEET_CLIPS = 16


def run(config: InferConfig) -> list[Path]:
    """Generates every request that is not finished; returns the paths of this rank's videos.

    Errors: ValueError for bad input, before any video is begun.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    suffix = "ema" if config.model.use_ema else ""
    requests = read_requests(config.data, config.output, config.num_samples, suffix)  # before any weight is read
    mine = distributed.split(batches(requests, config.batch))
    if not mine:
        return []
    kit = load_kit(config.model, config.vae, config.text)
    check_grammar(requests, kit.spec.name)
    return Run(config, kit).films(mine)


def check_grammar(requests: list[Request], spec_name: str) -> None:
    """Raises ValueError if a prompt lies outside the closed world of the model."""
    grammar = GRAMMARS.get(spec_name)
    for request in requests if grammar else ():
        grammar(request.prompt)


class Run:
    """A configured model that turns batches of requests into files."""

    def __init__(self, config: InferConfig, kit: Kit):
        self.config, self.kit = config, kit
        self.geometry = Geometry.of(kit.spec, config.height, config.width)
        self.sampler = config.sampler.build()
        self.pipeline = config.pipeline.build(kit, self.sampler, self.geometry)
        self.rng = Rng(config.seed)
        self.noise = _tensor(config.data.noise, "noise")
        self.initial = _tensor(config.data.initial_latents, "latents")

    def films(self, groups: list[list[Request]]) -> list[Path]:
        """Writes the films of all batches; a finished one is made again only if its batch is not complete."""
        output, sheet, paths = self.config.output, [], []
        total, given = self.length(groups[0])
        chunks = len(self.pipeline.spans(total, given))
        with VideoProgress(sum(map(len, groups)), chunks * sum(map(len, groups))) as bar:
            for group in groups:
                wanted = [output.overwrite or not finished(r, output.folder) for r in group]
                paths += [Path(output.folder) / f"{r.stem}.mp4" for r in group]
                if not any(wanted):
                    for _ in group:
                        bar.skip(chunks)
                    continue
                films = self.batch(group, wanted, bar)
                for row, frames in films.shown.items():
                    if len(sheet) < SHEET_CLIPS:
                        sheet.append((group[row].prompt, frames))
                    bar.video()
        if output.sheet and sheet:
            labels, clips = zip(*sheet, strict=True)
            name = "sheet.png" if distributed.world_size() == 1 else f"sheet_rank{distributed.rank()}.png"
            contact_sheet(Path(output.folder) / name, clips, labels)
        return paths

    def batch(self, group: list[Request], wanted: list[bool], bar) -> Films:
        """Generates, decodes and writes one batch; returns what was written."""
        begin = time.perf_counter()
        negative = None if self.sampler.guidance == 1 else self.config.negative_prompt
        condition = self.kit.condition([r.prompt for r in group], negative)
        images, given = self.images(group), None
        total, _ = self.length(group)
        if images is not None and self.kit.joins_image:
            condition = self.kit.with_image(condition, images, self.geometry.pixel_frames(total))
        else:
            given = self.given(group, images)
        noise = KeyedNoise(
            self.rng, group, self.geometry.latent_shape(1)[1:], self.kit.dtype, _rows(self.noise, group, "noise")
        )
        films = Films(self.kit.vae, group, wanted, self.config.output, self.kit.spec.fps)
        chunks = self.pipeline.generate(condition, noise, len(group), total, given)
        films.write(chunks, lambda count: bar.chunk(count))
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

    def length(self, group: list[Request]) -> tuple[int, int]:
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


def _tensor(path: str, name: str) -> torch.Tensor | None:
    """Returns tensor `name` of a safetensors file, or None for an empty path."""
    if not path:
        return None
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    if name not in tensors:
        raise ValueError(f"{path} has no tensor {name!r}; it has {sorted(tensors)}")
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
