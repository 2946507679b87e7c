"""Tensors of a state through torch.distributed.checkpoint (DCP): any sharding in, any other out, and no pickle.

DCP pickles two things: where each tensor lies (`.metadata`), and every value that is not a tensor. Here the
former is `tensors.json`, and the latter stay in the tree that `split` returns, which is plain JSON.
The tensors themselves are torch archives that DCP reads with weights_only.
"""

from __future__ import annotations

import json
import re
import warnings
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, async_save
from torch.distributed.checkpoint import load as load_state
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from utils.atomic import sync_file
from utils.json_reader import read_json
from utils.parallel import ranks

INDEX = "tensors.json"
TENSOR, TUPLE, OWN = "<tensor>", "<tuple>", "<own>"  # keys of the tree that stand for what JSON has no word for
OWNER = re.compile(r"@(\d+)$")  # end of the name of a tensor that one rank alone has, with that rank
FLAT = {"flatten_state_dict": False, "flatten_sharded_tensors": False}

warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # a single process is not a mistake


@dataclass
class Own:
    """A tensor of this rank alone: another one on each rank, of the same name. Read back by as many ranks only."""

    tensor: torch.Tensor


def split(state, name: str = "") -> tuple[object, dict[str, torch.Tensor]]:
    """Returns (tree, name -> tensor) of nested dicts, lists and tuples; `join` puts them together again.

    The tree is plain JSON, and the same on all ranks. Errors: ValueError for a value that is neither a tensor
    (sharded, or equal on all ranks, or `Own`) nor a number, text or None.
    """
    if isinstance(state, torch.Tensor):
        return {TENSOR: name}, {name: state.detach()}
    if isinstance(state, Own):
        return {OWN: name}, {_own_name(name): state.tensor.detach()}
    if state is None or isinstance(state, bool | int | float | str):
        return state, {}
    if isinstance(state, dict) and all(isinstance(key, str) and key not in (TENSOR, TUPLE, OWN) for key in state):
        parts = {key: split(value, f"{name}/{key}" if name else key) for key, value in state.items()}
        return {key: tree for key, (tree, _) in parts.items()}, _together(parts.values())
    if isinstance(state, list | tuple):
        items = [split(value, f"{name}/{i}" if name else str(i)) for i, value in enumerate(state)]
        trees = [tree for tree, _ in items]
        return {TUPLE: trees} if isinstance(state, tuple) else trees, _together(items)
    raise ValueError(
        f"{name or 'the state'} is {type(state).__name__}; a checkpoint holds tensors, numbers, text, None, lists, "
        "tuples and dicts of these with text as keys"
    )


def _together(parts) -> dict[str, torch.Tensor]:
    return {name: tensor for _, tensors in parts for name, tensor in tensors.items()}


def join(tree, tensors: dict[str, torch.Tensor]):
    """Returns the state of which `split` made this tree, with the tensors of these names in their places.

    An `Own` one is None where this rank's is not among them.
    """
    if isinstance(tree, list):
        return [join(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if TENSOR in tree:
        return tensors[tree[TENSOR]]
    if OWN in tree:
        return tensors.get(_own_name(tree[OWN]))
    if TUPLE in tree:
        return tuple(join(item, tensors) for item in tree[TUPLE])
    return {key: join(value, tensors) for key, value in tree.items()}


def is_own(name: str) -> bool:
    """True if the tensor of this name is one rank's alone."""
    return OWNER.search(name) is not None


def empty_own(folder: Path) -> dict[str, torch.Tensor]:
    """Returns room for the tensors in the folder that are this rank's alone."""
    rank = str(ranks.rank())
    found = {
        name: entry for name, entry in read_index(folder).items() if is_own(name) and OWNER.search(name)[1] == rank
    }
    return {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in found.items()}


def _own_name(name: str) -> str:
    return f"{name}@{ranks.rank()}"


def start_save(tensors: dict[str, torch.Tensor], folder: Path, group) -> Future:
    """Copies the tensors, then writes them into `folder` in a thread; all ranks call this together.

    group: one that nothing else uses until the future is done. The future raises CheckpointException on all
    ranks if one of them could not write.
    """
    writer, planner = _Writer(folder), DefaultSavePlanner(**FLAT)
    alone = not ranks.is_initialised()
    return async_save(tensors, storage_writer=writer, planner=planner, process_group=group, no_dist=alone)


def load(tensors: dict[str, torch.Tensor], folder: Path, group) -> None:
    """Fills the tensors, whole or sharded, from those of their names; all ranks call this together.

    Errors: ValueError that names the tensors which the folder lacks or holds in another shape or dtype; OSError.
    """
    saved = read_index(folder)
    for name, tensor in tensors.items():
        if name not in saved:
            raise ValueError(f"{name} is not in it")
        properties = saved[name].properties
        if (saved[name].size, properties.dtype) != (tensor.shape, tensor.dtype):
            ours, theirs = f"{list(tensor.shape)} {tensor.dtype}", f"{list(saved[name].size)} {properties.dtype}"
            raise ValueError(f"{name} is {theirs} in it, {ours} here")
    alone = not ranks.is_initialised()
    reader, planner = _Reader(folder), DefaultLoadPlanner(**FLAT)
    try:
        load_state(dict(tensors), storage_reader=reader, planner=planner, process_group=group, no_dist=alone)
    except CheckpointException as error:
        raise OSError(f"{folder} cannot be read ({reason(error)})") from error


def optimizer_state(module: torch.nn.Module, parts: list[torch.optim.Optimizer]) -> dict[str, dict]:
    """Returns what the optimisers know of each weight, by the weight's name; one that never stepped starts with 0."""
    return get_optimizer_state_dict(module, parts)["state"]


def load_optimizer_state(module: torch.nn.Module, parts: list[torch.optim.Optimizer], state: dict[str, dict]) -> None:
    """Gives the optimisers what `optimizer_state` returned; rates and betas stay their own."""
    options = StateDictOptions(strict=False)  # a weight that never had a gradient has no state
    for part in parts:
        own = get_optimizer_state_dict(module, part)
        known = {name: state[name] for group in own["param_groups"] for name in group["params"] if name in state}
        set_optimizer_state_dict(module, part, {**own, "state": known}, options=options)


def reason(error: CheckpointException) -> str:
    """Returns what went wrong on the first rank where something did, in one line."""
    rank, (cause, _) = min(error.failures.items())
    text = (str(cause).splitlines() or [type(cause).__name__])[0]
    return f"{text}, rank {rank}" if rank else text


def read_index(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Returns what DCP knows of each tensor in the folder: its size, its dtype, its parts."""
    return _read(folder).state_dict_metadata


def named_files(folder: Path) -> set[str]:
    """Returns the names of the files that hold the folder's tensors."""
    return {place.relative_path for place in _read(folder).storage_data.values()}


def write_json(path: Path, content) -> None:
    """Writes JSON to the disk; its place has no reader before the folder is renamed."""
    with path.open("wb") as file:
        file.write(json.dumps(content).encode())
        sync_file(file)


@dataclass
class _Place:
    """Where a part of a tensor lies; in bytes. The names are DCP's."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: None = None


class _Writer(FileSystemWriter):
    """Writes the index as JSON where DCP would pickle it."""

    def finish(self, metadata: Metadata, results: list) -> None:
        places = {(r.index.fqn, r.index.offset): r.storage_data for part in results for r in part}
        index = {}
        for name, tensor in metadata.state_dict_metadata.items():
            parts = []
            for chunk in tensor.chunks:
                place = places[name, chunk.offsets]
                at = (place.relative_path, place.offset, place.length)
                parts.append([list(chunk.offsets), list(chunk.sizes), *at])
            dtype = str(tensor.properties.dtype).removeprefix("torch.")
            index[name] = {"dtype": dtype, "size": list(tensor.size), "parts": parts}
        write_json(Path(self.path) / INDEX, index)


class _Reader(FileSystemReader):
    """Reads the index that `_Writer` wrote."""

    def read_metadata(self) -> Metadata:
        return _read(Path(self.path))


def _read(folder: Path) -> Metadata:
    tensors, places = {}, {}
    for name, entry in read_json(folder / INDEX).items():
        chunks = []
        for offsets, sizes, *place in entry["parts"]:
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            places[MetadataIndex(name, torch.Size(offsets))] = _Place(*place)
        properties = TensorProperties(dtype=getattr(torch, entry["dtype"]))
        tensors[name] = TensorStorageMetadata(properties, torch.Size(entry["size"]), chunks)
    return Metadata(tensors, storage_data=places, storage_meta=StorageMeta())
