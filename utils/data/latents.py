"""Encoded clips on disk: a folder of safetensors shards, each with latents and their prompts.

A shard is complete or absent (temporary name, then rename), so a folder may grow while it is read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from utils.data.records import BadRecord, check_finite, check_on_bad

logger = logging.getLogger(__name__)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: rows.contiguous()}, partial, metadata={"prompts": json.dumps(prompts), **facts})
    partial.rename(path)
    return path


def read_facts(path: Path) -> dict[str, str]:
    """Returns a shard's metadata. Errors: BadRecord naming a file that is no shard."""
    try:
        with safe_open(path, "pt") as shard:
            return dict(shard.metadata() or {})
    except SafetensorError as error:
        raise BadRecord(f"{path} is damaged or no shard ({error}); make it again") from error


class LatentFolder:
    """All clips of a folder in memory; `refresh` reads what has come since. on_bad: stop | skip."""

    def __init__(self, folder: str | Path, on_bad: str = "stop"):
        check_on_bad(on_bad)
        self.folder, self.on_bad = Path(folder), on_bad
        self.latents: list[torch.Tensor] = []
        self.prompts: list[str] = []
        self._seen: set[str] = set()
        self.refresh()
        if not self.latents:
            raise ValueError(f"{self.folder} holds no shard_*.safetensors; make some with scripts/encode_latents.py")

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        """Returns (latents [F, C, h, w], prompt)."""
        return self.latents[index], self.prompts[index]

    @property
    def shortest(self) -> int:
        """Latent frames of the shortest clip."""
        return min(map(len, self.latents))

    def refresh(self) -> None:
        """Reads new shards, in the order of their names.

        Errors: ValueError naming a shard that cannot be read or a clip that is not finite, unless they are skipped.
        """
        for path in sorted(self.folder.glob("shard_*.safetensors")):
            if path.name in self._seen:
                continue
            self._seen.add(path.name)
            for latents, prompt in self._whole(path):
                self.latents.append(latents)
                self.prompts.append(prompt)

    def _whole(self, path: Path) -> list[tuple[torch.Tensor, str]]:
        """Returns the usable clips of one shard."""
        kept = []
        try:
            rows = list(zip(*_read_shard(path), strict=True))
        except BadRecord as error:
            self._judge(error)
            return []
        for number, (latents, prompt) in enumerate(rows):
            try:
                kept.append((check_finite(latents, f"{path}, clip {number},"), prompt))
            except BadRecord as error:
                self._judge(error)
        return kept

    def _judge(self, error: BadRecord) -> None:
        """Raises the error, or names what is skipped."""
        if self.on_bad == "stop":
            raise BadRecord(f"{error}, or write on_bad: skip") from error
        logger.warning("skipped: %s", error)


def _read_shard(path: Path) -> tuple[torch.Tensor, list[str]]:
    """Returns (latents [N, F, C, h, w], prompts). Errors: BadRecord naming the file."""
    try:
        with safe_open(path, "pt") as shard:
            latents = shard.get_tensor("latents")
            prompts = json.loads(shard.metadata()["prompts"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadRecord(f"{path} is damaged or no latent shard ({error}); encode it again") from error
    if len(prompts) != len(latents):
        raise BadRecord(f"{path} holds {len(latents)} clips and {len(prompts)} prompts; encode it again")
    return latents, prompts
