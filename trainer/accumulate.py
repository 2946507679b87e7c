"""One optimiser step's forward and backward: the rank's share of the batch, part by part."""

from __future__ import annotations

import torch

from trainer.protocol import Draws, Loss, RolesFace, Source


def backward(
    source: Source, loss: Loss, roles: RolesFace, rng: Draws, draw: int, parts: int, with_grad: bool = True
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Adds the gradient of the mean loss over this rank's share of the batch; returns (metrics, prompts).

    draw: the number of the source's batch. parts: how many the share is cut into; the gradient is that of
    the whole batch, for parts are equal, all draws are keyed by the sample's number, and a loss that leaves out frames
    counts those of `Sample.whole`.
    """
    metrics: dict[str, torch.Tensor] = {}
    prompts: list[str] = []
    whole = source.draw(draw)
    for index in roles.layout.shares(whole, parts):
        sample = source.next(draw, roles, rng, with_grad=with_grad, index=index)
        sample.whole = whole
        value, measured = loss(sample, roles, rng)
        (value / parts).backward()
        prompts += sample.prompts
        for name, metric in {"loss": value, **measured}.items():
            metrics[name] = metrics.get(name, 0) + metric.detach() / parts
    return metrics, tuple(prompts)
