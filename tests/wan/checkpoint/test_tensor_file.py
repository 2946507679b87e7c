"""Damaged, foreign and malicious files get an error that names them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tests.wan.checkpoint.manifest import same, tiny_transformer
from wan.checkpoint import tensor_file
from wan.checkpoint.identify import identify
from wan.checkpoint.weights import load_transformer


@pytest.fixture(scope="module")
def tiny():
    return tiny_transformer()


class Payload:
    """Would leave a mark if it were executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_no_pickle_is_executed(tmp_path, legacy):
    content = {"generator": {"w": torch.zeros(2)}, "config": Payload(tmp_path / "mark")}
    torch.save(content, tmp_path / "bad.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="bad.pt.*nothing in a checkpoint is executed"):
        identify(tmp_path / "bad.pt")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "legacy.pt"])
@pytest.mark.parametrize("keep", [0, 5, 40, 300, 5000, -40])
def test_truncated_files_are_named(tmp_path, name, keep, tiny):
    path = tmp_path / name
    if name == "m.safetensors":
        save_file(tiny[1], path)
    else:
        torch.save(tiny[1], path, _use_new_zipfile_serialization=name == "m.pt")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=name):
        load_transformer(path)


def test_other_bad_paths(tmp_path):
    (tmp_path / "notes.txt").write_text("hello, these are no weights at all")
    with pytest.raises(ValueError, match="missing.pt is missing; .* holds: notes.txt"):
        load_transformer(tmp_path / "missing.pt")
    with pytest.raises(ValueError, match="neither a safetensors file nor a torch archive"):
        load_transformer(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="holds no part of a Wan model; it has: notes.txt"):
        load_transformer(tmp_path)
    (tmp_path / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match="pointer to a large file"):
        load_transformer(tmp_path / "lfs.safetensors")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        load_transformer(tmp_path / "list.pt")
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is not a model we know"):
        load_transformer(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="not a model we know; its first keys: x"):
        identify(tmp_path / "x.safetensors")


def test_a_file_is_recognised_by_its_content(tmp_path, tiny):
    save_file(tiny[1], tmp_path / "weights.pt")  # a misleading name
    assert same(tensor_file.read(tmp_path / "weights.pt"), tiny[1])


def hole(path, at: float) -> None:
    """Overwrites some bytes at a part of a file by others."""
    data = bytearray(path.read_bytes())
    place = int(len(data) * at)
    data[place : place + 64] = bytes(255 - b for b in data[place : place + 64])
    path.write_bytes(data)


@pytest.mark.parametrize("at", [0.2, 0.4, 0.7])
def test_a_damaged_record_is_named(tmp_path, tiny, at, capsys):
    from scripts.convert_weights import main

    path = tmp_path / "m.pt"
    torch.save({"generator": {f"model.{k}": v for k, v in tiny[1].items()}}, path)
    tensor_file.check_archive(path)
    hole(path, at)
    with pytest.raises(ValueError, match=r"m.pt is damaged at record m/data/\d+: its checksum.*verify_archives=false"):
        tensor_file.read(path)
    token = tensor_file.verify_archives.set(False)
    try:
        assert tensor_file.read(path)
    finally:
        tensor_file.verify_archives.reset(token)
    assert main(["inspect", str(path)]) == 2 and "damaged at record" in capsys.readouterr().err
    assert main(["inspect", "--no_check", str(path)]) == 0


def shards(folder, state, index="diffusion_pytorch_model.safetensors.index.json", variant=""):
    """Writes a state dict as two shards and an index."""
    import json

    folder.mkdir(exist_ok=True)
    names, parts = sorted(state), {}
    for n in range(2):
        parts[f"diffusion_pytorch_model-0000{n + 1}-of-00002{variant}.safetensors"] = names[n::2]
    for file, keys in parts.items():
        save_file({k: state[k] for k in keys}, folder / file)
    weight_map = {k: file for file, keys in parts.items() for k in keys}
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_the_index_of_a_variant_is_read(tmp_path, tiny, variant):
    name = f"diffusion_pytorch_model.safetensors.index.{variant}.json"
    folder = shards(tmp_path / "m", tiny[1], name, f".{variant}")
    assert same(tensor_file.read(folder), tiny[1]) and same(tensor_file.read(folder / name), tiny[1])
    plain = {k: v + 1 for k, v in tiny[1].items()}
    shards(folder, plain)
    assert same(tensor_file.read(folder), plain) and same(tensor_file.read(folder / name), tiny[1])


def test_two_variants_alone_are_not_guessed(tmp_path, tiny):
    for variant in ("fp16", "bf16"):
        name = f"diffusion_pytorch_model.safetensors.index.{variant}.json"
        shards(tmp_path / "m", tiny[1], name, f".{variant}")
    with pytest.raises(ValueError, match="several indices: .*bf16.json, .*fp16.json; give the path of one"):
        tensor_file.read(tmp_path / "m")


INDICES = ["{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": "../x.safetensors"}}']
INDICES += ['{"weight_map": {}}', '{"weight_map": {"a": "/etc/passwd"}}', '{"weight_map": {"a": ""}}', "[" * 99999]


@pytest.mark.parametrize("text", INDICES)
def test_a_wrong_index_is_named(tmp_path, tiny, text):
    folder = shards(tmp_path / "m", tiny[1])
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(ValueError, match=f"^{index}"):
        tensor_file.read(folder)


def test_a_key_that_no_shard_holds_is_named(tmp_path, tiny):
    folder = shards(tmp_path / "m", tiny[1])
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(index.read_text().replace('"weight_map": {', '"weight_map": {"lost.weight": "x.safetensors", '))
    index.write_text(index.read_text().replace("x.safetensors", "diffusion_pytorch_model-00001-of-00002.safetensors"))
    with pytest.raises(ValueError, match="names 1 keys that its shards do not hold: lost.weight"):
        tensor_file.read(folder)
