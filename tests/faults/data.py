"""Damaged training data: shards of latents, LMDBs, prompt files of a training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.faults.inputs import Inputs, copied
from tests.faults.judge import DONE, EITHER, REFUSED, Attempt, Fault
from tests.faults.mutate import damaged_bytes


def faults(inputs: Inputs) -> Iterator[Fault]:
    """Yields folders of latents as --trainer.source.path, and stores to be turned into others."""
    for seed in range(12):
        name = f"{damaged_bytes(b'abc' * 99, seed)[0]} {seed}"
        yield Fault("shard", name, "train.py", partial(shard_bytes, inputs, seed, False))
        yield Fault("shard to lmdb", name, "scripts/encode_latents.py", partial(shard_bytes, inputs, seed, True))
        yield Fault("lmdb", name, "train.py", partial(lmdb_bytes, inputs, seed))
    for name, (change, expect) in SHARDS.items():
        yield Fault("shard", name, "train.py", partial(shard_tensors, inputs, change, expect))
    for name, make in FOLDERS.items():
        yield Fault("folder of latents", name, "train.py", partial(latents_folder, inputs, make))


def shard_bytes(inputs: Inputs, seed: int, to_lmdb: bool, folder: Path) -> Attempt:
    """One damaged shard."""
    latents = copied(inputs.latents, folder / "latents")
    shard = next(latents.glob("*.safetensors"))
    shard.write_bytes(damaged_bytes(shard.read_bytes(), seed)[1])
    names = (shard.name, str(latents))
    if to_lmdb:
        return Attempt(
            ["lmdb", "--input", str(latents), "--output", str(folder / "out")], names, EITHER, folder / "out"
        )
    return Attempt(inputs.train(folder, f"trainer.source.path={latents}"), names, EITHER, folder / "run")


def lmdb_bytes(inputs: Inputs, seed: int, folder: Path) -> Attempt:
    """A damaged LMDB, which is mapped into memory: what is cut must not end the process."""
    store = copied(inputs.lmdb, folder / "lmdb")
    data = next(store.rglob("data.mdb"))
    data.write_bytes(damaged_bytes(data.read_bytes(), seed)[1])
    return Attempt(inputs.train(folder, f"trainer.source.path={store}"), (str(store),), EITHER, folder / "run")


def shard_tensors(inputs: Inputs, change: Callable[[dict], tuple[dict, dict]], expect: str, folder: Path) -> Attempt:
    """A second shard with other tensors or another header."""
    from safetensors import safe_open

    latents = copied(inputs.latents, folder / "latents")
    shard = next(latents.glob("*.safetensors"))
    with safe_open(shard, "pt") as file:
        header = file.metadata()
    state, header = change(load_file(shard), header)
    second = latents / "shard_00001.safetensors"
    save_file(state, second, metadata=header)
    names = (second.name, str(latents))
    return Attempt(inputs.train(folder, f"trainer.source.path={latents}"), names, expect, folder / "run")


def latents_folder(inputs: Inputs, make: Callable[[Path], None], folder: Path) -> Attempt:
    latents = folder / "latents"
    make(latents)
    return Attempt(inputs.train(folder, f"trainer.source.path={latents}"), (str(latents),), REFUSED, folder / "run")


def _tensors(turn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict, dict], tuple[dict, dict]]:
    return lambda state, header: ({name: turn(value).contiguous() for name, value in state.items()}, header)


def _header(**changes) -> Callable[[dict, dict], tuple[dict, dict]]:
    return lambda state, header: (state, {**header, **changes})


SHARDS: dict[str, tuple[Callable, str]] = {
    "as the first": (_tensors(lambda x: x), DONE),
    "other frames": (_tensors(lambda x: x[:, :2]), EITHER),
    "other size": (_tensors(lambda x: x[..., :2, :2]), REFUSED),
    "other channels": (_tensors(lambda x: x[:, :, :8]), REFUSED),
    "fewer axes": (_tensors(lambda x: x.flatten(2)), REFUSED),
    "integers": (_tensors(lambda x: x.to(torch.int8)), REFUSED),
    "not finite": (_tensors(lambda x: x * float("inf")), EITHER),
    "no clips": (_tensors(lambda x: x[:0]), EITHER),
    "prompts a number": (_header(prompts="5"), REFUSED),
    "prompts of another count": (_header(prompts='["a"]'), REFUSED),
    "prompts nested": (_header(prompts="[" * 90_000), REFUSED),
    "no header": (lambda state, header: (state, None), REFUSED),
    "other names": (lambda state, header: ({"x": torch.ones(2, 3)}, header), REFUSED),
}
FOLDERS: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.mkdir(),
    "a file": lambda path: path.write_bytes(b"x") and None,
    "a FIFO": lambda path: os.mkfifo(path),
    "a shard that is a FIFO": lambda path: (path.mkdir(), os.mkfifo(path / "shard_00000.safetensors")) and None,
    "a shard that is a folder": lambda path: (path / "shard_00000.safetensors").mkdir(parents=True),
    "a shard that is a broken link": lambda path: (
        path.mkdir(), (path / "shard_00000.safetensors").symlink_to("nowhere")) and None,
    "an endless LMDB": lambda path: (path.mkdir(), (path / "data.mdb").symlink_to("/dev/zero")) and None,
}  # fmt: skip
