"""Whatever numbers a configuration holds, it is told what is wrong: no check trips over what another one refuses."""

from __future__ import annotations

from dataclasses import is_dataclass

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipeline.config import InferConfig
from trainer.config import CodecConfig, DistillConfig, PreviewConfig, RegressConfig, RoleConfig, TrainConfig
from trainer.sources import config as sources
from utils.config.field import check, find_problems, values
from utils.config.layer import Layer
from utils.config.load import load
from utils.config.text import to_dict

SOURCES = {
    "latents": sources.LatentsConfig,
    "rollout": sources.RolloutConfig,
    "trajectory": sources.TrajectoryConfig,
    "stream": sources.StreamConfig,
    "noised_data": sources.NoisedDataConfig,
    "ode_pairs": sources.OdePairsConfig,
}


def leaves(config, path: tuple = ()) -> dict[tuple, object]:
    """Returns path -> value of all numbers, truth values and sequences of a configuration."""
    found = {}
    for key, value in values(config).items():
        if is_dataclass(value):
            found |= leaves(value, (*path, key))
        elif isinstance(value, int | float | tuple) and value != ():
            found[(*path, key)] = value
    return found


def other(value) -> st.SearchStrategy:
    """Returns values of the same type, most of them near the border of what is allowed."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, tuple):
        return st.tuples(*[st.sampled_from([-1.0, 0.0, 0.5, 1.0, 500.0, 1000.0])] * len(value))
    return st.sampled_from([-2, -1, 0, 1, 2, 3, 7, 10**9] if isinstance(value, int) else [-1.0, 0.0, 2.0])


def roots() -> dict:
    """Returns name -> configuration of a generation and of every kind of training."""
    found = {"infer": InferConfig(), "codec": TrainConfig(trainer=CodecConfig())}
    found["codec"].trainer.name = "codec"
    for name, source in SOURCES.items():
        key = next(key for key in ("path", "clips", "prompts") if key in values(source()))
        data = {key: "clips"}
        for kind in (RegressConfig, DistillConfig):
            trainer = kind(source=source(**data), generator=RoleConfig(spec="digits"))
            trainer.source.name = name  # as the loader names arms
            found[f"{kind.__name__} {name}"] = TrainConfig(trainer=trainer, preview=PreviewConfig(every=1))
    return found


@pytest.mark.parametrize("name", roots())
def test_any_numbers_pass_or_are_refused(name):
    numbers = leaves(roots()[name])

    @settings(max_examples=60, deadline=None, phases=[Phase.generate], derandomize=True)
    @given(st.data())
    def run(data):
        config = roots()[name]
        for path in data.draw(st.lists(st.sampled_from(sorted(numbers)), min_size=1, max_size=6, unique=True)):
            node = config
            for key in path[:-1]:
                node = values(node)[key]
            setattr(node, path[-1], data.draw(other(numbers[path])))
        problems = list(find_problems(config))
        assert all(text and isinstance(text, str) for _, text in problems)

    run()


def test_all_problems_of_a_recipe_are_told_at_once():
    tree = to_dict(TrainConfig())
    tree |= {"steps": 0, "checkpoint": {"every": 0, "keep": 0}, "track": {"wandb_mode": "loud"}}
    tree["trainer"]["optim"]["lr"] = -1.0
    with pytest.raises(ValueError) as caught:
        load(TrainConfig, [Layer("a.yaml", tree)])
    lines = str(caught.value).splitlines()
    keys = ["trainer.generator", "trainer.source", "trainer.optim.lr is", "checkpoint.every is", "track", "steps is"]
    assert all(any(f": {key}" in line for line in lines) for key in keys), lines


def test_a_configuration_made_in_python_is_checked_by_one_function():
    with pytest.raises(ValueError, match=r"(?s)2 problems.*text: text.batch_size is 0.*InferConfig|num_samples is 0"):
        config = InferConfig(num_samples=0)
        config.text.batch_size = 0
        check(config)
    assert values(InferConfig())["num_output_frames"] == 21
