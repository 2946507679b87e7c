"""Recipes of published models: the values they were published with, weights where scripts/download.sh puts them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.config import load_recipe
from tests.architecture.source import ROOT
from utils.config.text import to_dict

STEPS = (1000.0, 750.0, 500.0, 250.0)
# recipe -> window, sink, rope, recache, keep_sink, latent frames
CACHES = {
    "self_forcing_dmd": (-1, 0, "write", "causal", True, 21),
    "self_forcing_long": (21, 0, "write", "causal", True, 240),
    "longlive": (12, 3, "write", "causal", True, 120),
    "longlive_infinity": (12, 3, "read", "causal", True, 1050),
    "longlive_interactive": (12, 3, "write", "bidirectional", True, 240),
}
SETS = {"self_forcing": "self-forcing", "longlive": "longlive"}


def recipe(name, *overrides):
    """Returns the configuration of configs/infer/<name>.yaml."""
    return load_recipe(ROOT / f"configs/infer/{name}.yaml", overrides)[0]


@pytest.mark.parametrize("name", CACHES)
def test_the_values_are_the_published_ones(name):
    config = recipe(name)
    cache, steps = config.generation.cache, config.generation.steps
    found = (cache.window_frames, cache.sink_frames, cache.rope, cache.recache, cache.keep_sink)
    assert (*found, config.num_output_frames) == CACHES[name]
    assert (config.generation.chunk, config.generation.first_chunk) == (3, 0)
    assert (steps.steps, steps.shift, steps.warp, config.chosen_sampler.guidance) == (STEPS, 5.0, True, 1.0)
    assert (config.generation.context.sigma, config.generation.context.renoise) == (0.0, False)
    assert config.num_output_frames % config.generation.chunk == 0


def test_the_endless_model_differs_by_its_positions_alone():
    same = recipe("longlive", "generation.cache.rope=read", "num_output_frames=1050")
    assert to_dict(recipe("longlive_infinity")) == to_dict(same)


@pytest.mark.parametrize("name", CACHES)
def test_the_weights_are_where_the_download_puts_them(name):
    config = recipe(name)
    sets = ["t2v-1.3B", next(value for prefix, value in SETS.items() if name.startswith(prefix))]
    done = subprocess.run(
        ["bash", "scripts/download.sh", "--dry-run", *sets], cwd=ROOT, capture_output=True, text=True, check=True
    )
    there = set()
    for line in done.stdout.splitlines():
        words = line.split()
        folder = Path(words[words.index("--local-dir") + 1])
        there |= {folder, *(folder / word for word in words if word.endswith(".pt"))}
    named = [config.model.path, config.model.checkpoint, *([config.model.lora] if config.model.lora else [])]
    assert {Path(n) for n in named} <= there
