"""Optimisers: Muon for the matrices inside blocks, AdamW for the rest; learning-rate schedule."""

from __future__ import annotations

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for weights of two or more axes (flattened to 2-D).

    `torch.optim.Muon` takes 2-D weights only and iterates in bf16; this one also takes convolution
    kernels and iterates in fp32, so that one rank and several agree. The step is scaled to the RMS
    of AdamW's (0.2 sqrt(max(rows, columns))), so both share a learning-rate scale.
    Source: Muon (Jordan et al. 2024), scale from arXiv 2502.16982 equation 4.
    """

    def __init__(self, params, lr=3e-3, momentum=0.95, weight_decay=0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """Performs one update of every weight that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                nesterov = p.grad.lerp(buffer, group["momentum"])
                update = orthogonalise(nesterov.flatten(1)).view_as(p)
                scale = 0.2 * max(p.shape[0], p[0].numel()) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * scale)


def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Returns nearly U V^T of the matrix's SVD by a quintic Newton-Schulz iteration in fp32."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


def learning_rate_factor(step: int, total: int, warmup: int = 100, decay: float = 0.4) -> float:
    """Returns the factor in [0, 1] at `step`: linear warm-up, constant, linear decay over the last part."""
    rising = min(1.0, (step + 1) / max(1, warmup))
    falling = min(1.0, (total - step) / max(1.0, decay * total))
    return rising * falling
