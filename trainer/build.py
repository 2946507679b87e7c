"""Turns a training configuration into a loop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from trainer import preflight
from trainer.callbacks import Export, Metrics
from trainer.checkpoint.folder import Checkpoint
from trainer.config import OLD_KEYS, TrainConfig
from trainer.inputs import find_inputs, input_hashes, warn_of_cut_prompts
from trainer.loop import Loop
from trainer.preview import Preview
from trainer.protocol import Callback
from utils.config.field import values
from utils.config.text import to_dict
from utils.log import memory
from utils.parallel import ranks
from utils.rng import Rng
from wan.checkpoint import tensor_file


def build(config: TrainConfig, logdir: str | Path, origins: Mapping[str, str] | None = None) -> Loop:
    """Returns the loop of a run in `logdir`; every network is built here, nothing is written.

    origins: where each value was written, for messages. Errors: ValueError for what cannot work, before any
    network is built.
    """
    torch.set_num_threads(config.threads)
    tensor_file.verify_archives.set(config.verify_archives)
    preflight.check(config, origins)
    ranks.init()
    device = torch.device("cuda", ranks.local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    layout, rng = config.layout.build(device), Rng(config.seed)
    method = config.trainer.build(config, rng, device, layout)
    if ranks.rank() == 0 and "source" in values(config.trainer):
        warn_of_cut_prompts(config, method.roles)
    trackers = config.track.build(logdir, to_dict(config))
    callbacks: list[Callback] = [Metrics(logdir, config.log_every, method, trackers)]
    if config.preview.every:
        callbacks.append(Preview(logdir, config, method, trackers))
    if config.save:
        callbacks.append(Export(logdir))
    read = find_inputs(config)
    recipe, hashes = to_dict(config), lambda: input_hashes(read)
    checkpoint = (Checkpoint if config.save else Unsaved)(logdir, config.checkpoint, recipe, OLD_KEYS, hashes)
    return Loop(method, config.steps, checkpoint, callbacks)


class Unsaved(Checkpoint):
    """The checkpoints of a trial: an earlier one is gone on from, none is written."""

    writes = False

    def save(self, state: dict, step: int) -> None:
        """Does nothing."""


def try_step(loop: Loop) -> str:
    """Takes the first step and writes nothing; returns what it took, in words. Errors: those of training."""
    begin = time.monotonic()
    loss = loop.try_step()
    seconds = time.monotonic() - begin
    used = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in memory().items())
    return f"everything is there and fits; one step took {seconds:.1f} s (loss {loss:.4f}, {used}); nothing was written"
