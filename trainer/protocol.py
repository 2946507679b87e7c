"""The faces of a training: what the loop, the updates and the callbacks may rely on.

A method turns steps into updates; a source makes samples; a loss (model/base.py) measures them; roles are the networks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from model.base import Draws, Loss, LossWithCritic, Networks, Sample
from utils.parallel.layout import ParallelLayout
from wan.condition import Condition

__all__ = ["Callback", "Draws", "Loss", "LossWithCritic", "Method", "RolesFace", "Sample", "Source"]

Metrics = dict[str, torch.Tensor]


class RolesFace(Networks, Protocol):
    """The networks of a training, and what else sources ask for (`trainer.roles.Roles`)."""

    device: torch.device
    layout: ParallelLayout
    vae: Any

    def condition(self, prompts: list[str], null: bool = True) -> Condition:
        """Returns the condition of a batch; null: whether with that of the unconditional branch."""


class Source(Protocol):
    """Makes the samples of a step. What its configuration says of itself: `fills`, `generates` (sources/config.py)."""

    config: Any

    def index(self, step: int) -> range:
        """Returns the numbers of the step's samples, counted over the whole run."""

    def draw(self, step: int) -> range:
        """Returns the same, of a step that is taken now."""

    def next(
        self, step: int, roles: RolesFace, rng: Draws, with_grad: bool = True, index: range | None = None
    ) -> Sample:
        """Returns the samples of one step, or those of `index`."""

    def cursor(self) -> dict[str, int]:
        """Returns where the next step's samples begin, for a checkpoint."""

    def go_on_from(self, cursor: dict[str, int]) -> None:
        """Takes back what `cursor` returned."""

    def state_dict(self) -> dict:
        """Returns what is kept between steps, for a checkpoint."""

    def load_state_dict(self, state: dict, shares: list[range], roles: RolesFace) -> None:
        """Takes back what `state_dict` returned."""


class Method(Protocol):
    """One training: `step(n)` performs the n-th update and returns metrics as device tensors."""

    config: Any

    def step(self, step: int) -> Metrics:
        """Performs one update."""

    def state_dict(self) -> dict:
        """Returns all that a checkpoint must hold to go on exactly."""

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` returned."""

    def export(self, folder: Path) -> None:
        """Writes the result in the layout that inference reads."""


class Callback:
    """Called around the steps of a loop, on all ranks; does nothing by itself."""

    def start(self, step: int, total: int) -> None:
        """Called before the first step of this process."""

    def after_step(self, step: int, metrics: Metrics, seconds: float) -> None:
        """Called after each step with device tensors; reading one synchronises with the device."""

    def before_save(self) -> None:
        """Called before a checkpoint is written; an exception prevents it."""

    def finish(self, method: Method, seconds: float) -> None:
        """Called after the last step."""

    def stop(self) -> None:
        """Called instead when a signal ends the run before its last step."""
