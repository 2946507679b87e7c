"""Damaged and foreign weights, their configurations and indices, through generation, training and conversion."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.faults.inputs import Inputs, copied
from tests.faults.judge import DONE, EITHER, REFUSED, Attempt, Fault
from tests.faults.mutate import damaged_bytes, damaged_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
JSON_OF_A_MODEL = ("transformer/config.json", "vae/config.json", "text_encoder/config.json")
JSON_OF_A_MODEL += ("tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json")


class Marker:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def faults(inputs: Inputs) -> Iterator[Fault]:
    """Yields damages of files, then of configurations, then files of other makers."""
    for seed in range(24):
        name = f"{damaged_bytes(b'abc' * 99, seed)[0]} {seed}"
        yield Fault("safetensors", name, "inference.py", partial(damaged, inputs, inputs.weights / WEIGHTS, seed))
        if seed < 16:
            yield Fault("torch archive", name, "inference.py", partial(damaged, inputs, inputs.archive, seed))
            yield Fault("lora", name, "inference.py", partial(damaged_lora, inputs, seed))
        if seed < 8:
            yield Fault("inspect", name, "scripts/convert_weights.py", partial(inspected, inputs, seed))
    for number, file in enumerate(JSON_OF_A_MODEL):
        for seed in range(number * 100, number * 100 + 10):
            yield Fault("config", f"{file} {seed}", "inference.py", partial(configured, inputs, file, seed))
    for name, make in FILES.items():
        yield Fault("foreign weights", name, "inference.py", partial(foreign, inputs, make))
        yield Fault("converted", name, "scripts/convert_weights.py", partial(converted, inputs, make))
    for name, (change, expect) in STATES.items():
        yield Fault("tensors", name, "inference.py", partial(changed, inputs, change, expect, False))
        yield Fault(
            "tensors converted", name, "scripts/convert_weights.py", partial(changed, inputs, change, expect, True)
        )
    for name, text in INDICES.items():
        yield Fault("index", name, "inference.py", partial(indexed, inputs, text))
    for name in (
        "models/Wan2.1-T2V-1.3B",
        "./nowhere",
        "/nowhere/at/all",
        "checkpoints/a.pt",
        "~/nowhere",
        "~nosuchuser/x",
    ):
        yield Fault("missing model", name, "inference.py", partial(missing, inputs, name))


def damaged(inputs: Inputs, source: Path, seed: int, folder: Path) -> Attempt:
    """A damaged copy of a weight file as --checkpoint_path."""
    path = folder / source.name
    path.write_bytes(damaged_bytes(source.read_bytes(), seed)[1])
    copied(inputs.weights / "config.json", folder / "config.json")
    return Attempt(inputs.generate(folder, "--checkpoint_path", path), (path.name, str(folder)), EITHER, folder / "out")


def damaged_lora(inputs: Inputs, seed: int, folder: Path) -> Attempt:
    path = folder / "lora.safetensors"
    path.write_bytes(damaged_bytes(inputs.lora.read_bytes(), seed)[1])
    arguments = inputs.generate(folder, "--checkpoint_path", inputs.weights, "--lora_path", path)
    return Attempt(arguments, (path.name,), EITHER, folder / "out")


def inspected(inputs: Inputs, seed: int, folder: Path) -> Attempt:
    path = folder / "x.pt"
    path.write_bytes(damaged_bytes(inputs.archive.read_bytes(), seed)[1])
    return Attempt(["inspect", str(path)], (path.name,), EITHER)


def configured(inputs: Inputs, file: str, seed: int, folder: Path) -> Attempt:
    """A model folder with one damaged JSON."""
    model = folder / "model"
    model.mkdir()
    for part in inputs.model.iterdir():
        if part.name == file.partition("/")[0]:
            copied(part.resolve(), model / part.name)
        else:
            (model / part.name).symlink_to(part.resolve())
    text = (model / file).read_text()
    (model / file).write_bytes(damaged_json(text, seed)[1].encode(errors="surrogateescape"))
    names = (file, file.partition("/")[0], Path(file).name)
    return Attempt(inputs.generate(folder, "--model", model), names, EITHER, folder / "out")


def foreign(inputs: Inputs, make: Callable[[Path], Path], folder: Path) -> Attempt:
    """A file of something else as --checkpoint_path."""
    path = make(folder)
    return Attempt(
        inputs.generate(folder, "--checkpoint_path", path), (path.name,), REFUSED, folder / "out", never=folder / "ran"
    )


def converted(inputs: Inputs, make: Callable[[Path], Path], folder: Path) -> Attempt:
    path = make(folder)
    arguments = ["convert", str(path), str(folder / "out/new.safetensors"), "--to", "longtake"]
    return Attempt(arguments, (path.name,), REFUSED, folder / "out", never=folder / "ran")


def changed(inputs: Inputs, change: Callable[[dict], dict], expect: str, convert: bool, folder: Path) -> Attempt:
    """The model's tensors after a change, generated from or converted."""
    path = folder / WEIGHTS
    save_file(change(load_file(inputs.weights / WEIGHTS)), path)
    copied(inputs.weights / "config.json", folder / "config.json")
    if convert:
        arguments = ["convert", str(path), str(folder / "out/new.safetensors"), "--to", "longtake"]
    else:
        arguments = inputs.generate(folder, "--checkpoint_path", path)
    # Values that are not finite show in the pixels only: reading every one of 28 GB would take as long as a video.
    return Attempt(arguments, (path.name, str(folder), "the pixels hold NaN"), expect, folder / "out")


def indexed(inputs: Inputs, text: str, folder: Path) -> Attempt:
    """A folder of shards with a bad index."""
    model = folder / "sharded"
    copied(inputs.weights, model)
    (model / WEIGHTS).rename(model / "diffusion_pytorch_model-00001-of-00001.safetensors")
    (model / f"{WEIGHTS}.index.json").write_text(text)
    return Attempt(inputs.generate(folder, "--checkpoint_path", model), ("sharded",), REFUSED, folder / "out")


def missing(inputs: Inputs, name: str, folder: Path) -> Attempt:
    return Attempt(inputs.generate(folder, "--model", name), (name, "nowhere", "nosuchuser"), REFUSED, folder / "out")


def _file(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def _header(header: bytes, size: int | None = None) -> Callable[[Path], Path]:
    return _file("w.safetensors", struct.pack("<Q", len(header) if size is None else size) + header)


def _pickle(folder: Path) -> Path:
    path = folder / "w.pt"
    path.write_bytes(pickle.dumps({"generator": Marker(folder / "ran")}))
    return path


def _archive_of_code(folder: Path) -> Path:
    path = folder / "w.pt"
    torch.save({"generator": Marker(folder / "ran")}, path)
    return path


def _zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "w.pt", "w") as file:
        file.writestr("readme.txt", "no model")
    return folder / "w.pt"


def _link(target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "w.safetensors").symlink_to(target)
        return folder / "w.safetensors"

    return make


TENSOR = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
FILES: dict[str, Callable[[Path], Path]] = {
    "gguf": _file("w.gguf", b"GGUF" + bytes(200)),
    "gguf called safetensors": _file("w.safetensors", b"GGUF" + bytes(200)),
    "onnx": _file("w.onnx", b"\x08\x07\x12\x07pytorch" + bytes(90)),
    "numpy": _file("w.npy", b"\x93NUMPY\x01\0v\0{'descr': '<f4'}" + bytes(99)),
    "a pointer of git": _file("w.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
    "a page": _file("w.safetensors", b"<html>not found</html>" * 9),
    "an empty file": _file("w.pt", b""),
    "a pickle of code": _pickle,
    "an archive of code": _archive_of_code,
    "a zip": _zip,
    "header of 2^60 bytes": _header(b"{}", 2**60),
    "header of nothing": _header(b"{}"),
    "header no JSON": _header(b"{nothing}"),
    "header a list": _header(b"[1, 2]"),
    "header nested": _header(b'{"__metadata__":' + b"[" * 90_000 + b"}"),
    "unknown type": _header(json.dumps({"a": TENSOR["a"] | {"dtype": "F3"}}).encode() + bytes(8)),
    "offsets outside": _header(json.dumps({"a": TENSOR["a"] | {"data_offsets": [0, 2**62]}}).encode()),
    "shape below zero": _header(json.dumps({"a": TENSOR["a"] | {"shape": [-2]}}).encode()),
    "an endless device": _link("/dev/zero"),
    "a broken link": _link("nowhere"),
}


def _without(*parts: str) -> Callable[[dict], dict]:
    return lambda state: {name: value for name, value in state.items() if not any(part in name for part in parts)}


def _plus(name: str, value: torch.Tensor) -> Callable[[dict], dict]:
    return lambda state: {**state, name: value}


def _all(turn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict], dict]:
    return lambda state: {name: turn(value).contiguous() for name, value in state.items()}


def _one(turn: Callable[[torch.Tensor], torch.Tensor], name: str = "head.head.weight") -> Callable[[dict], dict]:
    return lambda state: {**state, name: turn(state[name]).contiguous()}


def _scaled(state: dict) -> dict:
    """8-bit weights with a scale next to each, as repackaged files have them."""
    new = dict(state)
    for name, value in state.items():
        if name.startswith("blocks.") and name.endswith("attn.q.weight"):
            scale = value.abs().max() / 100
            new[name] = (value / scale).to(torch.float8_e4m3fn)
            new[name.replace(".weight", ".scale_weight")] = scale.reshape(1)
    return new


STATES: dict[str, tuple[Callable[[dict], dict], str]] = {
    "a block missing": (_without("blocks.0."), REFUSED),
    "a bias missing": (_without("blocks.0.self_attn.k.bias"), REFUSED),
    "a tensor more": (_plus("blocks.0.self_attn.z.weight", torch.ones(3, 3)), REFUSED),
    "layers of VACE": (_plus("vace_blocks.0.before_proj.weight", torch.ones(3, 3)), REFUSED),
    "audio layers": (_plus("audio_injector.0.to_q.weight", torch.ones(3, 3)), REFUSED),
    "another shape": (_one(lambda x: x[:, :-1]), REFUSED),
    "not finite": (_one(lambda x: x * float("nan")), EITHER),
    "integers without scale": (_one(lambda x: x.to(torch.int8)), REFUSED),
    "complex": (_one(lambda x: x.to(torch.complex64)), REFUSED),
    "8 bits with scales": (_scaled, EITHER),
    "doubles": (_all(lambda x: x.double()), DONE),
    "half": (_all(lambda x: x.half()), DONE),
    "another prefix": (lambda state: {f"net.{name}": value for name, value in state.items()}, REFUSED),
    "a prefix that we read": (lambda state: {f"model.diffusion_model.{k}": v for k, v in state.items()}, DONE),
}
INDICES = {
    "an object of nothing": "{}",
    "a list": "[]",
    "no JSON": "{",
    "a missing shard": '{"weight_map": {"a": "nowhere.safetensors"}}',
    "a path": '{"weight_map": {"a": "../../../etc/passwd"}}',
    "a number": '{"weight_map": {"a": 5}}',
    "nested": '{"weight_map": ' + "[" * 100_000,
}
