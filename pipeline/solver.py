"""Multi-step solvers of the probability flow: diffusers' UniPC and DPM++ with flow sigmas, and Euler.

A solver goes through `sigmas` (descending, 0 at the end) for one chunk: `step(velocity, k, x)` returns x at sigma k+1.
UniPC and DPM++ pass truncated integer timesteps to the network, as in Wan. Each chunk has a state of its own, which
goes from process to process as tensors and numbers (`state_dict`).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

from pipeline.config import TRAILING, solver_problems
from wan.config import raise_first
from wan.schedule import NUM_TRAIN_TIMESTEPS, shift_sigma, vp_sigmas, vp_trailing

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
        if self.name in TRAILING:
            sigmas = (_trailing if self.grid == "trailing" else _open)(self.num_steps, self.shift)
            return (SdeState if self.name == "dpm_sde" else SolverState)(sigmas, sigmas[:-1].tolist())
        return {"unipc": _unipc, "dpm++": _dpm}[self.name](self.num_steps, self.shift)


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

    def step(self, velocity: torch.Tensor, k: int, x: torch.Tensor, noise=None) -> torch.Tensor:
        """Returns x at sigma k+1; steps must come in order. noise() -> fresh noise, for a method that takes some."""
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


class SdeState(SolverState):
    """DPM-Solver++ SDE of second order: each step adds the noise that keeps the variance.

    In h = the change of ln(A / S), A and S the shares of signal and noise, and D = x0 + (x0 - its predecessor) / 2r, r
    the last h by this one: x' = (S'/S) e^-h x + A' (1 - e^-2h) D + S' sqrt(1 - e^-2h) noise, all of variance-preserving
    latents. First and last step, and the one behind a start without any signal, take D = x0.
    Source: diffusers, CogVideoXDPMScheduler; DPM-Solver++ (arXiv 2211.01095).
    """

    def __init__(self, sigmas: torch.Tensor, model_sigmas: list[float]):
        super().__init__(sigmas, model_sigmas)
        self._before: torch.Tensor | None = None  # x0 of the last step
        odds = [math.inf if s == 0 else math.log((1 - s) / s) if s < 1 else -math.inf for s in sigmas.tolist()]
        self._gaps = [after - before for before, after in itertools.pairwise(odds)]

    def step(self, velocity: torch.Tensor, k: int, x: torch.Tensor, noise=None) -> torch.Tensor:
        """Returns x at sigma k+1; steps must come in order."""
        wide = torch.promote_types(x.dtype, torch.float32)
        sigma, after, h = float(self.sigmas[k]), float(self.sigmas[k + 1]), self._gaps[k]
        x0 = x.to(wide) - sigma * velocity.to(wide)
        target, last = x0, k + 1 == len(self)
        if k and not last and math.isfinite(self._gaps[k - 1]):
            part = h / (2 * self._gaps[k - 1])
            target = (1 + part) * x0 - part * self._before.to(wide)
        self._before = x0
        size_after = _size(after)
        kept = math.exp(-h)
        made = after * size_after * kept / sigma * x.to(wide)  # x on the line, S = sigma size
        made = made + (1 - after) * size_after * (1 - kept**2) * target
        if not last:
            made = made + after * size_after * math.sqrt(1 - kept**2) * noise().to(wide)
        return (made / size_after).to(x.dtype)

    def state_dict(self) -> dict[str, torch.Tensor | int]:
        """Returns the last step's x0."""
        return {} if self._before is None else {"x0": self._before}

    def load_state_dict(self, state: dict[str, torch.Tensor | int]) -> None:
        """Takes back what `state_dict` returned after some step."""
        self._before = state.get("x0")


def _size(sigma: float) -> float:
    """Returns A + S of variance-preserving latents: by how much they are larger than those on the straight line."""
    return ((1 - sigma) ** 2 + sigma**2) ** -0.5


def _open(num_steps: int, shift: float) -> torch.Tensor:
    return shift_sigma(torch.linspace(1, 0, num_steps + 1), shift)


def _trailing(num_steps: int, snr_shift: float) -> torch.Tensor:
    """Returns the sigmas of CogVideoX's times, 0 behind them, in float64."""
    sigmas = vp_sigmas(snr_shift)[list(vp_trailing(num_steps))]
    return torch.cat((sigmas, sigmas.new_zeros(1)))


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
