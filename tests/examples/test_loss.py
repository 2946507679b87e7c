"""A loss and a source are one file and one line each: trained by a recipe, with previews, an export and a resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
from model import LOSSES
from tests import digits_fixture
from tests.architecture.source import ROOT
from tests.examples.loss import HuberConfig
from tests.model.stand_in import BOUND, Affine, rows, sample, text_mean
from trainer import SOURCES
from utils.rng import Rng
from wan.generation import GenerationConfig, StepsConfig

RECIPE = ROOT / "tests/examples/loss.yaml"


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The two lines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOSSES, "huber", "tests.examples.loss:HuberConfig")
        patch.setitem(SOURCES, "stills", "tests.examples.source:StillsConfig")
        yield


@pytest.fixture(scope="module")
def folder(registered, tmp_path_factory) -> Path:
    """A folder with clips and a finished run."""
    folder = tmp_path_factory.mktemp("loss")
    digits_fixture.latent_folder(folder / "clips")
    assert run(folder) == 0
    return folder


def run(folder: Path, *overrides: str) -> int:
    clips = f"trainer.source.path={folder / 'clips'}"
    arguments = ["--config_path", str(RECIPE), "--logdir", str(folder / "run"), f"model={ROOT / 'assets/digits'}"]
    return train.main([*arguments, clips, "log_every=1", *overrides])


def test_loss_trains_with_previews_and_exports(folder):
    values = [json.loads(line)["loss"] for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert len(values) == 4 and all(0 < value < 10 for value in values)
    assert len(list((folder / "run/previews/step_0000004").glob("*.mp4"))) == 1
    trained = json.loads((folder / "run/export/transformer/generation_config.json").read_text())
    assert trained["chunk"] == 2 and trained["steps"]["shift"] == 3.0


def test_loss_resumes(folder, caplog):
    caplog.set_level("INFO")
    assert run(folder, "steps=5") == 0 and "resumed at step 4" in caplog.text


def test_loss_refuses_its_own_bad_values(folder, capsys):
    assert run(folder, "trainer.loss.width=0") == 2
    assert "width is 0" in capsys.readouterr().err


def test_loss_is_its_formula():
    config, batch = HuberConfig(width=0.05), sample()
    generation, rng, shape = GenerationConfig(steps=StepsConfig(shift=1.0)), Rng(0), batch.latents.shape[1:]
    network = Affine(0.3, -0.2)
    roles = type("Roles", (), {"generator": network})
    value, _ = config.build(generation)(batch, roles, rng)
    noise = rng.at("sample", 0, "noise").normal_batch(shape, batch.index).double()
    sigma = rows(1 - rng.at("sample", 0, "sigma").uniform_batch((1,), batch.index)[:, 0])
    x = (1 - sigma) * batch.latents + sigma * noise
    error = 0.3 * x - 0.2 * text_mean(batch.condition.text) - (noise - batch.latents)
    assert abs(value - ((error**2 + 0.05**2) ** 0.5 - 0.05).mean()) < BOUND
    wide, _ = replace(config, width=0.5).build(generation)(batch, roles, rng)
    assert abs(value - wide) > 1e-3


def test_source_repeats_the_first_frame(folder):
    roles = type("Roles", (), {"device": "cpu", "condition": staticmethod(lambda prompts, null=True: None)})
    config = SOURCES["stills"].partition(":")[0]
    assert config == "tests.examples.source"
    from tests.examples.source import StillsConfig

    source = StillsConfig(path=str(folder / "clips"), batch=2, frames=4).build(GenerationConfig(chunk=2))
    latents = source.next(0, roles, Rng(0)).latents
    assert torch.equal(latents, latents[:, :1].expand_as(latents)) and latents.std() > 0.1
