"""Command lines of the doors: flags of the ancestors that have another name here, and the nearest to an unknown one."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

RECIPE = "--config_path"


def read_flags(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    renamed: Mapping[str, str],
    otherwise: str,
    recipes: Path | None = None,
) -> argparse.Namespace:
    """Returns the flags; positional arguments (`key=value`) may stand between them.

    renamed: a flag that is refused -> what to use instead. otherwise: the advice where no flag is near. recipes: the
    folder whose recipes are listed where --config_path is missing.
    Errors: those of argparse, which ends the program with status 2.
    """
    if recipes is not None and not any(word.partition("=")[0] in (RECIPE, "-h", "--help") for word in arguments):
        names = ", ".join(sorted(path.stem for path in recipes.glob("*.yaml")))
        parser.error(f"give {RECIPE}, one of {recipes.parent.name}/{recipes.name}/: {names or 'none is here'}")
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
