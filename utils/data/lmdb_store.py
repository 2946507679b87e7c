"""LMDB in the layout of Self-Forcing and CausVid: one environment, or one in each folder `shard_<k>`.

Keys of an environment: `latents_<i>_data` (fp16 bytes in C order), `prompts_<i>_data` (utf-8), `latents_shape` and
`prompts_shape` (numbers with spaces, the count first). A row is a trajectory [T, F, C, h, w] or a clean clip
[F, C, h, w]. We add `sigmas` (JSON), the noise levels of the states; their readers do not look at it.
Source: Self-Forcing, utils/lmdb.py, scripts/create_lmdb_iterative.py, scripts/create_lmdb_14b_shards.py.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from utils.atomic import remove_tree
from utils.claims import claimed
from utils.data.lmdb_file import LmdbFile
from utils.data.records import BadRecord, Careful, check_finite
from utils.json_reader import parse_json

FIRST_MAP_BYTES = 1 << 26  # an environment's limit; doubled whenever it is reached


def write_lmdb(
    path: str | Path, rows: Iterable[tuple[torch.Tensor, str]], num_shards: int = 0, sigmas: Sequence[float] = ()
) -> int:
    """Writes (latents, prompt) rows and returns their number; the folder appears whole or not at all.

    num_shards: 0 = one environment, else row i goes to `shard_<i mod num_shards>`.
    Errors: ValueError for a path that exists, no rows, rows of several shapes, fewer rows than shards.
    """
    path = Path(path)
    with claimed([path]) as mine:
        if not mine:
            raise ValueError(f"another run is writing {path}; wait for it, or write another name")
        if path.exists():
            raise ValueError(f"{path} exists; remove it or write another name")
        return _write(path, rows, num_shards, sigmas)


def _write(path: Path, rows: Iterable[tuple[torch.Tensor, str]], num_shards: int, sigmas: Sequence[float]) -> int:
    partial = path.with_name(f"{path.name}.partial")
    remove_tree(partial)
    folders = [partial / f"shard_{k}" for k in range(num_shards)] or [partial]
    stores, shape, count = [_Writer(folder) for folder in folders], None, 0
    try:
        for latents, prompt in rows:
            if shape not in (None, tuple(latents.shape)):
                raise ValueError(f"row {count} is {list(latents.shape)}, those before it are {list(shape)}")
            shape = tuple(latents.shape)
            stores[count % len(stores)].add(latents, prompt)
            count += 1
        if count < len(stores):
            raise ValueError(f"{count} rows cannot fill {len(stores)} LMDB environment(s)")
        for store in stores:
            store.finish(shape, sigmas)
    finally:
        for store in stores:
            store.env.close()
    partial.rename(path)
    return count


class _Writer:
    """One environment that is being filled."""

    def __init__(self, folder: Path):
        import lmdb

        folder.mkdir(parents=True)
        self.env, self.count, self._full = lmdb.open(str(folder), FIRST_MAP_BYTES, mode=0o777), 0, lmdb.MapFullError

    def add(self, latents: torch.Tensor, prompt: str) -> None:
        data = latents.detach().half().cpu().contiguous().numpy().tobytes()
        self._put({f"latents_{self.count}_data": data, f"prompts_{self.count}_data": prompt.encode("utf-8")})
        self.count += 1

    def finish(self, shape: tuple[int, ...], sigmas: Sequence[float]) -> None:
        facts = {"latents_shape": " ".join(map(str, (self.count, *shape))), "prompts_shape": str(self.count)}
        if sigmas:
            facts["sigmas"] = json.dumps([float(s) for s in sigmas])
        self._put({name: text.encode() for name, text in facts.items()})

    def _put(self, values: dict[str, bytes]) -> None:
        while True:
            try:
                with self.env.begin(write=True) as transaction:
                    for key, value in values.items():
                        transaction.put(key.encode(), value)
                return
            except self._full:
                self.env.set_mapsize(2 * self.env.info()["map_size"])


class LmdbPairs:
    """The rows of an LMDB: `store[i] -> (trajectory [T, F, C, h, w] fp16, prompt)`; clean clips have T = 1.

    on_bad: stop | skip. Errors: ValueError for a folder that is not such an LMDB or holds two shapes.
    """

    def __init__(self, path: str | Path, on_bad: str = "stop"):
        self.path, self._careful = Path(path), Careful(on_bad, path)
        folders = [self.path] if (self.path / "data.mdb").exists() else sorted(self.path.glob("shard_*"), key=_number)
        if not folders:
            raise ValueError(f"{self.path} holds neither data.mdb nor folders shard_<k> with one; check the path")
        self.shape: tuple[int, ...] = ()
        self.sigmas: tuple[float, ...] | None = None
        self._shards: list[tuple[int, LmdbFile, Path]] = []  # number of its first row, file, folder
        self._count = 0
        for folder in folders:
            self._careful.attempt(lambda folder=folder: self._enter(folder))
        if not self._count:
            raise ValueError(f"{self.path} holds no rows; write it again")

    def __len__(self) -> int:
        return self._count

    def _enter(self, folder: Path) -> None:
        """Notes the rows of an environment; only its head is read."""
        shard = LmdbFile(folder)
        count, *shape = self._head(shard, folder)
        shape = tuple(shape) if len(shape) == 5 else (1, *shape)
        if self.shape not in ((), shape):
            raise ValueError(f"{folder} holds rows {list(shape)}, the shards before it {list(self.shape)}")
        self.shape = shape
        self._shards.append((self._count, shard, folder))
        self._count += count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        """Returns (trajectory [T, F, C, h, w], prompt)."""
        return self._careful.read(index, len(self), self._read)

    def _head(self, shard, folder: Path) -> list[int]:
        """Returns [count, *row shape] and keeps the sigmas."""
        shape, sigmas = shard.get(b"latents_shape"), shard.get(b"sigmas")
        numbers = (shape or b"").decode("ascii", "replace").split()
        if len(numbers) not in (5, 6) or not all(n.isascii() and n.isdecimal() and 0 < len(n) < 19 for n in numbers):
            raise ValueError(f"{folder} has the key latents_shape {shape!r:.80}; it must be N [T] F C h w")
        count, *row = map(int, numbers)
        if 2 * count > shard.entries:  # each row has two keys
            raise ValueError(f"{folder} says it has {count:,} rows and holds {shard.entries:,} keys; copy it again")
        if 2 * math.prod(row) > shard.size or 0 in row:
            raise ValueError(f"{folder} says that its rows are {row}, which its {shard.size:,} bytes cannot be")
        if sigmas is not None:
            levels = tuple(read_sigmas(sigmas, f"{folder}, key sigmas"))
            if self.sigmas not in (None, levels):
                raise ValueError(f"{folder} holds states at {levels}, the shards before it at {self.sigmas}")
            self.sigmas = levels
        return [count, *row]

    def _read(self, index: int) -> tuple[torch.Tensor, str]:
        first, shard, folder = self._shards[bisect_right(self._shards, index, key=lambda s: s[0]) - 1]
        row = index - first
        data, prompt = (shard.get(f"{name}_{row}_data".encode()) for name in ("latents", "prompts"))
        where, need = f"{folder}, row {row},", 2 * math.prod(self.shape)
        if data is None or prompt is None or len(data) != need:
            found = "nothing" if data is None else f"{len(data)} bytes"
            raise BadRecord(f"{where} holds {found} of {need} and {'no' if prompt is None else 'a'} prompt; remake it")
        try:
            text = prompt.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRecord(f"{where} has a prompt that is not UTF-8 ({error.reason}); remake it") from error
        values = torch.from_numpy(np.frombuffer(data, np.float16).reshape(self.shape).copy())
        return check_finite(values, where), text


class LmdbClips(LmdbPairs):
    """The clean clips of an LMDB: the last state of each row, [F, C, h, w]."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        """Returns (latents [F, C, h, w], prompt)."""
        trajectory, prompt = super().__getitem__(index)
        return trajectory[-1], prompt

    @property
    def shortest(self) -> int:
        """Latent frames of a clip; all have as many."""
        return self.shape[1]

    def refresh(self) -> None:
        """Does nothing: an LMDB is written once."""


def _number(folder: Path) -> int:
    tail = folder.name.removeprefix("shard_")
    if not tail.isdecimal():
        raise ValueError(f"{folder} is not a shard of an LMDB; their names are shard_0, shard_1, ...")
    return int(tail)


def read_sigmas(text: str | bytes, where: str) -> list[float]:
    """Returns recorded noise levels. Errors: ValueError starting with `where`."""
    sigmas = parse_json(text, where, list)
    if not all(isinstance(s, float | int) and not isinstance(s, bool) and 0 <= s <= 1 for s in sigmas):
        raise ValueError(f"{where} holds {sigmas!r:.80}; they must be numbers from 0 to 1")
    return [float(s) for s in sigmas]
