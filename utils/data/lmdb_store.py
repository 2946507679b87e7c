"""LMDB in the layout of Self-Forcing and CausVid: one environment, or one in each folder `shard_<k>`.

Keys of an environment: `latents_<i>_data` (fp16 bytes in C order), `prompts_<i>_data` (utf-8), `latents_shape` and
`prompts_shape` (numbers with spaces, the count first). A row is a trajectory [T, F, C, h, w] or a clean clip
[F, C, h, w]. We add `sigmas` (JSON), the noise levels of the states; their readers do not look at it.
Source: Self-Forcing, utils/lmdb.py, scripts/create_lmdb_iterative.py, scripts/create_lmdb_14b_shards.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from utils.atomic import remove_tree
from utils.data.records import BadRecord, Careful, check_finite

FIRST_MAP_BYTES = 1 << 26  # an environment's limit; doubled whenever it is reached


def write_lmdb(
    path: str | Path, rows: Iterable[tuple[torch.Tensor, str]], num_shards: int = 0, sigmas: Sequence[float] = ()
) -> int:
    """Writes (latents, prompt) rows and returns their number; the folder appears whole or not at all.

    num_shards: 0 = one environment, else row i goes to `shard_<i mod num_shards>`.
    Errors: ValueError for a path that exists, no rows, rows of several shapes, fewer rows than shards.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} exists; remove it or write another name")
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
        self.shape, self.sigmas, self._rows, self._shards = None, None, [], [_open(f) for f in folders]
        for shard, folder in zip(self._shards, folders, strict=True):
            count, *shape = self._head(shard, folder)
            shape = tuple(shape) if len(shape) == 5 else (1, *shape)
            if self.shape not in (None, shape):
                raise ValueError(f"{folder} holds rows {list(shape)}, the shards before it {list(self.shape)}")
            self.shape = shape
            self._rows += [(shard, row, folder) for row in range(count)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        """Returns (trajectory [T, F, C, h, w], prompt)."""
        return self._careful.read(index, len(self), self._read)

    def _head(self, shard, folder: Path) -> list[int]:
        """Returns [count, *row shape] and keeps the sigmas."""
        with shard.begin() as transaction:
            shape, sigmas = transaction.get(b"latents_shape"), transaction.get(b"sigmas")
        numbers = (shape or b"").decode("ascii", "replace").split()
        if len(numbers) not in (5, 6) or not all(n.isdecimal() for n in numbers):
            raise ValueError(f"{folder} has the key latents_shape {shape!r}; it must be N [T] F C h w")
        self.sigmas = tuple(json.loads(sigmas)) if sigmas else None
        return [int(n) for n in numbers]

    def _read(self, index: int) -> tuple[torch.Tensor, str]:
        shard, row, folder = self._rows[index]
        with shard.begin() as transaction:
            data, prompt = (transaction.get(f"{name}_{row}_data".encode()) for name in ("latents", "prompts"))
        where, need = f"{folder}, row {row},", 2 * int(np.prod(self.shape))
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


def _open(folder: Path):
    """Returns the environment of a folder, read only. Errors: ValueError naming a folder that is none."""
    import lmdb

    try:
        return lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise ValueError(f"{folder} is not an LMDB ({error}); copy or write it again") from error
