"""Encoded clips on disk: a folder of safetensors shards, each with latents and their prompts.

A shard is complete or absent (temporary name, then rename), so a folder may grow while it is read.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


def write_shard(folder: str | Path, number: int, latents_NFCHW: torch.Tensor, prompts: list[str]) -> Path:
    """Writes shard `number` of a folder; latents keep their dtype."""
    if len(prompts) != len(latents_NFCHW):
        raise ValueError(f"{len(prompts)} prompts for {len(latents_NFCHW)} clips")
    path = Path(folder) / f"shard_{number:05d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({"latents": latents_NFCHW.contiguous()}, partial, metadata={"prompts": json.dumps(prompts)})
    partial.rename(path)
    return path


class LatentFolder:
    """All clips of a folder in memory; `refresh` reads what has come since."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
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

    def refresh(self) -> None:
        """Reads new shards, in the order of their names.

        Errors: ValueError naming a shard that cannot be read.
        """
        for path in sorted(self.folder.glob("shard_*.safetensors")):
            if path.name in self._seen:
                continue
            try:
                with safe_open(path, "pt") as shard:
                    latents = shard.get_tensor("latents")
                    prompts = json.loads(shard.metadata()["prompts"])
            except (SafetensorError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is damaged or no latent shard ({error}); encode it again") from error
            self._seen.add(path.name)
            self.latents += list(latents)
            self.prompts += prompts
