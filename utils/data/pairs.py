"""ODE pairs on disk: a folder of safetensors shards with a teacher's trajectories and their prompts.

A trajectory is read when it is asked for: at full size one takes 21 MB. A shard's metadata hold the noise levels
of the states, so that a training can refuse pairs that its student does not walk.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from utils.data.latents import read_row, read_rows, save_shard, shard_path
from utils.data.lmdb_store import read_sigmas
from utils.data.records import BadRecord, Careful, check_finite


def write_pairs(
    folder: str | Path, number: int, trajectory_NTFCHW: torch.Tensor, prompts: list[str], sigmas: Sequence[float]
) -> Path:
    """Writes shard `number` in fp16. sigmas: the T noise levels, noisiest first, 0 last.

    Errors: ValueError for sigmas that do not fall to 0 or are not T many.
    """
    sigmas = [float(s) for s in sigmas]
    falling = all(a > b for a, b in zip(sigmas[:-1], sigmas[1:], strict=True))
    if len(sigmas) != trajectory_NTFCHW.shape[1] or not falling or sigmas[-1]:
        raise ValueError(f"{trajectory_NTFCHW.shape[1]} states with sigmas {sigmas}; give one each, falling to 0")
    facts = {"sigmas": json.dumps(sigmas)}
    return save_shard(shard_path(folder, number), {"trajectory": trajectory_NTFCHW.half()}, prompts, facts)


class PairFolder:
    """The ODE pairs of a folder: `pairs[i] -> (trajectory [T, F, C, h, w] fp16, prompt)`. on_bad: stop | skip.

    Errors: ValueError for a folder without shards or of two kinds of pairs; BadRecord under `stop`.
    """

    def __init__(self, folder: str | Path, on_bad: str = "stop"):
        self.folder, self._careful = Path(folder), Careful(on_bad, folder)
        self.prompts: list[str] = []
        self.shape, self.sigmas, self._rows = None, None, []
        for path in sorted(self.folder.glob("shard_*.safetensors")):
            self._careful.attempt(lambda path=path: self._enter(path))
        if not self._rows:
            raise ValueError(f"{self.folder} holds no shard_*.safetensors; make some with scripts/make_ode_pairs.py")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        """Returns (trajectory [T, F, C, h, w], prompt)."""
        return self._careful.read(index, len(self), self._read)

    def _enter(self, path: Path) -> None:
        """Notes the rows of a shard; only its head is read."""
        facts, shape, prompts = read_rows(path, "trajectory", "N T F C h w")
        try:
            sigmas = tuple(read_sigmas(facts.get("sigmas", ""), f"{path}, its sigmas"))
        except ValueError as error:
            raise BadRecord(f"{error}; make it again") from error
        if len(sigmas) != shape[0]:
            raise BadRecord(f"{path} holds {shape[0]} states and {len(sigmas)} sigmas; make it again")
        if self.shape not in (None, tuple(shape)) or self.sigmas not in (None, sigmas):
            raise ValueError(
                f"{path} holds pairs {shape} at {sigmas}, the shards before it {list(self.shape)} at "
                f"{self.sigmas}; keep one kind in a folder"
            )
        self.shape, self.sigmas = tuple(shape), sigmas
        self._rows += [(path, row) for row in range(len(prompts))]
        self.prompts += prompts

    def _read(self, index: int) -> tuple[torch.Tensor, str]:
        path, row = self._rows[index]
        return check_finite(read_row(path, "trajectory", row), f"{path}, pair {row},"), self.prompts[index]
