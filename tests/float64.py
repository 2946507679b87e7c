"""Runs in float64 what the project computes in fp32, so that an equality can be asked for on any CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch


@contextmanager
def wide_kept() -> Iterator[None]:
    """A context in which `tensor.float()` leaves a float64 tensor as it is."""
    narrow = torch.Tensor.float

    def widened(self, *arguments, **fields):
        return self if self.dtype == torch.float64 else narrow(self, *arguments, **fields)

    with mock.patch.object(torch.Tensor, "float", widened):
        yield
