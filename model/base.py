"""What a loss works on: `Sample`, the face of a loss, and the roles it may ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from wan.condition import Condition
from wan.geometry import Span


@dataclass
class Interval:
    """One step of each sample's path: it begins with x [B, F, C, h, w] at sigma `start` [B] and leads to `end` [B].

    `end` is the start of the next step, 0 of the last.
    """

    x: torch.Tensor
    start: torch.Tensor
    end: torch.Tensor


@dataclass
class Sample:
    """One batch of one optimiser step, made by a source.

    latents: x0 [B, F, C, h, w]. index: each row's number, the key of its draws; whole: the numbers of the batch
    that these rows are a part of, empty if they are all of it.
    spans: the chunks of the F frames. prompts: for messages only.
    frame_mask: bool [F], the frames that count in the loss, or None for all.
    trajectory: states [B, T, F, C, h, w] of a teacher's ODE, noisiest first, clean last (ODE pairs).
    real: real latents like `latents` (GAN).
    exit_range: (from, to) on the 1000-grid: the step at which a rollout stopped and the next one.
    interval: the step at which `latents` was predicted, where a whole path was walked (TDM).
    """

    step: int
    latents: torch.Tensor | None
    condition: Condition
    index: Sequence[int]
    spans: list[Span] = field(default_factory=list)
    prompts: Sequence[str] = ()
    frame_mask: torch.Tensor | None = None
    exit_range: tuple[int, int] | None = None
    whole: Sequence[int] = ()
    trajectory: torch.Tensor | None = None
    real: torch.Tensor | None = None
    interval: Interval | None = None


class Draws(Protocol):
    """Random numbers as functions of what is drawn: `utils.rng.Rng`, or recorded ones in parity tests."""

    def at(self, *key: int | str) -> Draws: ...

    def normal_batch(self, shape: Sequence[int], indices: Sequence[int], *key: int | str) -> torch.Tensor: ...

    def uniform_batch(self, shape: Sequence[int], indices: Sequence[int], *key: int | str) -> torch.Tensor: ...

    def integers_batch(
        self, low: int, high: int, indices: Sequence[int], *key: int | str, shape: Sequence[int] = ()
    ) -> torch.Tensor: ...


class Networks(Protocol):
    """The networks of a training that a loss may call; which of them are built is said by `needs` (model/config.py).

    Each is called as `network(x_BFCHW, sigma_BF, condition, context) -> velocity`; the discriminator as
    `discriminator(critic, x, sigma, condition) -> logits`.
    """

    generator: Any
    teacher: Any
    critic: Any
    discriminator: Any


class CriticUpdate(Protocol):
    """The loss of a critic (and discriminator) on a sample without gradient."""

    def __call__(self, sample: Sample, roles: Networks, rng: Draws) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...


class Loss(Protocol):
    """`loss, metrics = loss(sample, roles, rng)`; metrics are device tensors (not synchronised).

    What it reads is said by `needs` of its configuration (model/config.py). One that needs a critic has a `critic`,
    the loss of its update. One on trajectories also has `check_trajectory(count, sigmas)`: the states that its source
    holds.
    """

    def __call__(self, sample: Sample, roles: Networks, rng: Draws) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...


class LossWithCritic(Loss, Protocol):
    """The generator's loss of a distillation."""

    critic: CriticUpdate


def count_frames(sample: Sample, counted: torch.Tensor, draw: Callable[[Sequence[int]], torch.Tensor]) -> torch.Tensor:
    """Returns how many frames count, 1 at least; for a part its share of the whole batch's: parts add up to it.

    counted: which of the sample's frames do, [B, F]. draw: returns the same of samples by their numbers.
    """
    if len(sample.whole) in (0, len(sample.index)):
        return counted.sum().clamp(min=1)
    return draw(sample.whole).sum().clamp(min=1) * (len(sample.index) / len(sample.whole))


def wide(x: torch.Tensor) -> torch.Tensor:
    """Returns x in fp32, float64 as it is: half precision is too narrow for a loss."""
    return x if x.dtype == torch.float64 else x.float()


def draw_noise(sample: Sample, rng, name: str = "noise") -> torch.Tensor:
    """Returns normal noise like the sample's latents, keyed by step, name and global index."""
    shape = sample.latents.shape[1:]
    return rng.at("sample", sample.step, name).normal_batch(shape, sample.index).to(sample.latents)
