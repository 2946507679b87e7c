"""Skips what this machine cannot run. `tests/tiny.py` holds the tiny model that tests share."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # only here: the architecture tests start without it

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
