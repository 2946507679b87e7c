"""Command lines of the doors: flags of the ancestors that have another name here, and the nearest to an unknown one."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence


def read_flags(
    parser: argparse.ArgumentParser, arguments: Sequence[str], renamed: Mapping[str, str], otherwise: str
) -> argparse.Namespace:
    """Returns the flags; positional arguments (`key=value`) may stand between them.

    renamed: a flag that is refused -> what to use instead. otherwise: the advice where no flag is near.
    Errors: those of argparse, which ends the program with status 2.
    """
    for argument in arguments:
        name = argument.split("=")[0]
        if name in renamed:
            parser.error(f"{name} is not a flag here; use {renamed[name]}")
    flags, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        name = unknown[0].split("=")[0]
        near = difflib.get_close_matches(name, [*re.findall(r"--[\w-]+", parser.format_usage()), "--help"], 1)
        parser.error(f"{name} is not a flag; {f'did you mean {near[0]}?' if near else otherwise}")
    return flags
