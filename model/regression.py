"""ODE regression: the causal generator learns to jump along recorded teacher trajectories.

    L = mean over frames with sigma > 0 of |x0_theta(x_sigma, sigma, c) - x0|^2

where x_sigma is the trajectory's state at a step drawn per chunk and x0 its end. The steps are those of
`generation.steps.steps` for every chunk: `first_steps` are used where the student generates, not here.
Source: CausVid (arXiv 2412.07772) equation 7; Self-Forcing, model/ode_regression.py (which never starts).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model.base import Sample, count_frames, wide
from model.config import OdeConfig
from model.flow import masked_context
from wan.generation import GenerationConfig
from wan.schedule import Schedule, step_sigmas

SAME_SIGMA = 1e-5  # noise levels nearer than this are one


class OdeLoss:
    """The regression of a generator on ODE pairs."""

    def __init__(self, config: OdeConfig, generation: GenerationConfig):
        steps, self.cache = generation.steps, generation.cache
        self.schedule = Schedule(steps.shift, steps.rounding)
        self.sigmas = torch.tensor([*step_sigmas(steps.steps, steps.shift, steps.warp, steps.clock), 0.0])

    def check_trajectory(self, count: int, sigmas: Sequence[float] | None) -> None:
        """Raises ValueError for pairs of another number of states, or at other noise levels than `steps` names."""
        mine = self.sigmas.tolist()
        if count != len(mine):
            expected = f"generation.steps names {len(mine) - 1} and the clean end"
            raise ValueError(f"the trajectory has {count} states; {expected}")
        if sigmas is not None and any(abs(a - b) > SAME_SIGMA for a, b in zip(sigmas, mine, strict=True)):
            given, wanted = ([round(s, 4) for s in list_] for list_ in (sigmas, mine))
            raise ValueError(
                f"the pairs hold states at sigma {given}, generation.steps means {wanted}; make pairs for these steps "
                "(scripts/make_ode_pairs.py) or write the steps, shift and warp of the pairs"
            )

    def __call__(self, sample: Sample, roles, rng):
        x, sigma = self.noisy(sample, rng)
        x0 = self.predict(x, sigma, sample, roles)
        error = wide(x0 - sample.trajectory[:, -1]).square().mean((2, 3, 4))
        clean = len(self.sigmas) - 1
        noisy = count_frames(sample, sigma > 0, lambda index: self.draw_states(sample, rng, index) < clean)
        loss = ((sigma > 0) * error).sum() / noisy
        return loss, {"loss": loss.detach(), "all_frames": error.detach().mean(), "sigma": sigma.mean()}

    def noisy(self, sample: Sample, rng) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (x [B, F, C, h, w], sigma [B, F]): the trajectory at one drawn step per chunk."""
        self.check_trajectory(sample.trajectory.shape[1], None)
        state = self.draw_states(sample, rng, sample.index)
        where = state[:, None, :, None, None, None].expand(-1, 1, -1, *sample.trajectory.shape[3:])
        return sample.trajectory.gather(1, where).squeeze(1), self.sigmas.to(state.device)[state]

    def draw_states(self, sample: Sample, rng, index: Sequence[int]) -> torch.Tensor:
        """Returns the state of each frame [B, F] of samples of the batch by their numbers: one draw a chunk."""
        source = rng.at("sample", sample.step, "ode step")
        state = source.integers_batch(0, len(self.sigmas), index, shape=(len(sample.spans),))
        return state.repeat_interleave(torch.tensor([len(s) for s in sample.spans]), 1).to(sample.trajectory.device)

    def predict(self, x: torch.Tensor, sigma: torch.Tensor, sample: Sample, roles) -> torch.Tensor:
        """Returns x0 of one masked forward over the whole clip."""
        context = masked_context("diffusion_forcing", sample.spans, self.cache)
        velocity = roles.generator(x, sigma, sample.condition, context)
        return self.schedule.velocity_to_x0(x, velocity, sigma)
