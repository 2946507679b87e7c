"""Turns a training configuration into a loop."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.callbacks import Export, Metrics
from trainer.checkpoint import Checkpoint
from trainer.config import TrainConfig
from trainer.loop import Loop
from utils.rng import Rng


def build(config: TrainConfig, logdir: str | Path) -> Loop:
    """Returns the loop of a run in `logdir`; every network is built here."""
    torch.set_num_threads(config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng = Rng(config.seed)
    method = config.trainer.build(config.model, config.steps, rng, device)
    callbacks = [Metrics(logdir, config.log_every, method), Export(logdir)]
    return Loop(method, config.steps, Checkpoint(logdir, config.checkpoint), callbacks)
