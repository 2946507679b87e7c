"""Skips what this machine cannot run. `tests/tiny.py` holds the tiny model that tests share."""

from __future__ import annotations

import os
import signal

import pytest


def pytest_configure(config):
    """A shell ignores Ctrl-C for what it starts in the background, and what tests start would inherit that.

    Hashes of the tests' files are remembered apart from the user's.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "cache"):
        os.environ["XDG_CACHE_HOME"] = str(config.cache.mkdir("user"))


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # only here: the architecture tests start without it

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def float64(monkeypatch):
    """What `tests/tiny.py` makes is float64."""
    import torch

    from tests import tiny

    monkeypatch.setattr(tiny, "DTYPE", torch.float64)


@pytest.fixture
def wide(float64):
    """As `float64`, and `tensor.float()` leaves float64 as it is."""
    from tests.float64 import wide_kept

    with wide_kept():
        yield


@pytest.fixture(params=["float64", "fp32"])
def bound(request, monkeypatch):
    """Runs a test in float64 and in fp32. bound(passes): how far two right results of the tiny model may be apart."""
    import torch

    from tests import tiny, tolerance

    wide = request.param == "float64"
    monkeypatch.setattr(tiny, "DTYPE", torch.float64 if wide else torch.float32)
    return (lambda passes=1: tolerance.EXACT) if wide else tiny.rounding
