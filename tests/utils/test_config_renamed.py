"""Keys of earlier versions: refused with their new name in recipes, mapped in what was stored."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from utils.config.layer import Layer, parse_overrides
from utils.config.load import load, peek
from utils.config.renamed import OldKeys, fill, leaves, rename

OLD = OldKeys(
    {"model.cache": "cache", "model.cache.snap": "cache.rounding", "model.ratio": "updates"},
    {"model.cache.guidance": "it never changed anything; remove it"},
)


@dataclass
class CacheConfig:
    window: int = 3
    rounding: str = "none"


@dataclass
class ModelConfig:
    path: str = ""


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    updates: int = 5


@pytest.mark.parametrize(
    ("key", "new"),
    [
        ("model.cache.window", "cache.window"),
        ("model.cache.snap", "cache.rounding"),
        ("model.cache.guidance", None),
        ("model.ratio", "updates"),
        ("model.path", "model.path"),
        ("model.caches", "model.caches"),
    ],
)
def test_the_longest_entry_decides(key, new):
    assert OLD.new_name(key) == new
    assert OLD.describe(key) == {
        None: "it never changed anything; remove it",
        key: None,
    }.get(new, f"it is now {new}")


def test_old_keys_are_told_one_by_one_and_others_are_guessed():
    layers = parse_overrides(["model={cache: {window: 2, snap: table, guidance: 1}, ratio: 2}", "model.pth=x"])
    with pytest.raises(ValueError) as caught:
        load(Config, layers, OLD)
    assert set(str(caught.value).splitlines()[1:]) == {
        "command line: unknown key model.cache.window; it is now cache.window",
        "command line: unknown key model.cache.snap; it is now cache.rounding",
        "command line: unknown key model.cache.guidance; it never changed anything; remove it",
        "command line: unknown key model.ratio; it is now updates",
        "command line: unknown key model.pth; did you mean model.path?",
    }


def test_a_stored_tree_is_read_under_new_keys():
    stored = {"model": {"path": "a", "cache": {"window": 2, "snap": "table", "guidance": 1}, "ratio": 2}, "steps": []}
    mapped = rename(stored, OLD)
    assert mapped == {
        "model": {"path": "a"},
        "cache": {"window": 2, "rounding": "table"},
        "updates": 2,
        "steps": [],
    }
    assert rename(mapped, OLD) == mapped, "once is enough"
    config, _ = load(Config, [Layer("stored", {k: v for k, v in mapped.items() if k != "steps"})], OLD)
    assert config == Config(ModelConfig("a"), CacheConfig(2, "table"), 2)


def test_newer_knobs_are_filled_with_defaults():
    assert fill({"a": {"x": 1}, "b": None}, {"a": {"x": 0, "y": 2}, "b": {"z": 3}, "c": 4}) == {
        "a": {"x": 1, "y": 2},
        "b": None,
        "c": 4,
    }


def test_leaves_are_what_is_no_group():
    assert dict(leaves({"a": {"b": 1, "c": {}}, "d": [2]})) == {("a", "b"): 1, ("a", "c"): {}, ("d",): [2]}


def test_a_value_is_read_before_the_configuration_is(monkeypatch):
    monkeypatch.setenv("PLACE", "here")
    layers = [Layer("defaults", {"model": {"path": "there"}}), *parse_overrides(["model.path=${oc.env:PLACE}/x"])]
    assert peek(layers, "model.path") == "here/x"
    assert peek(layers, "model.lora") is None and peek(layers[:1], "model.path") == "there"
    assert peek(parse_overrides(["model.path=${oc.env:NO_SUCH_PLACE}"]), "model.path") is None
    assert peek(parse_overrides(["model=x"]), "model.path") is None
    mixed = parse_overrides(["model.lora={path: a}", "model.lora=[{path: b}, c]"])
    assert peek(mixed, "model.lora") == [{"path": "b"}, "c"]
    assert peek([*mixed, *parse_overrides(["model.lora={path: d}"])], "model.lora") == {"path": "d"}
    with pytest.raises(ValueError, match="write values out"):
        peek(parse_overrides([f"model.path={'${a}' * 40}"]), "model.path")
