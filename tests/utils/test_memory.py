"""What cannot fit into memory is refused before a weight is read, with what is needed and what there is."""

from __future__ import annotations

import pytest

from pipeline.config import load_recipe
from pipeline.memory import check_memory, estimate, read_sizes
from tests.architecture.source import ROOT
from trainer.config import load_recipe as load_training
from trainer.preflight import check
from utils import memory

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
