"""A backbone family is one folder and one line: it trains, previews, exports, and its export generates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import train
import wan
from scripts import convert_weights, export_checkpoint
from tests import digits_fixture, tiny
from tests.architecture.source import ROOT
from tests.examples.gain_family.family import SMALL
from trainer.build import build
from trainer.config import load_recipe
from wan.checkpoint.identify import identify
from wan.checkpoint.weights import read_weights
from wan.family import families, get_family, published_specs

LINE = {"gain": "tests.examples.gain_family.family:Gain"}
RECIPE = ROOT / "tests/examples/gain_family/gain.yaml"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The one line in `wan.FAMILIES`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(wan.FAMILIES, *next(iter(LINE.items())))
        yield


@pytest.fixture(scope="module")
def run(registered, tmp_path_factory) -> Path:
    """A trained run with previews."""
    folder = tmp_path_factory.mktemp("gain")
    clips = digits_fixture.latent_folder(folder / "clips")
    arguments = ["--config_path", str(RECIPE), "--logdir", str(folder / "run")]
    assert train.main([*arguments, f"model={ROOT / 'assets/digits'}", f"trainer.source.path={clips}"]) == 0
    return folder / "run"


@pytest.fixture
def door(tmp_path, capsys):
    """Runs inference.py on the digits model: its VAE and text encoder serve the example's checkpoints."""
    model = ROOT / "assets/digits"
    return digits_fixture.Door(digits_fixture.write_recipe(tmp_path / "recipe.yaml", model), model, capsys)


def generate(door, checkpoint: Path, out: Path) -> bytes:
    """Returns the video that a checkpoint generates."""
    status = door("--prompt", digits_fixture.PROMPTS[0], "--checkpoint_path", checkpoint, "--output_folder", out)
    assert status == 0, door.error
    (video,) = digits_fixture.videos(out).values()
    return video


def test_it_trains_and_exports_what_tells_its_family(run):
    state = load_file(run / "export/transformer" / WEIGHTS)
    assert (state["blocks.0.gain"].float() - SMALL.start_gain).abs().min() > 1e-3, "the gains were trained"
    config = json.loads((run / "export/transformer/config.json").read_text())
    assert config["_class_name"] == "GainTransformer" and config["start_gain"] == SMALL.start_gain
    assert len(list((run / "previews/step_0000004").glob("*.mp4"))) == 1
    assert read_weights(run / "export/transformer").spec == SMALL


def test_its_export_generates(run, door, tmp_path):
    export = run / "export/transformer"
    video = generate(door, export, tmp_path / "a")
    facts = json.loads(next((tmp_path / "a").glob("*.json")).read_text())
    assert facts["model"] == "gain-digits" and facts["fps"] == 8
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text((export / "config.json").read_text())
    state = load_file(export / WEIGHTS)
    save_file(state | {"blocks.0.gain": -state["blocks.0.gain"]}, other / WEIGHTS)
    assert generate(door, other, tmp_path / "b") != video, "the gain is in use"


def test_a_checkpoint_of_a_run_becomes_a_file_that_generates_the_same(run, door, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert export_checkpoint.main([str(run), str(out)]) == 0
    assert read_weights(out).sizes.origin == f"the header of {out}" and read_weights(out).spec == SMALL
    assert generate(door, out, tmp_path / "a") == generate(door, run / "export/transformer", tmp_path / "b")
    again = tmp_path / "again.safetensors"
    assert convert_weights.main(["convert", str(run / "export/transformer"), str(again), "--to", "longtake"]) == 0
    assert load_file(again).keys() == load_file(out).keys()
    assert all(torch.equal(tensor, load_file(out)[name]) for name, tensor in load_file(again).items())
    capsys.readouterr()
    assert convert_weights.main(["convert", str(out), str(tmp_path / "x"), "--to", "diffusers"]) == 2
    assert "GainTransformer has no diffusers layout; write --to longtake" in capsys.readouterr().err
    assert convert_weights.main(["inspect", str(run / "export/transformer")]) == 0
    assert "gain transformer" in capsys.readouterr().out and identify(out).size == "gain-digits"


def test_it_is_teacher_critic_and_generator(run, tmp_path):
    recipe, _ = digits_fixture.distill_recipe(tmp_path)
    weights = f"{{weights: {run / 'export/transformer'}}}"
    roles = [f"trainer.{name}={weights}" for name in ("generator", "teacher", "critic")]
    method = build(load_recipe(recipe, roles)[0], tmp_path / "run").method
    before = method.roles.generator.transformer.blocks[0].gain.detach().clone()
    method.step(0)
    assert type(method.roles.teacher.spec) is type(SMALL)
    assert not torch.equal(method.roles.generator.transformer.blocks[0].gain, before)


def test_the_families_are_told_apart(run, tmp_path):
    digits = read_weights(ROOT / "assets/digits/transformer", shapes_only=True)
    assert get_family(digits.spec).class_name == "WanTransformer" and get_family(SMALL).class_name == "GainTransformer"
    names = [family.class_name for family in families()]
    assert names == ["GainTransformer", "CogVideoXTransformer", "WanS2VTransformer", "WanTransformer"]
    assert {"gain-digits", "digits", "t2v-1.3B"} <= published_specs().keys()


def test_without_its_line_the_file_is_refused(run, monkeypatch):
    monkeypatch.delitem(wan.FAMILIES, "gain")
    with pytest.raises(ValueError, match=r"1 unexpected: blocks.0.gain"):
        read_weights(run / "export/transformer").build()
    with pytest.raises(ValueError, match=r"sizes of .*export/transformer/config.json"):
        read_weights(run / "export/transformer").build()


def test_weights_of_another_family_are_named(run, door, tmp_path):
    said = door.fails(
        "--prompt",
        digits_fixture.PROMPTS[0],
        "--checkpoint_path",
        run / "export/transformer",
        "--output_folder",
        tmp_path / "out",
        "model.spec=digits",
    )
    assert "holds weights of a GainTransformer, and model.spec=digits is a WanTransformer" in said


def test_a_fresh_gain_is_in_use():
    network = get_family(SMALL).network(SMALL)
    assert set(network.state_dict()) - set(tiny.transformer(num_layers=1).state_dict()) == {"blocks.0.gain"}
    assert torch.equal(network.blocks[0].gain, torch.full((SMALL.dim,), SMALL.start_gain))
