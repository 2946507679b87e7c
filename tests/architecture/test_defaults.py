"""configs/default_config.yaml is the page of the project's defaults: all of them, as an empty recipe resolves."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from pipeline.config import InferConfig
from pipeline.config import load_recipe as load_infer
from tests.architecture.source import ROOT
from trainer.config import TrainConfig
from trainer.config import load_recipe as load_train
from utils.config.layer import read_defaults
from utils.config.text import render, to_dict
from wan.generation import FILE

DEFAULTS = ROOT / "configs/default_config.yaml"


@pytest.mark.parametrize(("section", "cls"), [("infer", InferConfig), ("train", TrainConfig)])
def test_the_page_holds_every_default_as_the_dataclasses_have_it(section, cls):
    common, own = (layer.tree for layer in read_defaults(DEFAULTS, section))
    assert not common.keys() & own.keys()
    assert common | own == to_dict(cls())


def test_an_empty_recipe_resolves_to_the_page(tmp_path):
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    config, origins = load_infer(empty)
    common, own = (layer.tree for layer in read_defaults(DEFAULTS, "infer"))
    carried = ROOT / "assets/digits/transformer" / FILE  # of the default model
    layers = [common["generation"], json.loads(carried.read_text())]
    assert to_dict(config) == common | own | {"generation": OmegaConf.to_container(OmegaConf.merge(*layers))}
    places = {place for key, place in origins.items() if not key.startswith("generation.")}
    assert not places, "a default that nobody changed is nobody's choice"
    assert {ROOT / place for place in origins.values()} == {carried}
    ends = (":", "# default", f"# assets/digits/transformer/{FILE}")
    assert all(line.endswith(ends) for line in render(config, origins).splitlines())
    # A training needs two things that no default can know, and nothing else.
    with pytest.raises(ValueError) as caught:
        load_train(empty)
    first, *problems = str(caught.value).splitlines()
    assert first == "2 problems in the configuration"
    assert "trainer.generator: write either spec" in problems[0] and "trainer.source: path is empty" in problems[1]


def test_every_default_has_a_comment():
    lines = DEFAULTS.read_text(encoding="utf-8").splitlines()
    bare = [
        line for line in lines if line and not line.startswith("#") and "  # " not in line and not line.endswith(":")
    ]
    assert bare == []


def test_a_changed_default_says_where_it_was_changed(tmp_path, monkeypatch):
    changed = tmp_path / "default.yaml"
    changed.write_text(DEFAULTS.read_text(encoding="utf-8").replace("num_output_frames: 21", "num_output_frames: 24"))
    monkeypatch.setattr("pipeline.config.DEFAULTS", changed)
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    config, origins = load_infer(empty)
    changed_keys = [key for key in origins if not key.startswith("generation.")]  # those are of the default model
    assert config.num_output_frames == 24 and changed_keys == ["num_output_frames"]
    assert origins["num_output_frames"].startswith(str(changed))
