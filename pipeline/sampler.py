"""The steps inside one chunk: from noise to x0. The executor says who predicts and what the prediction may see.

`predict(x, sigma: float) -> velocity` is already guided and bound to condition and context;
`noise(k) -> tensor` is the chunk's k-th noise (k = 0 was the start). `step(k, x, predict, noise, state)` is public: the
steps of a chunk may run in several processes, which hand on x and `state.state_dict()`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.config import FewStepConfig, MultiStepConfig
from pipeline.solver import Solver, SolverState, StepState
from wan.generation import StepsConfig
from wan.geometry import Span
from wan.schedule import Schedule, step_sigmas

FIRST = Span(0, 1)  # begins as a video's first chunk does


def few_step(config: FewStepConfig, steps: StepsConfig) -> FewStep:
    """Returns the sampler of a `FewStepConfig` at these steps."""
    sigmas = step_sigmas(steps.steps, steps.shift, steps.warp, steps.clock)
    first = step_sigmas(steps.first_steps, steps.shift, steps.warp, steps.clock) if steps.first_steps else ()
    return FewStep(sigmas, Schedule(steps.shift, steps.rounding), config.guidance, first, steps.eta)


def multi_step(config: MultiStepConfig, steps: StepsConfig) -> MultiStep:
    """Returns the sampler of a `MultiStepConfig`; two experts have a weight each."""
    w = (config.guidance, config.guidance_high) if config.guidance_high else config.guidance
    grid = "trailing" if steps.clock == "vp" else config.grid
    return MultiStep(Solver(config.solver, config.num_steps, config.shift or steps.shift, grid), w)


class Sampler:
    """What samplers share: `at(span)` is the sampler of one chunk, by default the same for all."""

    guidance: float | tuple[float, float] = 1.0  # two experts have a weight each

    @property
    def num_steps(self) -> int:
        """Network evaluations per chunk and guidance branch."""
        raise NotImplementedError

    @property
    def first_num_steps(self) -> int:
        """Network evaluations of a video's first chunk."""
        return self.at(FIRST).num_steps

    @property
    def model_sigmas(self) -> Sequence[float]:
        """The sigma passed to the network at each of them."""
        raise NotImplementedError

    def at(self, span) -> Sampler:
        """Returns the sampler of the chunk over `span`."""
        return self

    def start(self) -> StepState:
        """Returns what the steps of a new chunk hand on besides x."""
        return StepState()

    def step(self, k: int, x_BFCHW: torch.Tensor, predict, noise, state) -> torch.Tensor:
        """Returns x after step k."""
        raise NotImplementedError

    def diffuse(self, k: int, x0_BFCHW: torch.Tensor, noise) -> torch.Tensor:
        """Returns x0 at the noise level that step k starts from."""
        raise NotImplementedError


class FewStep(Sampler):
    """x0 = x - sigma v; x = diffuse(x0, noise, next sigma); the last x0 is the result.

    first_sigmas: those of the chunk at a video's start; empty = the same. The noise is eta times the predicted one,
    x + (1 - sigma) v, and for the rest fresh, so that its variance stays: eta 1 is Euler.
    """

    guidance: float

    def __init__(self, sigmas, schedule: Schedule, guidance: float = 1.0, first_sigmas=(), eta: float = 0.0):
        self.sigmas, self.schedule, self.guidance = tuple(sigmas), schedule, guidance
        self.first_sigmas, self.eta = tuple(first_sigmas), eta

    def at(self, span) -> FewStep:
        """Returns the sampler of the chunk over `span`: the first one may have steps of its own."""
        if span.start or not self.first_sigmas:
            return self
        return FewStep(self.first_sigmas, self.schedule, self.guidance, eta=self.eta)

    @property
    def num_steps(self) -> int:
        """Steps of the list, which all chunks but the first have."""
        return len(self.sigmas)

    @property
    def model_sigmas(self) -> Sequence[float]:
        """The sigmas of the list."""
        return self.sigmas

    def diffuse(self, k: int, x0_BFCHW: torch.Tensor, noise) -> torch.Tensor:
        return self.schedule.diffuse(x0_BFCHW, noise(k), _tensor(self.sigmas[k], x0_BFCHW))

    def step(self, k: int, x_BFCHW: torch.Tensor, predict, noise, state=None):
        """Returns x after step k: re-noised to the next sigma, or x0 after the last."""
        x0 = self.x0(k, x_BFCHW, predict)
        if k + 1 == self.num_steps:
            return x0
        sigma = _tensor(self.sigmas[k], x_BFCHW)
        mixed = self.schedule.noise_of(x_BFCHW, x0, sigma, self.eta, lambda: noise(k + 1))
        return self.schedule.diffuse(x0, mixed, _tensor(self.sigmas[k + 1], x_BFCHW))

    def x0(self, k: int, x_BFCHW: torch.Tensor, predict) -> torch.Tensor:
        """Returns the x0 predicted at step k, in the dtype of x."""
        sigma = self.sigmas[k]
        velocity = predict(x_BFCHW, sigma)
        return self.schedule.velocity_to_x0(x_BFCHW, velocity, _tensor(sigma, x_BFCHW)).to(x_BFCHW.dtype)


class KeptSteps(FewStep):
    """Few steps to the end, chunk by chunk, of which all x and predicted x0 are kept.

    grad_step: the step whose x0 has gradient in every chunk, or None; what follows goes on from it without.
    """

    def __init__(self, few: FewStep, grad_step: int | None = None):
        super().__init__(few.sigmas, few.schedule, few.guidance, eta=few.eta)
        self.grad_step = grad_step
        self._kept: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in self.sigmas]

    def x0(self, k: int, x_BFCHW: torch.Tensor, predict) -> torch.Tensor:
        """Returns the x0 predicted at step k, without gradient, and keeps it with x."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and k == self.grad_step):
            x0 = super().x0(k, x_BFCHW, predict)
        self._kept[k].append((x_BFCHW, x0))
        return x0.detach()

    def kept(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns x before step k and the x0 predicted there, of all chunks so far: [B, F, C, h, w] each."""
        x, x0 = (torch.cat(parts, 1) for parts in zip(*self._kept[k], strict=True))
        return x, x0


class RandomExit(Sampler):
    """Few steps for training: a chunk stops at its exit step, whose x0 is its result and alone has gradient.

    exit_step(span) -> the exit step k; with_grad(span) -> whether the chunk may carry gradient at all.
    Source: Self-Forcing (arXiv 2506.08009), algorithm 1.
    """

    def __init__(self, few: FewStep, exit_step, with_grad=lambda span: True):
        self.few, self.exit_step, self.with_grad = few, exit_step, with_grad

    @property
    def num_steps(self) -> int:
        """Steps of the list: those of a chunk that exits at the last one."""
        return self.few.num_steps

    @property
    def model_sigmas(self) -> Sequence[float]:
        """The sigmas of the list."""
        return self.few.sigmas

    def diffuse(self, k: int, x0_BFCHW: torch.Tensor, noise) -> torch.Tensor:
        return self.few.diffuse(k, x0_BFCHW, noise)

    def at(self, span) -> Sampler:
        """Returns the few-step sampler that ends at the chunk's exit step."""
        sigmas = self.few.at(span).sigmas[: self.exit_step(span) + 1]
        return _GradOnLastStep(sigmas, self.few.schedule, self.with_grad(span), self.few.eta)


class _GradOnLastStep(FewStep):
    """Few steps of which only the last is taken with gradient, if any."""

    def __init__(self, sigmas, schedule: Schedule, with_grad: bool, eta: float):
        super().__init__(sigmas, schedule, eta=eta)
        self.with_grad = with_grad

    def step(self, k: int, x_BFCHW: torch.Tensor, predict, noise, state=None):
        last = self.with_grad and k + 1 == self.num_steps
        with torch.set_grad_enabled(torch.is_grad_enabled() and last):
            return super().step(k, x_BFCHW, predict, noise, state)


class MultiStep(Sampler):
    """One solver trajectory per chunk."""

    def __init__(self, solver: Solver, guidance: float | tuple[float, float] = 1.0):
        self.solver, self.guidance = solver, guidance

    @property
    def num_steps(self) -> int:
        """Steps of the solver."""
        return self.solver.num_steps

    @property
    def model_sigmas(self) -> Sequence[float]:
        """The sigmas that the solver passes to the network."""
        return self.start().model_sigmas

    def start(self) -> SolverState:
        """Returns the solver's state at the start of a chunk."""
        return self.solver.start()

    def diffuse(self, k: int, x0_BFCHW: torch.Tensor, noise) -> torch.Tensor:
        """Returns x0 on the straight line to the chunk's only noise, its start."""
        return Schedule().diffuse(x0_BFCHW, noise(0), _tensor(float(self.start().sigmas[k]), x0_BFCHW))

    def step(self, k: int, x_BFCHW: torch.Tensor, predict, noise, state: SolverState):
        """Returns x after step k of the trajectory; steps must come in order, in any process."""
        velocity = predict(x_BFCHW, state.model_sigmas[k])
        return state.step(velocity, k, x_BFCHW, lambda: noise(k + 1)).to(x_BFCHW.dtype)


def sample(sampler, x_BFCHW: torch.Tensor, predict, noise) -> torch.Tensor:
    """Runs all steps of one chunk from the noise x; returns x0."""
    state = sampler.start()
    for k in range(sampler.num_steps):
        x_BFCHW = sampler.step(k, x_BFCHW, predict, noise, state)
    return x_BFCHW


def _tensor(sigma: float, like: torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.full((like.shape[0],), sigma, dtype=dtype, device=like.device)
