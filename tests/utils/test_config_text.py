"""`utils.config.text`: the text, tree and hash of a configuration, and round trips of random ones."""

from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.utils.test_config_load import (
    EulerConfig,
    FewStepConfig,
    OptimConfig,
    RootConfig,
    UniPCConfig,
    WindowConfig,
    build,
)
from utils.config.field import MISSING
from utils.config.layer import Layer, _parse, parse_overrides
from utils.config.load import load
from utils.config.text import config_hash, render, to_dict


def test_render_shows_every_value_with_its_origin():
    tree = {"model": "m", "optims": [{"lr": 1.0}], "extra": {"a": {"b": 1}}}
    file = Layer("a.yaml", tree, {("model",): 3, ("extra", "a"): 5})
    text = render(*load(RootConfig, [file, *parse_overrides(["solver.num_steps=8"])]))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "model: m # a.yaml:3" in lines and "num_steps: 8 # command line" in lines
    assert "optims: [{lr: 1.0, betas: [0.9, 0.999]}] # a.yaml" in lines and "b: 1 # a.yaml:5" in lines
    assert "critic: null # default" in lines
    assert {line.index("#") for line in text.splitlines() if "#" in line} == {42}
    assert all("#" in line or line.endswith(":") for line in lines)


def test_an_object_made_in_python_needs_a_name_where_its_class_has_two():
    config = RootConfig(model="m", solver=UniPCConfig())
    assert to_dict(config)["solver"] == {"name": "unipc", "num_steps": 50, "order": 2}
    assert to_dict(replace(config, solver=UniPCConfig(name="")))["solver"]["name"] == "unipc"
    with pytest.raises(ValueError, match="EulerConfig stands for 2 of the names"):
        to_dict(RootConfig(model="m", solver=EulerConfig()))


def test_hash_depends_on_values_only():
    one, two = build({"seed": 1, "roles": {"a": {}, "b": {}}}), build({"roles": {"b": {}, "a": {}}}, {"seed": 1})
    assert config_hash(one) == config_hash(two) and len(config_hash(one)) == 12
    assert config_hash(one) != config_hash(replace(one, seed=2))
    assert config_hash(build({"solver": {"name": "alias"}})) != config_hash(build())
    assert config_hash(EulerConfig(3)) == "e940af6b75ae", "the hash of a configuration must not change between versions"


finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text().filter(lambda text: "${" not in text and text != MISSING)
names = st.text("abc_", min_size=1, max_size=3)
optims = st.builds(OptimConfig, lr=finite, betas=st.tuples(finite, finite))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts.filter(bool), inner, max_size=3),
    max_leaves=6,
)
roots = st.builds(
    RootConfig,
    model=texts,
    seed=st.integers(),
    label=st.none() | texts,
    rope=st.sampled_from(["write", "read"]),
    sizes=st.lists(st.lists(st.integers(), max_size=2), max_size=3),
    weights=st.dictionaries(texts.filter(bool), finite, max_size=2).map(lambda extra: {"flow": 1.0, **extra}),
    extra=plain,
    window=st.builds(WindowConfig, st.integers(10, 50), st.integers(0, 9)),
    shadow=st.none() | st.builds(WindowConfig, st.integers(10, 50), st.integers(0, 9)),
    optims=st.lists(optims, max_size=2),
    roles=st.dictionaries(names, optims, max_size=2),
    solver=st.builds(UniPCConfig, st.integers(), st.integers()),
    critic=st.none() | st.builds(FewStepConfig, st.lists(finite, max_size=3).map(tuple)),
)


@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(roots)
def test_plain_tree_and_rendered_text_load_back(config):
    tree = to_dict(config)
    again, origins = load(RootConfig, [Layer("tree", tree)])
    assert again == config and config_hash(again) == config_hash(config)
    read = _parse(render(config, origins), "text", {})
    assert load(RootConfig, [Layer("text", read)])[0] == config


@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(roots, roots)
def test_a_complete_later_layer_wins_over_any_earlier_one(first, second):
    earlier = to_dict(first) | {"weights": {}, "roles": {}, "extra": None}
    assert load(RootConfig, [Layer("a", earlier), Layer("b", to_dict(second))])[0] == second
