"""A checkpoint becomes a file that inference loads: averaged or not, LoRA alone or merged."""

from __future__ import annotations

import json

import pytest
import torch

from scripts import export_checkpoint
from tests import digits_fixture, tolerance
from trainer.build import build
from trainer.config import load_recipe
from utils import lora
from utils.config.text import to_dict
from wan.checkpoint.lora import merge_lora, read_lora
from wan.checkpoint.weights import load_transformer
from wan.generation import FILE


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The recipe of a regression with a one-block network."""
    return digits_fixture.flow_recipe(tmp_path_factory.mktemp("recipe"))


def fit(recipe, run, *overrides):
    """Trains four steps, saving every two, and returns the method."""
    config = load_recipe(recipe, ["steps=4", "checkpoint.every=2", "checkpoint.keep=5", *overrides])[0]
    loop = build(config, run)
    loop.fit()
    return loop.method


def test_average_weights_and_an_older_step(recipe, tmp_path, capsys):
    method = fit(recipe, tmp_path / "run")
    own = dict(method.roles.generator.transformer.named_parameters())
    out = tmp_path / "out.safetensors"
    for flags, wanted in (([], method.ema.shadow), (["--no_ema"], own)):
        assert export_checkpoint.main([str(tmp_path / "run"), str(out), "--dtype", "fp32", *flags]) == 0
        spec, state = load_transformer(out)
        assert spec == method.roles.generator.spec and state.keys() == own.keys()
        assert all(torch.equal(state[n], wanted[n]) for n in own)
    assert export_checkpoint.main([str(tmp_path / "run"), str(out), "--step", "2", "--no_ema", "--dtype", "fp32"]) == 0
    assert json.loads((tmp_path / FILE).read_text()) == to_dict(load_recipe(recipe)[0].generation)
    older = load_transformer(out)[1]
    assert not all(torch.equal(older[n], own[n]) for n in own)
    assert export_checkpoint.main([str(tmp_path / "run"), str(out), "--step", "3"]) == 2
    assert "has no step 3; it has [2, 4]" in capsys.readouterr().err
    weights = next((tmp_path / "run/checkpoints/step_0000002").glob("*.distcp"))
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 4
    weights.write_bytes(raw)
    assert export_checkpoint.main([str(tmp_path / "run"), str(out), "--step", "2"]) == 2
    said = capsys.readouterr().err
    assert f"step_0000002 is damaged ({weights.name} is not what its manifest says)" in said and said.count("\n") == 1


def test_another_way_to_generate_is_not_overwritten(recipe, tmp_path, capsys):
    fit(recipe, tmp_path / "run")
    (tmp_path / FILE).write_text('{"chunk": 7}')
    out = tmp_path / "out.safetensors"
    assert export_checkpoint.main([str(tmp_path / "run"), str(out)]) == 2
    assert "write into a folder of their own" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("ema", ["trainer.ema.start_step=9", "trainer.ema.decay=0"])
def test_where_no_average_has_begun_the_weights_are_written(recipe, tmp_path, capsys, ema):
    own = dict(fit(recipe, tmp_path / "run", ema).roles.generator.transformer.named_parameters())
    out = tmp_path / "out.safetensors"
    assert export_checkpoint.main([str(tmp_path / "run"), str(out), "--dtype", "fp32"]) == 0
    assert "holds no average yet; the weights themselves are written" in capsys.readouterr().err
    assert all(torch.equal(tensor, own[name]) for name, tensor in load_transformer(out)[1].items())


@pytest.mark.parametrize("alpha", [0, 5])
def test_lora_alone_and_merged(recipe, tmp_path, alpha):
    knobs = ("trainer.generator.lora.rank=2", f"trainer.generator.lora.alpha={alpha}", "trainer.ema.decay=0")
    method = fit(recipe, tmp_path / "run", *knobs)
    spec, base = load_transformer(method.config.generator.weights)
    lone, merged = tmp_path / "lora.safetensors", tmp_path / "merged.safetensors"
    assert export_checkpoint.main([str(tmp_path / "run"), str(lone), "--dtype", "fp32"]) == 0
    assert export_checkpoint.main([str(tmp_path / "run"), str(merged), "--dtype", "fp32", "--merge"]) == 0
    state = load_transformer(merged)[1]
    found = read_lora(lone)
    assert set(found.scales.by_module.values()) == {alpha / 2 or 1.0} and "in the header" in found.scales.origin
    wanted = merge_lora({n: t.float() for n, t in base.items()}, found.fit(base, spec).pairs)
    assert all(torch.allclose(state[n], wanted[n], atol=tolerance.rounding(2, 2)) for n in wanted)
    assert any(not torch.equal(state[n], base[n].float()) for n in wanted)
    method.export(tmp_path / "export")
    assert read_lora(tmp_path / "export").scales == read_lora(tmp_path / "export/lora.safetensors").scales
    assert set(read_lora(tmp_path / "export").scales.by_module.values()) == {alpha / 2 or 1.0}


def test_lora_goes_on_in_another_training_at_its_strength(recipe, tmp_path):
    run = tmp_path / "run"
    first = fit(recipe, run, "trainer.generator.lora={rank: 2, alpha: 6}", "trainer.ema.decay=0")
    assert export_checkpoint.main([str(run), str(run / "l.safetensors"), "--dtype", "fp32"]) == 0
    start = f"trainer.generator.lora={{rank: 2, alpha: 1, weights: {run / 'l.safetensors'}}}"
    second = build(load_recipe(recipe, [start])[0], tmp_path / "second").method
    before, after = (lora.layers(m.roles.generator.transformer) for m in (first, second))
    for name, layer in before.items():
        updates = [
            m.scaling["default"] * m.lora_B["default"].weight @ m.lora_A["default"].weight for m in (layer, after[name])
        ]
        assert torch.allclose(*updates, atol=tolerance.rounding(2, 2)) and updates[0].abs().max() > 0
    with pytest.raises(ValueError, match="l.safetensors: the LoRA does not fit.*of another shape.*write the rank"):
        build(load_recipe(recipe, [start.replace("rank: 2", "rank: 4")])[0], tmp_path / "third")


def test_what_is_no_run_is_refused(recipe, tmp_path, capsys):
    assert export_checkpoint.main([str(tmp_path), str(tmp_path / "x.safetensors")]) == 2
    assert "holds no checkpoint; give the folder of a run" in capsys.readouterr().err
    fit(recipe, tmp_path / "run")
    assert export_checkpoint.main([str(tmp_path / "run"), str(tmp_path / "x"), "--merge"]) == 2
    assert "trained no LoRA" in capsys.readouterr().err
