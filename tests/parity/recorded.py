"""What a run in float64 takes from the recordings, so that it does not depend on the CPU: the fp32 table of sigmas."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch

from tests.float64 import wide_kept
from wan import schedule


def fused_table(shift: float) -> torch.Tensor:
    """Returns `sigma_table` as it is on a CPU with fused multiply-add: its linspace rounds product and sum once.

    Others round twice, so some entries differ in their last place; of a timestep that is 6e-5.
    """
    width, index = np.float64(np.float32(-1 / schedule.NUM_TRAIN_TIMESTEPS)), np.arange(schedule.NUM_TRAIN_TIMESTEPS)
    left = schedule.NUM_TRAIN_TIMESTEPS - index
    grid = np.where(index < schedule.NUM_TRAIN_TIMESTEPS // 2, 1 + width * index, -width * left)
    return schedule.shift_sigma(torch.from_numpy(grid.astype(np.float32)), shift)


@contextmanager
def as_recorded(dtype: torch.dtype) -> Iterator[None]:
    """A context in which float64 stays float64 and sigma tables are those of the recordings; nothing in fp32."""
    if dtype != torch.float64:
        yield
        return
    schedule.weight_table.cache_clear()
    with mock.patch.object(schedule, "sigma_table", functools.lru_cache(fused_table)), wide_kept():
        yield
    schedule.weight_table.cache_clear()
