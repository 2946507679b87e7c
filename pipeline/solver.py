"""Multi-step solvers of the probability flow: diffusers' UniPC and DPM++ with flow sigmas, and Euler.

A solver walks `sigmas` (descending, 0 at the end) for one chunk: `sigmas[k]` is told to the network
at step k, `step(velocity, k, x)` returns the next x. UniPC and DPM++ are told truncated integer
timesteps, as in Wan; a fresh one is made for each chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.config import solver_problems
from wan.config import raise_first
from wan.schedule import NUM_TRAIN_TIMESTEPS, shift_sigma

FIRST_SIGMA = 0.999  # UniPC's grid starts at the second entry of a 1000-step schedule


@dataclass(frozen=True)
class Solver:
    """A recipe for walks: which method, how many steps, what shift.

    Errors: ValueError for an unknown name, no steps, or a shift that is not positive.
    """

    name: str = "unipc"
    num_steps: int = 50
    shift: float = 5.0

    def __post_init__(self):
        raise_first(solver_problems(self.name, self.num_steps, self.shift))

    def start(self) -> SolverState:
        """Returns the walk of one chunk."""
        return {"unipc": _unipc, "dpm++": _dpm, "euler": _euler}[self.name](self.num_steps, self.shift)


class SolverState:
    """One trajectory. `told[k]`: sigma for the network; `sigmas`: those of the solver, 0 last."""

    def __init__(self, sigmas: torch.Tensor, model_sigmas: list[float], scheduler=None):
        self.sigmas, self.model_sigmas, self._scheduler = sigmas, model_sigmas, scheduler

    def __len__(self) -> int:
        return len(self.model_sigmas)

    def step(self, velocity: torch.Tensor, k: int, x: torch.Tensor) -> torch.Tensor:
        """Returns x at sigma k+1; steps must come in order."""
        if self._scheduler is None:
            width = float(self.sigmas[k + 1]) - float(self.sigmas[k])
            return x + velocity * width
        return self._scheduler.step(velocity, self._scheduler.timesteps[k], x, return_dict=False)[0]


def _euler(num_steps: int, shift: float) -> SolverState:
    sigmas = shift_sigma(torch.linspace(1, 0, num_steps + 1), shift)
    return SolverState(sigmas, sigmas[:-1].tolist())


def _unipc(num_steps: int, shift: float) -> SolverState:
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=1.0,
        solver_type="bh2",
    )
    grid = torch.linspace(FIRST_SIGMA, 0, num_steps + 1, dtype=torch.float32)[:-1]
    scheduler.set_timesteps(sigmas=shift_sigma(grid.double(), shift).numpy())
    return _solver_state(scheduler)


def _dpm(num_steps: int, shift: float) -> SolverState:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=1.0,
        algorithm_type="dpmsolver++",
    )
    scheduler.set_timesteps(num_steps)
    grid = shift_sigma(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)[:-1], shift)
    scheduler.sigmas = torch.cat((grid, grid.new_zeros(1))).float()
    scheduler.timesteps = (grid * NUM_TRAIN_TIMESTEPS).long()
    scheduler.set_begin_index(0)
    return _solver_state(scheduler)


def _solver_state(scheduler) -> SolverState:
    model_sigmas = [t / NUM_TRAIN_TIMESTEPS for t in scheduler.timesteps.tolist()]
    return SolverState(scheduler.sigmas, model_sigmas, scheduler)
