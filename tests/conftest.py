"""Skips what this machine cannot run. `tests/tiny.py` holds the tiny model that tests share."""

from __future__ import annotations

import signal

import pytest


def pytest_configure(config):
    """A shell ignores Ctrl-C for what it starts in the background, and what tests start would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # only here: the architecture tests start without it

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
