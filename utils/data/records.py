"""Bad records: named, and skipped or a reason to stop, as configured."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
ON_BAD = ("stop", "skip")


class BadRecord(ValueError):
    """One record cannot be used; the message names it and says what is wrong."""


def check_on_bad(on_bad: str) -> None:
    """Raises ValueError unless `on_bad` is stop or skip."""
    if on_bad not in ON_BAD:
        raise ValueError(f"on_bad is {on_bad!r}; write stop (name the record and end) or skip (name it and go on)")


def open_regular(path: str | Path) -> BinaryIO:
    """Returns a regular file, open to read.

    Errors: BadRecord naming what is missing, unreadable, or something else: a pipe would be waited for without end, a
    device be read without end.
    """
    try:
        file = open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
    except FileNotFoundError as error:
        raise BadRecord(f"{path} is not a file; check the path") from error
    except IsADirectoryError as error:
        raise BadRecord(f"{path} is a folder; give a file") from error
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        raise BadRecord(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise BadRecord(f"{path} is not a regular file (a pipe, a device, a socket); give a file")
    return file


def check_finite(tensor: torch.Tensor, where: str) -> torch.Tensor:
    """Returns the tensor. Errors: BadRecord if it holds NaN or infinity."""
    if not bool(tensor.isfinite().all()):
        raise BadRecord(f"{where} holds NaN or infinity; make it again")
    return tensor


class Careful:
    """Reads records by number. With `skip` the next whole record stands in for a bad one, so that what a number
    means depends on the data alone and a resumed run sees the same."""

    def __init__(self, on_bad: str, where: str | Path):
        check_on_bad(on_bad)
        self.on_bad, self.where = on_bad, where
        self.bad: set[int] = set()

    def read(self, number: int, count: int, read: Callable):
        """Returns read(number), or that of the next whole record, going round.

        Errors: BadRecord under `stop`; ValueError if no record is whole.
        """
        for shift in range(count):
            at = (number + shift) % count
            if at in self.bad:
                continue
            try:
                return read(at)
            except BadRecord as error:
                self._judge(error)
                self.bad.add(at)
        raise ValueError(f"{self.where} holds no whole record; make it again")

    def attempt(self, call: Callable) -> None:
        """Calls; a bad record is named and passed over with `skip`. Errors: BadRecord under `stop`."""
        try:
            call()
        except BadRecord as error:
            self._judge(error)

    def _judge(self, error: BadRecord) -> None:
        if self.on_bad == "stop":
            raise BadRecord(f"{error}, or write on_bad: skip") from error
        logger.warning("skipped: %s", error)
