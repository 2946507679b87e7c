"""Runs in float64 what the project computes in fp32, so that an equality can be asked for on any CPU."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from unittest import mock

import torch

from tests.architecture.source import ROOT
from utils.rng import Rng
from wan.encoders.text import DTYPES

ROOMS = ("model", "pipeline", "trainer", "utils", "wan")


@contextmanager
def wide_kept() -> Iterator[None]:
    """A context in which `tensor.float()` leaves a float64 tensor as it is."""
    narrow = torch.Tensor.float

    def widened(self, *arguments, **fields):
        return self if self.dtype == torch.float64 else narrow(self, *arguments, **fields)

    with mock.patch.object(torch.Tensor, "float", widened):
        yield


class _WideTorch(ModuleType):
    """torch, whose float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@contextmanager
def fp32_is_float64() -> Iterator[None]:
    """A context in which the project's fp32 is float64: weights, master weights, averages, draws, losses.

    Tables that were kept before stay what they are.
    """
    wide, normal, uniform = _WideTorch("torch"), Rng.normal, Rng.uniform
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in ROOMS and vars(module).get("torch") is torch:
                stack.enter_context(mock.patch.object(module, "torch", wide))
        stack.enter_context(mock.patch.dict(DTYPES, fp32=torch.float64))
        stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
        stack.enter_context(mock.patch.object(Rng, "normal", lambda self, *a, **k: normal(self, *a, **k).double()))
        stack.enter_context(mock.patch.object(Rng, "uniform", lambda self, *a, **k: uniform(self, *a, **k).double()))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        yield
