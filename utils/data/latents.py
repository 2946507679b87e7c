"""Encoded clips on disk: a folder of safetensors shards, each with latents and their prompts.

A shard is complete or absent (temporary name, then rename), so a folder may grow while it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from utils.atomic import write_tensors
from utils.data.records import BadRecord, Careful, check_finite, open_regular
from utils.json_reader import JsonError, get, parse_json

FLOATS = ("F16", "BF16", "F32", "F64")


def shard_path(folder: str | Path, number: int) -> Path:
    """Returns the file of shard `number`."""
    return Path(folder) / f"shard_{number:05d}.safetensors"


def write_shard(
    folder: str | Path,
    number: int,
    latents_NFCHW: torch.Tensor,
    prompts: list[str],
    files: Sequence[str] = (),
    more: Mapping[str, str] | None = None,
    extra: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Writes shard `number` of a folder; latents keep their dtype.

    files: what each clip was made of, if files. more: of the metadata. extra: other tensors of the clips, row by row.
    """
    facts = {**({"files": json.dumps(list(files))} if files else {}), **(more or {})}
    return save_shard(shard_path(folder, number), {"latents": latents_NFCHW, **(extra or {})}, prompts, facts)


def save_shard(path: Path, rows: Mapping[str, torch.Tensor], prompts: list[str], facts: dict[str, str]) -> Path:
    """Writes tensors of as many rows as prompts as one safetensors file, whole or not at all."""
    for name, tensor in rows.items():
        if len(prompts) != len(tensor):
            raise ValueError(f"{len(prompts)} prompts for {len(tensor)} clips ({name})")
    tensors = {name: tensor.contiguous() for name, tensor in rows.items()}
    write_tensors(path, tensors, {"prompts": json.dumps(prompts), **facts})
    return path


def read_facts(path: Path) -> dict[str, str]:
    """Returns a shard's metadata. Errors: BadRecord naming a file that is not a shard."""
    return read_head(path)[0]


def read_head(path: Path, name: str = "") -> tuple[dict[str, str], list[int], str]:
    """Returns (metadata, shape, dtype) of tensor `name` of a shard; without a name the metadata alone.

    Errors: BadRecord naming a file that is not a shard.
    """
    open_regular(path).close()  # the library would wait for a pipe
    try:
        with safe_open(path, "pt") as shard:
            rows = shard.get_slice(name) if name else None
            facts = dict(shard.metadata() or {})
            return (facts, [], "") if rows is None else (facts, list(rows.get_shape()), str(rows.get_dtype()))
    except (SafetensorError, OSError) as error:
        raise BadRecord(f"{path} is damaged or no shard ({error}); make it again") from error


def read_rows(path: Path, name: str, axes: str) -> tuple[dict[str, str], list[int], list[str]]:
    """Returns (metadata, shape of one row, prompts) of a shard, from its head.

    axes: of its tensor, "N F C h w".
    Errors: BadRecord naming a shard whose tensor has other axes, no numbers, or prompts that are not its rows'.
    """
    facts, shape, dtype = read_head(path, name)
    if len(shape) != len(axes.split()) or 0 in shape[1:]:
        raise BadRecord(f"{path} holds {name} {shape}; they must be [{axes}], none of them 0; make it again")
    if dtype not in FLOATS:
        raise BadRecord(f"{path} holds {name} of type {dtype}; it must be one of {', '.join(FLOATS)}; make it again")
    try:
        prompts = parse_json(get(facts, "prompts", str, f"{path}, its metadata"), f"{path}, its prompts", list)
    except JsonError as error:
        raise BadRecord(f"{error}; make it again") from error
    if len(prompts) != shape[0] or not all(isinstance(prompt, str) for prompt in prompts):
        raise BadRecord(f"{path} holds {shape[0]} rows and {len(prompts)} prompts, or one that is no text; remake it")
    return facts, shape[1:], prompts


class LatentFolder:
    """The clips of a folder: `clips[i] -> (latents [F, C, h, w], prompt)`; `refresh` enters what has come since.

    Heads are read once, a clip when it is asked for. on_bad: stop | skip.
    """

    def __init__(self, folder: str | Path, on_bad: str = "stop"):
        self.folder, self._careful = Path(folder), Careful(on_bad, folder)
        self.prompts: list[str] = []
        self.size: list[int] = []  # C, h, w
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
        _, (frames, *size), prompts = read_rows(path, "latents", "N F C h w")
        if self.size not in ([], size):
            raise BadRecord(
                f"{path} holds latents [C, h, w] of {size}, the shards before it {self.size}; keep one size in a folder"
            )
        self.size = size
        self._rows += [(path, row, frames) for row in range(len(prompts))]
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
