"""Saves and resumes a run: a folder per step, complete or absent.

`<run>/checkpoints/step_0000100/` holds `state.pt` and a manifest of its hash; it is written as
`<name>.tmp` and renamed, so a kill at any moment leaves the last complete one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

logger = logging.getLogger(__name__)


@dataclass
class CheckpointConfig:
    """Save every so many steps, keep the last few."""

    every: int = 500
    keep: int = 2

    def check(self):
        if self.every < 1 or self.keep < 1:
            raise ValueError("checkpoint.every and checkpoint.keep must be at least 1")


class Checkpoint:
    """The checkpoints of one run folder."""

    def __init__(self, run: str | Path, config: CheckpointConfig):
        self.folder, self.config = Path(run) / "checkpoints", config

    def save(self, state: dict, step: int) -> Path:
        """Writes the state reached after `step` optimiser steps and prunes older ones.

        Errors: OSError naming the folder (e.g. a full disk); older checkpoints stay.
        """
        final = self.folder / f"step_{step:07d}"
        partial = final.with_suffix(".tmp")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        file = partial / "state.pt"
        _write({"step": step, **state}, file)
        manifest = partial / "manifest.json"
        manifest.write_text(json.dumps({"step": step, "state.pt": _hash(file)}))
        for written in (file, manifest, partial):
            _sync(written)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(self.folder)
        for old in self.complete()[: -self.config.keep]:
            shutil.rmtree(old)
        return final

    def complete(self) -> list[Path]:
        """Returns the finished checkpoint folders, oldest first."""
        return sorted(p for p in self.folder.glob("step_*") if p.suffix != ".tmp" and (p / "manifest.json").exists())

    def load(self) -> dict | None:
        """Returns the newest state whose hash holds, or None; damaged ones are named and passed over.

        Errors: ValueError if all are damaged.
        """
        folders = self.complete()
        for folder in reversed(folders):
            if _is_whole(folder):
                return torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
            logger.warning("%s is damaged (it is not what its manifest says); trying the one before", folder)
        if folders:
            raise ValueError(f"every checkpoint in {self.folder} is damaged; start anew with --no-auto-resume")
        return None

    def set_aside(self) -> None:
        """Renames what an earlier run left here, so that a run that starts anew neither resumes nor prunes it."""
        set_aside(self.folder)


def set_aside(path: Path) -> None:
    """Renames a file or folder, if it is there, to the first free `<name>.before<n>`."""
    if path.exists():
        number = 1
        while path.with_name(f"{path.name}.before{number}").exists():
            number += 1
        path.rename(path.with_name(f"{path.name}.before{number}"))


def _is_whole(folder: Path) -> bool:
    """True if the folder's state has the hash that its manifest names."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return _hash(folder / "state.pt") == manifest["state.pt"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(state: dict, path: Path) -> None:
    """Writes a torch archive. torch reports a full disk as RuntimeError; the caller gets OSError."""
    try:
        torch.save(state, path)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        message = f"{path.parent} cannot be written ({reason}); earlier checkpoints are kept; free space and resume"
        raise OSError(message) from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Forces a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
