"""What two ranks do in `test_resume.py`: `torchrun -m tests.trainer.resume_ranks JOBS.json FOLDER`.

JOBS: {name: [recipe, [overrides]]}. Each scene is a function of (configs, folder, rank) that returns what the test
compares; all are played in one start, in float64.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from tests.float64 import fp32_is_float64
from trainer.build import build
from trainer.checkpoint import dcp
from trainer.config import load_recipe
from utils.parallel import ranks
from utils.parallel.layout import LayoutConfig


def state_hash(method) -> str:
    """Returns a hash of all that the method would save on this rank."""
    tree, tensors = dcp.split(method.state_dict())
    digest = hashlib.sha256(json.dumps(tree).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        digest.update(local.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fit(config, run: Path, total: int | None = None):
    """Trains, up to `total` steps of the recipe's; returns the loop."""
    loop = build(config, run)
    loop.total = total or loop.total
    loop.fit()
    return loop


def losses(run: Path) -> list[float]:
    """Returns the losses of the run's steps, from the first on."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows]


def exact(configs, folder: Path, rank: int) -> dict:
    """Of every job an uninterrupted run, and the same in two halves; whether each state is sharded."""
    message = {}
    for name, config in configs.items():
        whole = fit(config, folder / name / "whole")
        fit(config, folder / name / "parts", total=3)
        parts = fit(config, folder / name / "parts")
        sharded = [hasattr(tensor, "to_local") for tensor in dcp.split(whole.method.state_dict())[1].values()]
        message[name] = {"whole": state_hash(whole.method), "parts": state_hash(parts.method), "sharded": sum(sharded)}
    return message


def other_ranks(configs, folder: Path, rank: int) -> None:
    """Goes on from what one rank saved (the test put it there), with one copy of the weights and with two."""
    fit(configs["flow"], folder / "from_one")
    fit(replace(configs["flow"], layout=LayoutConfig(shard=1)), folder / "from_one_copies")


def not_a_number(configs, folder: Path, rank: int) -> dict:
    """The loss of the second rank alone is NaN at step 4."""
    loop = build(configs["flow"], folder / "nan")
    step, prompts = loop.method.step, []

    def broken(number):
        metrics = step(number)
        prompts.append(loop.method.last_prompts[""])
        return {**metrics, "loss": metrics["loss"] * (float("nan") if rank == 1 and number == 4 else 1)}

    loop.method.step = broken
    try:
        loop.fit()
    except ValueError as error:
        return {"error": str(error), "prompts": str(list(prompts[4]))}
    return {}


def full_disk(configs, folder: Path, rank: int) -> dict:
    """The second rank alone cannot write its tensors of the second checkpoint."""
    loop, save = build(configs["flow"], folder / "full"), torch.save

    def write(tensor, stream, **options):
        if rank == 1 and loop.checkpoint.good:
            raise OSError(28, "No space left on device")
        return save(tensor, stream, **options)

    torch.save = write
    try:
        loop.fit()
    except OSError as error:
        return {"error": str(error), "left": sorted(p.name for p in loop.checkpoint.folder.iterdir())}
    finally:
        torch.save = save
    return {}


def damaged(configs, folder: Path, rank: int) -> dict:
    """The second rank's file of the newest checkpoint is damaged."""
    run = folder / "flow/whole"
    if rank == 0:
        path = run / "checkpoints/step_0000008/__1_0.distcp"
        path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    ranks.barrier()
    return {"step": build(configs["flow"], run).resume()}


def main() -> None:
    """Plays all scenes and writes `<folder>/<rank>.json`."""
    jobs, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    configs = {name: load_recipe(*job)[0] for name, job in jobs.items()}
    ranks.init()
    rank, message = ranks.rank(), {}
    with fp32_is_float64():
        for scene in (exact, other_ranks, not_a_number, full_disk, damaged):
            message[scene.__name__] = scene(configs, folder, rank)
            ranks.barrier()
    (folder / f"{rank}.json").write_text(json.dumps(message))
    ranks.barrier()
    ranks.shutdown()


if __name__ == "__main__":
    main()
