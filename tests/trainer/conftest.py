"""Tiny latents, and a regression on them that takes milliseconds a step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import digits_fixture
from tests.architecture.source import ROOT
from trainer.config import load_recipe

RECIPE = """
model: {model}
steps: 6
log_every: 1
trainer:
  generator: {{weights: {weights}}}
  source: {{name: latents, path: {latents}, batch: 2, frames: 4, chunk: 2, dropout: 0.25}}
  loss: {{name: flow, mode: diffusion_forcing, shift: 3.0}}
  optim: {{name: adamw, lr: 2.0e-3}}
  ema: {{decay: 0.9}}
  text: {{dtype: fp32}}
checkpoint: {{every: 2}}
"""


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> Path:
    """The recipe of a causal regression with a one-block network."""
    folder = tmp_path_factory.mktemp("regress")
    weights = digits_fixture.model_folder(folder / "start", num_layers=1, ffn_dim=64) / "transformer"
    latents = digits_fixture.latent_folder(folder / "latents")
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(model=ROOT / "assets/digits", weights=weights, latents=latents))
    return path


@pytest.fixture
def config(recipe):
    """config(*overrides) -> the typed configuration."""
    return lambda *overrides: load_recipe(recipe, overrides)[0]


DISTILL = """
model: {model}
steps: 6
log_every: 1
trainer:
  name: distill
  generator: {{weights: {weights}}}
  teacher: {{weights: {weights}}}
  critic: {{weights: {weights}}}
  source:
    name: rollout
    prompts: {prompts}
    batch: 4
    frames: 4
    loss_frames: 4
    chunk: 2
    height: 32
    width: 32
    sampler: {{steps: [1000, 500], shift: 3.0}}
    cache: {{window_frames: 4}}
  loss: {{name: dmd, score: {{real_guidance: 3.0, shift: 3.0}}}}
  optim: {{name: adamw, lr: 2.0e-4}}
  critic_optim: {{name: adamw, lr: 4.0e-4}}
  ratio: 2
  ema: {{decay: 0.9}}
  text: {{dtype: fp32}}
checkpoint: {{every: 2}}
"""


@pytest.fixture(scope="session")
def distill_recipe(tmp_path_factory):
    """(recipe, clips): a DMD of one-block networks on rollouts of two chunks, and clips of its size."""
    folder = tmp_path_factory.mktemp("distill")
    weights = digits_fixture.model_folder(folder / "start", num_layers=1, ffn_dim=64) / "transformer"
    clips = digits_fixture.latent_folder(folder / "clips")
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(digits_fixture.PROMPTS))
    path = folder / "tiny.yaml"
    path.write_text(DISTILL.format(model=ROOT / "assets/digits", weights=weights, prompts=prompts))
    return path, clips
