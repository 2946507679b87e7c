"""Previews: videos of a few prompts while a run trains, made by the pipeline of inference.

`<run>/previews/step_0001500/` holds one MP4 (and its JSON) per prompt and a contact sheet of the generator as it
is after 1,500 steps: what inference.py makes of an export at that step with the training's seed. The training does
not notice: its draws have other keys, and weights, modes and versions are restored.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from pipeline.batch.listing import Batches
from pipeline.batch.request import KeyedNoise, Request, check_grammar
from pipeline.batch.writer import VideoBatchWriter, write_sheet
from pipeline.bundle import ModelBundle
from pipeline.config import OutputConfig
from pipeline.rollout import Chunk
from trainer.checkpoint.folder import set_aside
from trainer.config import TrainConfig
from trainer.export import EXPORTED
from trainer.protocol import Callback
from trainer.trackers import SHEET
from utils.atomic import remove_tree
from utils.data.prompts import file_stem, read_prompts
from utils.parallel import ranks
from utils.rng import Rng
from wan.checkpoint.parts import find_parts
from wan.encoders.text import DTYPES
from wan.family import get_family
from wan.geometry import Geometry

logger = logging.getLogger(__name__)
SEARCHED = 64  # records of a data set that are read to find different prompts


class Preview(Callback):
    """Makes the videos; all ranks together, since a sharded forward needs them all, and rank 0 writes."""

    def __init__(self, run: str | Path, training: TrainConfig, method, trackers=()):
        """method: that of `training`, with `roles`, `source`, `ema` and its `config`."""
        self.folder, self.method, self.trackers = Path(run) / "previews", method, trackers
        config, roles = training.preview, method.roles
        self.config, self.requested = config, config.requested(training)
        self.rng = Rng(self.requested.seed)
        vae = roles.vae
        if vae is None:
            path = find_parts(training.model).need("vae")
            vae = get_family(roles.generator.spec).open_vae(path, config.vae, roles.device)
        dtype = DTYPES[method.config.generator.dtype]
        self.bundle = ModelBundle.of(roles.generator, vae, lambda prompts: roles.text(prompts), roles.device, dtype)
        self.geometry = Geometry.of(self.bundle.spec, config.height, config.width)
        knobs, self.sampler = self.requested, self.requested.build_sampler()
        self.pipeline = knobs.pipeline.build(knobs.generation, self.bundle, self.sampler, self.geometry)
        prompts = (
            read_first(config.prompts, config.count) if config.prompts else first_prompts(method.source, config.count)
        )
        self.requests = [Request(p, i, 0, file_stem(i, 0, p)) for i, p in enumerate(prompts)]
        check_grammar(self.requests, self.bundle.spec.name)

    def start(self, step: int, total: int) -> None:
        if not step and not ranks.rank():
            set_aside(self.folder)  # of an earlier run that this one does not go on with

    def after_step(self, step: int, metrics: dict, seconds: float) -> None:
        done = step + 1
        if done % self.config.every == 0:
            self.make(done)

    def make(self, done: int) -> None:
        """Generates on all ranks, then writes on rank 0. A disk that is full costs the preview, not the training."""
        averaged = self.config.ema and bool(self.method.ema.shadow)
        with self.method.ema.swapped_in(averaged, EXPORTED), at_rest(self.bundle.denoiser):
            videos = [(group, list(self.generate(group))) for group in Batches.cut(self.requests, self.config.batch)]
        if ranks.rank():
            return
        try:
            folder = self.write(videos, done, {"step": done, "weights": "ema" if averaged else "current"})
        except OSError as error:
            logger.warning("the preview of step %d is not written: %s", done, error)
            return
        for tracker in self.trackers:
            tracker.videos(done - 1, folder)

    @torch.no_grad()
    def generate(self, group: list[Request]) -> Iterator[Chunk]:
        """Yields the chunks of a batch, from noise that is the same at every step and takes no draw of the training."""
        negative = None if self.sampler.guidance == 1 else self.method.roles.negative_prompt
        condition = self.bundle.condition([r.prompt for r in group], negative)
        noise = KeyedNoise(self.rng, group, self.geometry.latent_shape(1)[1:], self.bundle.dtype)
        yield from self.pipeline.generate(condition, noise, len(group), self.requested.num_output_frames)

    def write(self, videos: Sequence[tuple[list[Request], list[Chunk]]], done: int, facts: dict) -> Path:
        """Decodes and writes the videos and their sheet, in a folder that gets its name when all is there."""
        final = self.folder / f"step_{done:07d}"
        partial = final.with_suffix(".partial")
        remove_tree(partial)  # of a run that was killed here
        for group, chunks in videos:
            output, total = OutputConfig(folder=str(partial)), self.requested.num_output_frames
            batch = VideoBatchWriter(
                self.bundle.decoder, group, [True] * len(group), output, self.bundle.spec.fps, self.geometry, total
            )
            batch.write(chunks)
            batch.sidecars({"latent_frames": total, **facts})
        write_sheet(partial / SHEET, self.requests, partial)
        shutil.rmtree(final, ignore_errors=True)  # a resumed run makes it again, equal
        return partial.rename(final)


@contextlib.contextmanager
def at_rest(denoiser) -> Iterator[None]:
    """A context in which a network in training generates: evaluation mode, and a version of its own for kept text."""
    modes, version = [(part, part.training) for part in denoiser.modules()], denoiser.transformer.weights_version
    denoiser.eval()
    denoiser.transformer.weights_version = -1 - version  # no step has such a number
    try:
        yield
    finally:
        denoiser.transformer.weights_version = version
        for part, training in modes:
            part.training = training


def read_first(path: str, count: int) -> list[str]:
    """Returns the first different prompts of a text file."""
    return list(dict.fromkeys(line.prompt for line in read_prompts(path)))[:count]


def first_prompts(source, count: int) -> list[str]:
    """Returns the first different prompts of what a source draws from: its prompt list, its clips or its pairs."""
    held = vars(source)
    records = held.get("clips") or held.get("pairs") or ()
    prompts = held.get("prompts") or (records[i][1] for i in range(min(len(records), SEARCHED)))
    return list(dict.fromkeys(prompts))[:count]
