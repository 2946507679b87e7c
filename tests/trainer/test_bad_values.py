"""Any leaf of any recipe takes a bad value as an error that names its key, or as a value that is right there."""

from __future__ import annotations

import functools
import re

import pytest

import pipeline.config
import trainer.config
from pipeline.trained import find_trained
from tests.architecture.source import ROOT
from utils.bounds import bounded
from utils.config.field import find_problems
from utils.config.layer import Layer, parse_overrides, read_defaults, read_recipe
from utils.config.load import load
from utils.config.renamed import leaves
from utils.config.text import to_dict

ROOMS = {
    "infer": (pipeline.config, pipeline.config.InferConfig),
    "train": (trainer.config, trainer.config.TrainConfig),
}
VALUES = [".nan", ".inf", "-1", "0", str(2**63), "1e400", "[]", "{}", '""', "1e-300", "[[[1]]]", "9" * 5000]


def recipe_layers(kind, path) -> list[Layer]:
    """Returns the layers that a recipe is loaded from."""
    layers = [*read_defaults(ROOMS[kind][0].DEFAULTS, kind), *read_recipe(path)]
    trained = find_trained(layers) if kind == "infer" else None
    return [*layers[:2], *([trained.layer] if trained else []), *layers[2:]]


@functools.cache
def new_leaves() -> list[tuple[type, list[Layer], list[str]]]:
    """Returns, for every recipe that has some, its layers and those leaves that no recipe before it has."""
    found, seen = [], set()
    for kind, (_, cls) in ROOMS.items():
        for path in sorted((ROOT / "configs" / kind).glob("*.yaml")):
            layers = recipe_layers(kind, path)
            keys = [".".join(key) for key, _ in leaves(to_dict(load(cls, layers)[0])) if key[-1] != "name"]
            if new := [key for key in keys if (kind, key) not in seen]:
                found.append((cls, layers, new))
                seen |= {(kind, key) for key in keys}
    return found


def named(key: str, message: str) -> bool:
    """True if a line of the message has the key, or its group and its last word."""
    group, _, last = key.rpartition(".")
    lines = [line for line in message.splitlines() if not group or group in line]
    return key in message or any(re.search(rf"\b{last}\b", line) for line in lines)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:8])
def test_bad_value_of_any_leaf(value):
    for cls, layers, keys in new_leaves():
        left = list(keys)
        while left:
            try:
                load(cls, [*layers, *parse_overrides([f"{key}={value}" for key in left])])
            except ValueError as error:
                message = str(error)
                rest = [key for key in left if not named(key, message)]
                assert len(rest) < len(left), f"{value} for {left}: no key in {message}"
                left = rest
            else:
                break


def test_there_are_leaves_to_try():
    assert sum(len(keys) for _, _, keys in new_leaves()) > 150


def number_fields(config, path=()):
    """Yields (path, has bounds) of every number in a configuration."""
    import dataclasses

    for field in dataclasses.fields(config):
        value = vars(config)[field.name]
        if dataclasses.is_dataclass(value):
            yield from number_fields(value, (*path, field.name))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*path, field.name), "bounds" in field.metadata


def test_every_number_of_a_recipe_has_bounds():
    for cls, layers, _ in new_leaves():
        bare = [".".join(path) for path, has in number_fields(load(cls, layers)[0]) if not has]
        assert bare == []


def test_bounds_name_value_and_limits():
    from dataclasses import make_dataclass

    rate = make_dataclass("Rate", [("speed", float, bounded(0.0, 2, 5, or_zero=True)), ("free", float, 1.0)])
    assert list(find_problems(rate(3.0))) == list(find_problems(rate(0.0, -7.0))) == []
    assert list(find_problems([rate(1.0)])) == [((0, "speed"), "is 1.0; write 0, or 2 to 5")]
    assert list(find_problems(rate(2.0, float("nan")))) == [(("free",), "is nan; write a finite number")]
