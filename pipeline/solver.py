"""Multi-step solvers of the probability flow: diffusers' UniPC and DPM++ with flow sigmas, and Euler.

A solver goes through `sigmas` (descending, 0 at the end) for one chunk: `step(velocity, k, x)` returns x at sigma k+1.
UniPC and DPM++ pass truncated integer timesteps to the network, as in Wan. Each chunk has a state of its own, which
goes from process to process as tensors and numbers (`state_dict`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.config import solver_problems
from wan.config import raise_first
from wan.schedule import NUM_TRAIN_TIMESTEPS, shift_sigma

FIRST_SIGMA = 0.999  # UniPC's grid starts at the second entry of a 1000-step schedule
REMEMBERED = ("_step_index", "lower_order_nums", "this_order", "last_sample")  # fields of diffusers' schedulers (0.42)
REMEMBERED_LISTS = ("model_outputs", "timestep_list")  # that a step changes, of the latest steps


@dataclass(frozen=True)
class Solver:
    """A method, its number of steps, its shift and, for euler, its grid (see `MultiStepConfig`).

    Errors: ValueError for an unknown name, no steps, or a shift that is not positive.
    """

    name: str = "unipc"
    num_steps: int = 50
    shift: float = 5.0
    grid: str = "open"

    def __post_init__(self):
        raise_first(solver_problems(self.name, self.num_steps, self.shift, self.grid))

    def start(self) -> SolverState:
        """Returns the state at the start of a chunk."""
        if self.grid == "table":
            return _euler_table(self.num_steps, self.shift)
        return {"unipc": _unipc, "dpm++": _dpm, "euler": _euler}[self.name](self.num_steps, self.shift)


class StepState:
    """What the steps of a chunk hand on besides x: nothing, for a sampler whose steps depend on x alone."""

    def state_dict(self) -> dict[str, torch.Tensor | int]:
        """Returns it as tensors and whole numbers."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor | int]) -> None:
        """Takes back what `state_dict` returned after some step; for a state at the start of a chunk."""


class SolverState(StepState):
    """One trajectory. model_sigmas[k]: the sigma passed to the network; sigmas: those of the solver, 0 last."""

    def __init__(self, sigmas: torch.Tensor, model_sigmas: list[float], scheduler=None):
        self.sigmas, self.model_sigmas, self._scheduler = sigmas, model_sigmas, scheduler
        self.widths = sigmas.double().diff().tolist()

    def __len__(self) -> int:
        return len(self.model_sigmas)

    def step(self, velocity: torch.Tensor, k: int, x: torch.Tensor) -> torch.Tensor:
        """Returns x at sigma k+1; steps must come in order."""
        if self._scheduler is None:
            return x + velocity * self.widths[k]
        return self._scheduler.step(velocity, self._scheduler.timesteps[k], x, return_dict=False)[0]

    def state_dict(self) -> dict[str, torch.Tensor | int]:
        """Returns what the method remembers of the steps so far. No step changes these tensors in place."""
        held = {} if self._scheduler is None else vars(self._scheduler)
        state = {name: held[name] for name in REMEMBERED if held.get(name) is not None}
        for name in REMEMBERED_LISTS:
            state |= {f"{name}.{n}": entry for n, entry in enumerate(held.get(name, ())) if entry is not None}
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor | int]) -> None:
        """Takes back what `state_dict` returned after some step; for a state at the start of a chunk."""
        held = vars(self._scheduler) if state else {}
        for name, value in state.items():
            stem, _, place = name.partition(".")
            if place:
                held[stem][int(place)] = value
            else:
                held[stem] = value


def _euler(num_steps: int, shift: float) -> SolverState:
    sigmas = shift_sigma(torch.linspace(1, 0, num_steps + 1), shift)
    return SolverState(sigmas, sigmas[:-1].tolist())


def _euler_table(num_steps: int, shift: float) -> SolverState:
    """diffusers' FlowMatchEulerDiscreteScheduler: its table is shifted, and what is taken from it once more.

    Times and widths are rounded as there: in fp32.
    """
    table = shift_sigma(torch.arange(1, NUM_TRAIN_TIMESTEPS + 1).flip(0) / NUM_TRAIN_TIMESTEPS, shift)
    grid = torch.linspace(float(table[0]), float(table[-1]), num_steps, dtype=torch.float64)
    sigmas = shift_sigma(grid, shift).to(torch.float32)
    times = (sigmas * NUM_TRAIN_TIMESTEPS).tolist()
    sigmas = torch.cat((sigmas, sigmas.new_zeros(1)))
    state = SolverState(sigmas, [time / NUM_TRAIN_TIMESTEPS for time in times])
    state.widths = sigmas.diff().tolist()
    return state


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
