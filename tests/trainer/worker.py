"""A process among others: takes some steps of each listed training and records what came out, mean over the ranks.

    torchrun --nproc_per_node=2 -m tests.trainer.worker JOBS.json OUT.pt

JOBS: {name: [recipe, steps, [overrides], in float64]}.
OUT: {name: {"metrics": [{name: float}], "weights": {name: tensor}}}.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from tests.float64 import fp32_is_float64
from trainer.config import load_recipe
from utils.parallel import ranks
from utils.parallel.fsdp import whole
from utils.rng import Rng


def main(jobs: str, out: str) -> None:
    """Runs all jobs; rank 0 writes."""
    torch.set_num_threads(1)
    ranks.init()
    results = {name: run(*job) for name, job in json.loads(Path(jobs).read_text()).items()}
    if ranks.rank() == 0:
        torch.save(results, out)
    ranks.shutdown()


def run(recipe: str, steps: int, overrides: list[str], wide: bool) -> dict:
    """Returns metrics of each step and the whole weights after the last; all in float64 if `wide`."""
    with fp32_is_float64() if wide else nullcontext():
        return train(recipe, steps, overrides)


def train(recipe: str, steps: int, overrides: list[str]) -> dict:
    """Returns what `run` does, in the recipe's own dtypes."""
    config, _ = load_recipe(recipe, overrides)
    device = torch.device("cpu")
    layout = config.layout.build(device)
    method = config.trainer.build(config, Rng(config.seed), device, layout)
    metrics = [mean(method.step(step)) for step in range(steps)]
    weights = {name: whole(p.detach()).clone() for name, p in method.roles.generator.transformer.named_parameters()}
    weights |= {f"ema.{name}": whole(p).clone() for name, p in method.ema.shadow.items()}
    return {"metrics": metrics, "weights": weights}


def mean(metrics: dict[str, torch.Tensor]) -> dict[str, float]:
    """Returns the metrics' mean over the ranks."""
    names, world = sorted(metrics), ranks.world_size()
    values = torch.stack([metrics[n].detach().double().reshape(()) for n in names])
    if world > 1:
        torch.distributed.all_reduce(values)
    return dict(zip(names, (values / world).tolist(), strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
