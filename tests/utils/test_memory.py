"""What cannot fit into memory is refused before a weight is read, with what is needed and what there is."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import load_recipe
from pipeline.memory import advised, check_memory, estimate, read_sizes, switches
from tests.architecture.source import ROOT
from trainer.config import load_recipe as load_training
from trainer.preflight import check
from utils import memory
from utils.door import explain

DIGITS = ROOT / "configs/infer/digits_student.yaml"


@pytest.fixture
def room(monkeypatch):
    """room(bytes) -> the machine has that much."""
    return lambda size: monkeypatch.setattr(memory, "available", lambda: (size, "this machine"))


def test_parts_and_room_are_named(room):
    room(5e9)
    memory.check_fits({"weights": 5e9}, "take less")
    with pytest.raises(
        ValueError, match=r"at least 7.0 GB .*\(caches 4.0 GB, weights 3.0 GB\) and this machine has 5.0"
    ):
        memory.check_fits({"weights": 3e9, "caches": 4e9}, "take less")


def test_available_memory_is_that_of_the_smallest_limit(monkeypatch):
    monkeypatch.setattr(memory, "_limits", lambda: [(8e9, "this machine"), (2e9, "this container")])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert memory.available() == (2e9, "this container")
    monkeypatch.undo()
    assert all(size > 0 for size, _ in memory._limits())


def test_a_window_that_cannot_fit_is_refused(room):
    room(8e9)
    config, _ = load_recipe(DIGITS)
    check_memory(config)
    config, _ = load_recipe(DIGITS, ["generation.cache.window_frames=900000"])
    with pytest.raises(ValueError, match="keys and values .* GB"):
        check_memory(config)


def test_keys_and_values_follow_their_arithmetic():
    config, _ = load_recipe(DIGITS, ["generation.cache.window_frames=9", "model.dtype=fp32"])
    sizes = read_sizes(config)
    parts = estimate(config, sizes)
    tokens = parts["keys and values"] / (2 * sizes.num_layers * 9 * sizes.dim * 4)
    assert tokens == 16  # 64 pixels are 8 latent rows, 4 rows of patches


def test_a_model_that_tells_no_sizes_is_left_to_its_loader(tmp_path):
    config, _ = load_recipe(DIGITS, ["model.path=someone/somewhere"])
    assert read_sizes(config) is None and check_memory(config) is None


def test_adapters_that_cannot_fit_are_refused(room):
    room(1e9)
    recipe = ROOT / "configs/train/digits_self_forcing_dmd.yaml"
    with pytest.raises(ValueError, match=r"trainer.generator.lora: at least .* GB of memory are needed"):
        check(load_training(recipe, ["trainer.generator.lora.rank=65536"])[0])


def test_eight_bits_and_offloading_are_counted(monkeypatch):
    """What `switches` names takes as much off as it says, and is not named again."""
    knobs = ["model.spec=t2v-14B", "model.dtype=bf16", "generation.cache.window_frames=21"]
    narrow = ["model.linears=fp8", "model.offload.blocks=true", "model.offload.parts=true", "model.offload.caches=cpu"]
    monkeypatch.setattr(memory, "on_gpu", lambda: True)
    parts = {}
    for number in range(len(narrow) + 1):
        config, _ = load_recipe(DIGITS, [*knobs, *narrow[:number]])
        parts[number] = estimate(config, read_sizes(config))
        named = " ".join(switches(config))
        assert [knob in named for knob in narrow] == [knob not in narrow[:number] for knob in narrow]
    wide, eight, swapped = (parts[n]["weights"] for n in (0, 1, 2))
    assert wide == 2 * 14_288_491_584 and 0.5 * wide < eight < 0.53 * wide and 3 / 40 * eight < swapped < 5 / 40 * eight
    assert parts[4]["keys and values"] == parts[0]["keys and values"] * 2 / 40
    monkeypatch.setattr(memory, "on_gpu", lambda: False)
    assert estimate(config, read_sizes(config))["weights"] == eight, "on a CPU there is no other memory"
    assert switches(config) == []


def test_a_gpu_without_memory_names_what_helps(monkeypatch):
    monkeypatch.setattr(memory, "on_gpu", lambda: True)
    config, _ = load_recipe(DIGITS, ["model.dtype=bf16"])
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB of which 1 is free."
    with pytest.raises(MemoryError) as caught, advised(config):
        raise torch.OutOfMemoryError(said)
    line = explain(caught.value)
    assert line.startswith(
        "not enough memory (CUDA out of memory. Tried to allocate 2.00 GiB; what helps: model.offload"
    )
    assert "model.linears=fp8" in line and "caches=cpu" in line
    with pytest.raises(RuntimeError, match="another"), advised(config):
        raise RuntimeError("another")
