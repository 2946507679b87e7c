"""A teacher's ODE trajectory, kept at given noise levels: the data of ODE regression.

Euler's method walks the shifted grid of `num_steps` and, inserted into it, the student's noise levels, so that what
is kept has exactly the sigma that the student is told.
Source: CausVid (arXiv 2412.07772) section 4.2; Self-Forcing, scripts/generate_ode_pairs.py.
Differs from Self-Forcing: it keeps steps 0, 12, 24, 36 of its own grid, whose sigmas are not its student's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wan.schedule import shift_sigma

SAME_SIGMA = 1e-6


def grid_with(sigmas: Sequence[float], num_steps: int, shift: float) -> list[float]:
    """Returns the falling walk from 1 to 0: the shifted grid of `num_steps` and the given sigmas, each once.

    Errors: ValueError for sigmas outside (0, 1], no steps, or a shift that is not positive.
    """
    if num_steps < 1 or shift <= 0:
        raise ValueError(f"num_steps is {num_steps} and shift {shift}; write 1 or more steps and a positive shift")
    if not sigmas or any(not 0 < s <= 1 for s in sigmas):
        raise ValueError(f"the kept sigmas {list(sigmas)} must lie in (0, 1]")
    grid = shift_sigma(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), shift).tolist()
    own = [g for g in grid if all(abs(g - s) > SAME_SIGMA for s in sigmas)]
    return sorted([*own, *map(float, sigmas)], reverse=True)


@torch.no_grad()
def trajectory(predict, noise_BFCHW: torch.Tensor, walk: Sequence[float], kept: Sequence[float]) -> torch.Tensor:
    """Returns the states [B, T, F, C, h, w] of the probability flow at the sigmas `kept`, and its clean end.

    predict(x, sigma) -> the (guided) velocity; walk: from `grid_with`. Sums in fp32.
    """
    x, states = noise_BFCHW.float(), []
    for sigma, after in zip(walk[:-1], walk[1:], strict=True):
        if sigma in kept:
            states.append(x)
        x = x + (after - sigma) * predict(x.to(noise_BFCHW.dtype), sigma).float()
    return torch.stack([*states, x], 1)
