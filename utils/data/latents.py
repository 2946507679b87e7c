"""Encoded clips on disk: a folder of safetensors shards, each with latents and their prompts.

A shard is complete or absent (temporary name, then rename), so a folder may grow while it is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from utils.atomic import write_tensors
from utils.data.records import BadRecord, Careful, check_finite


def shard_path(folder: str | Path, number: int) -> Path:
    """Returns the file of shard `number`."""
    return Path(folder) / f"shard_{number:05d}.safetensors"


def write_shard(
    folder: str | Path, number: int, latents_NFCHW: torch.Tensor, prompts: list[str], files: Sequence[str] = ()
) -> Path:
    """Writes shard `number` of a folder; latents keep their dtype. files: what each clip was made of, if files."""
    facts = {"files": json.dumps(list(files))} if files else {}
    return save_shard(shard_path(folder, number), "latents", latents_NFCHW, prompts, facts)


def save_shard(path: Path, name: str, rows: torch.Tensor, prompts: list[str], facts: dict[str, str]) -> Path:
    """Writes rows and prompts as one safetensors file, whole or not at all."""
    if len(prompts) != len(rows):
        raise ValueError(f"{len(prompts)} prompts for {len(rows)} clips")
    write_tensors(path, {name: rows.contiguous()}, {"prompts": json.dumps(prompts), **facts})
    return path


def read_facts(path: Path) -> dict[str, str]:
    """Returns a shard's metadata. Errors: BadRecord naming a file that is not a shard."""
    try:
        with safe_open(path, "pt") as shard:
            return dict(shard.metadata() or {})
    except SafetensorError as error:
        raise BadRecord(f"{path} is damaged or no shard ({error}); make it again") from error


class LatentFolder:
    """The clips of a folder: `clips[i] -> (latents [F, C, h, w], prompt)`; `refresh` enters what has come since.

    Heads are read once, a clip when it is asked for. on_bad: stop | skip.
    """

    def __init__(self, folder: str | Path, on_bad: str = "stop"):
        self.folder, self._careful = Path(folder), Careful(on_bad, folder)
        self.prompts: list[str] = []
        self._rows: list[tuple[Path, int, int]] = []  # shard, row, frames
        self._seen: set[str] = set()
        self.refresh()
        if not self._rows:
            raise ValueError(f"{self.folder} holds no shard_*.safetensors; make some with scripts/encode_latents.py")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        """Returns (latents [F, C, h, w], prompt)."""
        return self._careful.read(index, len(self), self._read)

    @property
    def shortest(self) -> int:
        """Latent frames of the shortest clip."""
        return min(frames for _, _, frames in self._rows)

    def refresh(self) -> None:
        """Enters new shards, in the order of their names.

        Errors: BadRecord naming a shard that is none, unless it is skipped.
        """
        for path in sorted(self.folder.glob("shard_*.safetensors")):
            if path.name not in self._seen:
                self._seen.add(path.name)
                self._careful.attempt(lambda path=path: self._enter(path))

    def _enter(self, path: Path) -> None:
        """Notes the rows of a shard; only its head is read."""
        try:
            with safe_open(path, "pt") as shard:
                count, frames, *_ = shard.get_slice("latents").get_shape()
                prompts = json.loads(shard.metadata()["prompts"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise BadRecord(f"{path} is damaged or no latent shard ({error}); encode it again") from error
        if len(prompts) != count:
            raise BadRecord(f"{path} holds {count} clips and {len(prompts)} prompts; encode it again")
        self._rows += [(path, row, frames) for row in range(count)]
        self.prompts += prompts

    def _read(self, index: int) -> tuple[torch.Tensor, str]:
        path, row, _ = self._rows[index]
        return check_finite(read_row(path, "latents", row), f"{path}, clip {row},"), self.prompts[index]


def read_row(path: Path, name: str, row: int) -> torch.Tensor:
    """Returns one row of a shard's tensor. Errors: BadRecord naming it."""
    try:
        with safe_open(path, "pt") as shard:
            return shard.get_slice(name)[row]
    except (SafetensorError, OSError) as error:
        raise BadRecord(f"{path}, row {row}, cannot be read ({error}); make it again") from error
