"""Declares the bounds of a number next to its type, in a configuration. Imports nothing but the standard library."""

from __future__ import annotations

import dataclasses
from typing import Any


def bounded(default: Any, least: float, most: float, or_zero: bool = False) -> Any:
    """Returns a dataclass field whose number, or each of whose numbers, lies in [least, most]; or_zero: or is 0.

    The bounds are metadata, which `utils.config` reads. A field without bounds still takes no NaN, and no infinity.
    """
    return dataclasses.field(default=default, metadata={"bounds": (least, most, or_zero)})
