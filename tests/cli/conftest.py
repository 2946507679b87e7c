"""The door of inference with a random digits model."""

from __future__ import annotations

import pytest

from tests import digits_fixture


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a digits model with random weights."""
    return digits_fixture.model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def bundles():
    """The models that a test has loaded, by their configuration."""
    return {}


@pytest.fixture(autouse=True)
def kept_kits(request, bundles, monkeypatch):
    """Loads a model once for all tests; those of test_weights.py are about loading and do it themselves."""
    if request.module.__name__.endswith("test_weights"):
        return
    from pipeline.batch import run

    load = run.load_bundle

    def once(*configs):
        if repr(configs) not in bundles:
            bundles[repr(configs)] = load(*configs)
        return bundles[repr(configs)]

    monkeypatch.setattr(run, "load_bundle", once)


@pytest.fixture
def door(model, tmp_path, capsys):
    """inference.py with a recipe that takes a fraction of a second a video."""
    return digits_fixture.Door(digits_fixture.write_recipe(tmp_path / "recipe.yaml", model), model, capsys)


@pytest.fixture
def prompts(tmp_path):
    """prompts(*lines) -> the path of a text file with these lines."""

    def write(*lines, name="prompts.txt"):
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def custom_model(tmp_path_factory):
    """A model of no published size, which knows no closed world of prompts."""
    return digits_fixture.model_folder(tmp_path_factory.mktemp("custom"), num_layers=1, ffn_dim=64)


@pytest.fixture
def custom_door(custom_model, tmp_path, capsys):
    """inference.py with the custom model: 1 latent frame, 1 step."""
    door = digits_fixture.Door(
        digits_fixture.write_recipe(tmp_path / "custom.yaml", custom_model), custom_model, capsys
    )
    door.recipe.write_text(door.recipe.read_text().replace("num_output_frames: 3", "num_output_frames: 1"))
    return door
