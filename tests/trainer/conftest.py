"""Tiny latents, and trainings on them that take milliseconds a step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import digits_fixture
from trainer.config import load_recipe


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> Path:
    """The recipe of a causal regression with a one-block network."""
    return digits_fixture.flow_recipe(tmp_path_factory.mktemp("regress"))


@pytest.fixture
def config(recipe):
    """config(*overrides) -> the typed configuration."""
    return lambda *overrides: load_recipe(recipe, overrides)[0]


@pytest.fixture(scope="session")
def distill_recipe(tmp_path_factory) -> tuple[Path, Path]:
    """(recipe, clips) of a DMD of one-block networks."""
    return digits_fixture.distill_recipe(tmp_path_factory.mktemp("distill"))
