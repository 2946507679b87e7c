"""Every recipe loads: `load_recipe(path, overrides=()) -> (config, origins)` of trainer.config and pipeline.config."""

from __future__ import annotations

import dataclasses
import importlib

import pytest

from tests.architecture.source import ROOT

LOADERS = {"train": "trainer.config", "infer": "pipeline.config"}
RECIPES = [(kind, path) for kind in LOADERS for path in sorted((ROOT / "configs" / kind).glob("*.yaml"))]


def loader(kind: str):
    """Returns the loader of this kind of recipe."""
    return importlib.import_module(LOADERS[kind]).load_recipe


@pytest.mark.parametrize(("kind", "path"), RECIPES, ids=lambda v: v if isinstance(v, str) else v.name)
def test_recipe_loads(kind, path):
    config, origins = loader(kind)(path)
    assert dataclasses.is_dataclass(config)
    assert any(path.name in origin for origin in origins.values()), "nothing of the recipe arrived"


@pytest.mark.parametrize("kind", LOADERS)
def test_every_kind_has_a_recipe(kind):
    loader(kind)
    assert any(k == kind for k, _ in RECIPES)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_recipe_with_an_unknown_key_is_caught(kind, tmp_path):
    load = loader(kind)
    path = next(p for k, p in RECIPES if k == kind)
    broken = tmp_path / path.name
    broken.write_text(f"base: {path}\nno_such_knob: 1\n")
    with pytest.raises(ValueError, match="no_such_knob"):
        load(broken)


@pytest.mark.parametrize("kind", LOADERS)
def test_an_override_with_an_unknown_key_is_caught(kind):
    load = loader(kind)
    path = next(p for k, p in RECIPES if k == kind)
    with pytest.raises(ValueError, match="no_such_knob"):
        load(path, overrides=("no_such_knob=1",))
