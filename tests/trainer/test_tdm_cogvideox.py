"""TDM of CogVideoX at tiny size: the same loss and source, on the times of its own clock, LoRA and encoded prompts."""

from __future__ import annotations

import pytest
import torch

import inference
import train
from scripts import encode_prompts
from tests import digits_fixture
from tests.cogvideox import folder
from trainer.build import build
from trainer.config import load_recipe
from wan.schedule import vp_sigmas, vp_time

RECIPE = """
model: {model}
steps: 2
log_every: 1
generation: {{steps: {{steps: [1000, 750, 500, 250], clock: vp, shift: 1.0, eta: 0.9}}}}
trainer:
  name: distill
  generator: {{weights: {model}/transformer, lora: {{rank: 2, targets: 'transformer_blocks'}}}}
  teacher: {{weights: {model}/transformer}}
  critic: {{weights: {model}/transformer, lora: {{rank: 2, targets: 'transformer_blocks'}}}}
  source: {{name: trajectory, prompts: {store}/prompts.txt, batch: 2, frames: 3, height: 32, width: 48}}
  loss: {{name: tdm, guidance: 3.5, critic_weight: vp, regulariser: 0.5, normalise: true}}
  optim: {{name: adamw, lr: 1.0e-3}}
  critic_optim: {{name: adamw, lr: 1.0e-3}}
  critic_updates_per_generator_update: 1
  ema: {{decay: 0.0}}
  text: {{name: encoded, path: {store}}}
  negative_prompt: " "
"""


@pytest.fixture
def recipe(tmp_path):
    model, store = folder.write(tmp_path / "model"), tmp_path / "store"
    (tmp_path / "prompts.txt").write_text("\n".join(digits_fixture.PROMPTS))
    flags = ["--model", model, "--prompts", tmp_path / "prompts.txt", "--output", store]
    flags += ["--negative_prompt", " ", "--dtype", "fp32"]
    assert digits_fixture.exit_status(encode_prompts.main, list(map(str, flags))) == 0
    path = tmp_path / "tdm.yaml"
    path.write_text(RECIPE.format(model=model, store=store))
    return path


def test_a_student_is_told_integer_times_and_learns(recipe, tmp_path):
    method, told = build(load_recipe(recipe)[0], tmp_path / "run").method, []
    for role in (method.roles.generator, method.roles.teacher, method.roles.critic):
        role.register_forward_pre_hook(
            lambda module, given: told.append(torch.as_tensor(given[1], dtype=torch.float64).flatten())
        )
    before = {n: p.detach().clone() for n, p in method.roles.generator.named_parameters() if p.requires_grad}
    metrics = [method.step(step) for step in range(2)]
    assert all(torch.isfinite(value) for found in metrics for value in found.values())
    assert any((before[n] - p).abs().max() > 0 for n, p in method.roles.generator.named_parameters() if n in before)
    times = vp_time(torch.cat(told), 1.0)
    assert (times - times.round()).abs().max() == 0 and torch.isin(torch.cat(told), vp_sigmas(1.0)).all()


def test_a_training_ends_in_a_lora_that_generates(recipe, tmp_path):
    run = tmp_path / "run"
    assert digits_fixture.exit_status(train.main, ["--config_path", str(recipe), "--logdir", str(run)]) == 0
    assert list((run / "export").rglob("*.safetensors"))
    text = f"""
model: {{path: {tmp_path / "model"}, dtype: fp32}}
pipeline: {{name: bidirectional}}
generation: {{steps: {{steps: [1000, 750, 500, 250], clock: vp, shift: 1.0, eta: 0.9}}}}
sampler: {{name: few_step}}
num_output_frames: 3
height: 32
width: 48
data: {{prompt: a red three}}
"""
    (tmp_path / "infer.yaml").write_text(text)
    flags = ["--config_path", tmp_path / "infer.yaml", "--lora_path", run / "export"]
    flags += ["--output_folder", tmp_path / "out", "text.dtype=fp32"]
    assert digits_fixture.exit_status(inference.main, list(map(str, flags))) == 0
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 1


def test_chunk_by_chunk_is_refused_before_a_network_is_built(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trainer.roles.build_network", lambda *a, **k: pytest.fail("a network was built"))
    flags = ["--config_path", str(recipe), "--logdir", str(tmp_path / "run"), "trainer.source.mode=causal"]
    assert digits_fixture.exit_status(train.main, [*flags, "generation.chunk=3"]) == 2
    assert "see whole clips" in (said := capsys.readouterr().err) and "mode=bidirectional" in said
