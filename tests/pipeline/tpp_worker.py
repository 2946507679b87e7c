"""What five ranks make of the tiny models' videos; started by torchrun from test_tpp.py.

torchrun --nproc_per_node=5 -m tests.pipeline.tpp_worker FOLDER
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.executor import PlainExecutor
from pipeline.rollout import Chunk, Rollout, draw_distance
from pipeline.sampler import FewStep, MultiStep
from pipeline.solver import Solver
from pipeline.state import RolloutState
from pipeline.tpp import Stages, TPPExecutor
from pipeline.track import Fixed, PromptSchedule, Track
from tests import tiny
from utils.parallel import ranks
from utils.parallel.pipe import Pipe, pipe_group
from utils.rng import Rng
from wan.generation import PortraitConfig
from wan.ledger import CacheConfig
from wan.schedule import Schedule

BORDERS = tiny.spans(*[3] * 7)
FRAMES = BORDERS[-1].stop
STEP_SECONDS = 0.25
FOUR = (1.0, 0.8, 0.6, 0.3)
SAMPLERS = {
    "euler": lambda: MultiStep(Solver("euler", 4, 3.0, "table")),
    "three": lambda: MultiStep(Solver("euler", 3, 3.0)),
    "unipc": lambda: MultiStep(Solver("unipc", 4, 3.0), 2.0),
    "few_step": lambda: FewStep(FOUR, Schedule(), 2.0),
}
# name -> (sampler, model, what happens, ranks, decoder rank)
CASES = {
    f"{sampler}, {model}, {event}, {world} {decoder}": (sampler, model, event, world, decoder)
    for sampler, model, event, layouts in (
        ("euler", "avatar", "switch", ((2, "own"), (2, "shared"), (3, "own"), (4, "shared"), (5, "own"))),
        ("three", "avatar", "portrait", ((2, "shared"), (3, "own"), (3, "shared"), (4, "auto"))),
        ("few_step", "text", "switch", ((3, "shared"), (5, "auto"))),
        ("unipc", "text", "given", ((3, "own"), (4, "shared"))),
    )
    for world, decoder in layouts
}


def rollout(sampler: str, model: str) -> Rollout:
    """Returns a rollout with same-step caches, an eviction and a causal recache."""
    cache = CacheConfig(9, 2 if model == "text" else 0, content="same_step", recache="causal")
    if model == "text":
        return replace(tiny.rollout(tiny.denoiser(), cache), sampler=SAMPLERS[sampler]())
    portrait = PortraitConfig(distance=(4, 9))
    fields = {"geometry": tiny.S2V_GEOMETRY, "portrait": portrait, "distance": draw_distance(portrait, Rng(3))}
    return replace(tiny.rollout(tiny.s2v_denoiser(), cache, **fields), sampler=SAMPLERS[sampler]())


def conditions(model: str) -> list:
    """Returns two conditions of the whole video."""
    if model == "text":
        return [tiny.condition(seed=seed) for seed in (0, 1)]
    masks = torch.rand(1, 2, FRAMES, *tiny.S2V_GEOMETRY.grid, generator=torch.Generator().manual_seed(1))
    return [replace(tiny.avatar(frames=FRAMES, speakers=2, seed=seed), speakers=masks) for seed in (0, 1)]


def track(model: str, event: str) -> Track:
    """Returns what the first rank asks."""
    first, second = conditions(model)
    if event == "portrait":  # under the same prompt, as a refresh does
        second = replace(first, reference=second.reference, portrait_key="refreshed")
    if event == "given":
        return Fixed(first)
    return PromptSchedule([(0, first), (9, second), (15, replace(first))])


def given(event: str) -> list[Chunk]:
    """Returns the chunks that a video goes on from."""
    return [Chunk(BORDERS[0], tiny.latents(3), given=True)] if event == "given" else []


def noise(model: str):
    return tiny.noise(geometry=tiny.GEOMETRY if model == "text" else tiny.S2V_GEOMETRY)


@torch.no_grad()
def plain(sampler: str, model: str, event: str) -> torch.Tensor:
    """Returns the video of one process. Bits: on one thread, as in the ranks; two sum in another order."""
    rolls = rollout(sampler, model)
    state = rolls.start(1, 3, FRAMES)
    made = PlainExecutor(rolls).run(state, track(model, event), BORDERS, noise(model), given(event))
    return torch.cat([chunk.latents for chunk in made], 1)


@torch.no_grad()
def staged(executor: TPPExecutor, state: RolloutState | None, model: str, event: str) -> torch.Tensor:
    """Returns what this rank passes on of the video: on the last one, the video."""
    first = executor.pipe.place == 0
    asked = (track(model, event), BORDERS) if first else (None, ())
    made = executor.run(state, *asked, noise(model), given(event) if first else ())
    return torch.cat([chunk.latents for chunk in made], 1)


class Slow(FewStep):
    """Steps that take `STEP_SECONDS`, whatever they do."""

    def step(self, k, x, predict, noise, state=None):
        end = time.monotonic() + STEP_SECONDS
        x = super().step(k, x, predict, noise, state)
        time.sleep(max(0.0, end - time.monotonic()))
        return x


@torch.no_grad()
def measure_rate(pipe: Pipe) -> float:
    """Returns the seconds from chunk to chunk on the last of three ranks, which decodes for a step's time."""
    rolls = replace(rollout("few_step", "text"), sampler=Slow(FOUR, Schedule()))
    executor = TPPExecutor.build(rolls, Stages.plan(4, 3, "own"), pipe)
    asked = (Fixed(tiny.condition()), BORDERS) if pipe.place == 0 else (None, ())
    times = []
    for _ in executor.run(executor.start(1, 3, FRAMES), *asked, noise("text")):
        times.append(time.monotonic())
        time.sleep(STEP_SECONDS if pipe.place == pipe.last else 0)
    pipe.flush()
    return (times[-1] - times[1]) / (len(times) - 2)


def main(folder: Path) -> None:
    """Saves what the last rank of each case has made."""
    torch.set_num_threads(1)
    group, here = pipe_group(), ranks.rank()
    for name, (sampler, model, event, world, decoder) in CASES.items():
        if here >= world:
            continue
        rolls = rollout(sampler, model)
        stages = Stages.plan(rolls.sampler.num_steps, world, decoder)
        pipe = Pipe(range(world), group=group)
        executor = TPPExecutor.build(rolls, stages, pipe)
        twice = [staged(executor, executor.start(1, 3, FRAMES), model, event) for _ in range(2)]  # the next job follows
        pipe.flush()
        if pipe.place == pipe.last:
            torch.save({"videos": twice}, folder / f"{name}.pt")
    if here < 3:
        rate = measure_rate(Pipe(range(3), group=group))
        if here == 2:
            torch.save({"seconds": rate}, folder / "rate.pt")
    ranks.barrier()
    ranks.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
