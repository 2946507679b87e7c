"""Optimisers: Muon for the matrices inside blocks, AdamW for the rest; learning-rate schedule."""

from __future__ import annotations

import math

import torch

from trainer.config import OptimConfig
from utils.parallel.fsdp import local_shard, whole


class Optim:
    """The optimisers of one role: step, clip, schedule, state, as one."""

    def __init__(
        self, module: torch.nn.Module, config: OptimConfig, total: int, scales: dict[str, float] | None = None
    ):
        """total: steps of the training. scales: start of a weight's name -> its rate as a multiple of AdamW's.

        Errors: ValueError for an entry of `rates` that no trained weight's name begins with.
        """
        self.module, self.config, self.total = module, config, total
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        muon = config.name == "muon"
        matrices = [
            p
            for n, p in named
            if muon and n.startswith(config.matrices) and min(p.shape[0], p.numel() // p.shape[0]) > 1
        ]
        taken = {id(p) for p in matrices}
        self._check_rates([name for name, _ in named])
        rest, first = dict[float, list](), dict[float, list]()
        for name, p in named:
            usual = config.lr_rest if muon and id(p) not in taken else config.lr
            if id(p) not in taken:
                usual *= next((scale for start, scale in (scales or {}).items() if name.startswith(start)), 1.0)
            own = next((rate.lr for rate in config.rates if name.startswith(rate.starts)), usual)
            (first if id(p) in taken else rest).setdefault(own, []).append(p)
        groups = [{"params": weights, "lr": own} for own, weights in rest.items()]
        self.parts = [torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay)]
        if matrices:
            groups = [{"params": weights, "lr": own} for own, weights in first.items()]
            self.parts.append(Muon(groups, config.lr, weight_decay=config.weight_decay))
        self.rates = [g["lr"] for part in self.parts for g in part.param_groups]

    def _check_rates(self, names: list[str]) -> None:
        lost = [rate.starts for rate in self.config.rates if not any(name.startswith(rate.starts) for name in names)]
        if lost:
            groups = ", ".join(sorted({f"{name.partition('.')[0]}." for name in names}))
            raise ValueError(
                f"optim.rates: no weight that is trained has a name that begins with {lost[0]!r}; trained are those of "
                f"{groups}: correct it or leave it out"
            )

    def step(self, step: int) -> torch.Tensor:
        """Clips, updates and clears the gradients; returns the gradient norm before clipping."""
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip))
        factor = learning_rate_factor(step, self.total, self.config)
        groups = [g for part in self.parts for g in part.param_groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate * factor
        for part in self.parts:
            part.step()
            part.zero_grad(set_to_none=True)
        return norm

    def weights(self) -> dict[str, torch.Tensor]:
        """Returns the weights that are trained, by name, sharded as they are; with LoRA the adapters alone."""
        trained = {id(p) for p in self.parameters}
        return {n: p.detach() for n, p in self.module.named_parameters() if id(p) in trained}

    @torch.no_grad()
    def load_weights(self, state: dict[str, torch.Tensor]) -> None:
        """Takes back what `weights` returned. Errors: ValueError if names differ."""
        own = self.weights()
        if differing := own.keys() ^ state.keys():
            raise ValueError(f"{min(differing)} is trained here and not there, or there and not here")
        for name, weight in own.items():
            weight.copy_(state[name])

    def state_dict(self) -> dict[str, dict]:
        """Returns what the optimisers know of each weight, by the weight's name; rates and betas are the recipe's."""
        from trainer.checkpoint import dcp  # late: costs a second

        return dcp.optimizer_state(self.module, self.parts)

    def load_state_dict(self, state: dict[str, dict]) -> None:
        """Takes back what `state_dict` returned, on any number of ranks."""
        from trainer.checkpoint import dcp

        dcp.load_optimizer_state(self.module, self.parts, state)


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
        """Performs one update of every weight that has a gradient; weights of one shape go together."""
        for group in self.param_groups:
            shapes: dict[tuple, list] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(_sides(p), []).append(p)
            for (rows, columns), weights in shapes.items():
                ahead = [self._momentum(p, group["momentum"]) for p in weights]
                nesterov = torch.stack([whole(t).flatten(1) for t in ahead])  # of sharded weights all ranks do all
                scale = 0.2 * max(rows, columns) ** 0.5
                for p, update in zip(weights, orthogonalise(nesterov), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(local_shard(update.view(p.shape), p), alpha=-group["lr"] * scale)

    def _momentum(self, p: torch.Tensor, decay: float) -> torch.Tensor:
        """Moves the weight's momentum and returns the Nesterov look-ahead."""
        buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
        buffer.lerp_(p.grad, 1 - decay)
        return p.grad.lerp(buffer, decay)


def _sides(p: torch.Tensor) -> tuple[int, int]:
    """Returns rows and columns of a weight as a matrix."""
    return p.shape[0], p.numel() // p.shape[0]


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Returns nearly U V^T of each matrix [..., rows, columns], by a quintic Newton-Schulz iteration in fp32."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def learning_rate_factor(step: int, total: int, config: OptimConfig) -> float:
    """Returns the factor in [0, 1] at `step`: linear warm-up, constant, linear or cosine decay over the last part."""
    rising = min(1.0, (step + 1) / max(1, config.warmup))
    falling = min(1.0, (total - step) / max(1.0, config.decay * total)) if config.decay else 1.0
    return rising * (falling if config.decay_form == "linear" else (1 - math.cos(math.pi * falling)) / 2)
