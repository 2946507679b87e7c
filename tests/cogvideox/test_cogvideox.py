"""CogVideoX by the project's own commands: folders, sizes, positions, sparse attention, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import inference
from cogvideox.spec import SPECS
from cogvideox.transformer import fit
from cogvideox.vae import build_vae
from tests import tiny, tolerance
from tests.architecture.source import ROOT
from tests.cogvideox import folder as cog
from tests.parity import __main__ as parity
from wan.attention import selector
from wan.attention.config import AsaConfig
from wan.checkpoint.library import load_vae
from wan.checkpoint.weights import read_weights
from wan.condition import Condition
from wan.context import Cached, Full
from wan.family import get_family, spec_for
from wan.ledger import CacheConfig
from wan.schedule import vp_sigmas, vp_time

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
MANIFESTS = parity.__file__.replace("__main__.py", "manifests")
RECIPE = """
model: {{path: {model}, dtype: fp32}}
pipeline: {{name: bidirectional}}
generation: {{steps: {{clock: vp, shift: 1.0}}}}
sampler: {{name: multi_step, solver: {solver}, num_steps: 3, guidance: 3.0}}
text: {{dtype: fp32}}
height: 32
width: 48
num_output_frames: 3
threads: 1
"""


def shapes(module) -> dict:
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", ["5B", "2B"])
def test_full_size_is_the_published_one(name):
    wanted = json.loads(open(f"{MANIFESTS}/cogvideox_{name.lower()}_transformer.json").read())["state_dict"]
    with torch.device("meta"):
        network = cog.FAMILY.network(SPECS[f"cogvideox-{name}"].transformer)
    assert shapes(network) == wanted


def test_full_size_vae_is_the_published_one():
    told = json.loads(open(f"{MANIFESTS}/cogvideox_vae.json").read())
    assert shapes(build_vae(told["config"], "meta")) == told["state_dict"]


def test_times_are_exact_at_the_table_and_rise_between():
    for shift in (1.0, 3.0):
        table = vp_sigmas(shift)
        assert torch.equal(vp_time(table, shift), torch.arange(1000.0).double())
        between = vp_time((table[1:] + table[:-1]) / 2, shift)
        assert ((between > torch.arange(999)) & (between < torch.arange(1, 1000)))[:-1].all()
        assert vp_time(torch.tensor([0.0]), shift) == 0 and vp_time(torch.tensor([1.0]), shift) == 999


def test_positions_of_other_sizes_are_fitted_to_the_samples():
    assert fit((30, 45), (30, 45)) == ((0, 0), (30, 45))
    assert fit((4, 4), (4, 6)) == ((0, 1), (4, 5)) and fit((2, 6), (4, 6)) == ((1, 0), (3, 6))


def test_wan_loader_refuses_the_vae_of_cogvideox_by_name(tmp_path):
    folder = cog.write(tmp_path / "model") / "vae"
    with pytest.raises(ValueError, match="holds vae, cogvideox weights, no Wan VAE"):
        load_vae(folder)


def velocity(model, frames: int = 3, sigma=0.6, rows: int = 4, columns: int = 6) -> torch.Tensor:
    x = tiny.draw("x", shape=(2, frames, 4, rows, columns))
    text = tiny.draw("text", shape=(2, cog.SPEC.text_len, cog.SPEC.text_dim))
    return model(x, sigma, Condition(text, None), Full())


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("order", ["frame", "clip"])
def test_sparse_with_everything_kept_is_dense(order, rotary, float64):
    spec = replace(cog.SPEC, rotary=rotary)
    wanted = tiny.healthy(velocity(cog.denoiser(spec)))
    for share in (1.0, 0.3):
        model = cog.denoiser(spec)
        selector.apply(model.transformer, AsaConfig(block=8, order=order, threshold=1.0, min=share, max=share))
        error = tiny.error(velocity(model), wanted)
        assert error < tolerance.rounding(200, 60, dtype=torch.float64) if share == 1 else error > 1e-4
        forced = model.transformer.sequence.statistics.take()["forced"]
        assert forced > 0, "text is always read"


def test_recomputing_activations_changes_no_gradient(float64):
    grads = []
    for checkpointing in (False, True):
        model = cog.denoiser().requires_grad_(True)
        model.transformer.checkpointing = checkpointing
        selector.apply(model.transformer, AsaConfig(block=8, max=0.4))
        velocity(model).square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) > 40 and all(tiny.error(a, b) == 0 for a, b in zip(*grads, strict=True))


def test_what_it_cannot_do_is_refused():
    model = cog.denoiser()
    for call, words in {
        lambda: velocity(model, columns=5): "must tile them",
        lambda: model(tiny.draw("x", shape=(1, 3, 4, 4, 6)), 0.5, tiny.condition(), Full()): "its own encoder",
        lambda: model(tiny.draw("x", shape=(1, 3, 4, 4, 6)), 0.5, tiny.condition(), cached()): "bidirectional",
    }.items():
        with pytest.raises(ValueError, match=words):
            call()


def cached() -> Cached:
    return Cached(tiny.ring(tiny.denoiser(), CacheConfig(3), 1), tiny.spans(1)[0])


def test_other_versions_are_refused_by_name(tmp_path):
    config = {"_class_name": "CogVideoXTransformer3DModel", "num_attention_heads": 2, "attention_head_dim": 16}
    with pytest.raises(ValueError, match="CogVideoX 1.5"):
        cog.FAMILY.read_config({**config, "patch_size_t": 2}, "config.json")
    with pytest.raises(ValueError, match="continues a picture"):
        cog.FAMILY.read_config({**config, "use_learned_positional_embeddings": True}, "config.json")
    state = {name: torch.empty(shape) for name, shape in shapes(cog.denoiser().transformer).items()}
    with pytest.raises(ValueError, match="CogVideoX 1.5"):
        cog.FAMILY.measure(state | {"patch_embed.proj.weight": torch.empty(32, 32)})


@pytest.mark.parametrize("solver", ["euler", "dpm_sde"])
def test_a_folder_generates(tmp_path, solver):
    model = cog.write(tmp_path / "model")
    weights = read_weights(model)
    assert weights.spec == cog.SPEC and get_family(weights.spec).class_name == "CogVideoXTransformer"
    assert spec_for(weights.spec, (4, 8, 8)).name == "custom"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model, solver=solver))
    out, words = tmp_path / "out", ["--config_path", str(recipe), "--prompt", "a red three moves right"]
    assert inference.main([*words, "--output_folder", str(out)]) == 0
    (video,) = out.glob("*.mp4")
    assert video.stat().st_size > 500
    facts = json.loads(video.with_suffix(".json").read_text())
    assert facts["asked"]["config"]["generation"]["steps"]["clock"] == "vp"
    assert inference.main([*words, "--output_folder", str(tmp_path / "no"), "pipeline.name=causal"]) == 2
    assert inference.main([*words, "--output_folder", str(tmp_path / "no"), "sampler.solver=unipc"]) == 2
    assert not (tmp_path / "no").exists() or not list((tmp_path / "no").glob("*.mp4"))


TRAIN = """
model: {model}
steps: 2
checkpoint: {{every: 2}}
generation: {{steps: {{clock: vp, shift: 1.0, steps: [1000, 500], eta: 0.9}}}}
preview: {{every: 2, count: 1, num_frames: 3, height: 32, width: 48}}
trainer:
  name: distill
  generator:
    weights: {model}
    checkpointing: true
    sparse: {{name: asa, block: 8, order: clip, max: 0.4}}
    lora: {lora}
  teacher: {{weights: {model}}}
  critic: {{weights: {model}, lora: {lora}}}
  source: {{name: trajectory, prompts: {prompts}, batch: 2, frames: 3, height: 32, width: 48}}
  loss: {{name: tdm, guidance: 3.5, critic_weight: vp, normalise: true, regulariser: 0.5}}
  critic_updates_per_generator_update: 1
  text: {{dtype: fp32}}
"""
LORA = r"{rank: 2, alpha: 2, targets: 'transformer_blocks\.\d+\.attn1\.(to_[qkv]|to_out\.0)$'}"


@pytest.mark.dist
def test_a_sparse_lora_student_trains_on_two_ranks_exports_and_generates(tmp_path):
    model = cog.write(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a red three moves right\na blue two moves left\n")
    recipe = tmp_path / "train.yaml"
    recipe.write_text(TRAIN.format(model=model, prompts=tmp_path / "prompts.txt", lora=LORA))
    run = tmp_path / "run"
    done = subprocess.run(
        [*TORCHRUN, "--nproc_per_node=2", "train.py", "--config_path", str(recipe), "--logdir", str(run)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any(0 < row.get("generator_sparsity", row.get("sparsity", 0)) < 1 for row in rows)
    lora = run / "export/lora.safetensors"
    names = list(load_file(lora))
    assert any("transformer_blocks.1.attn1.to_out.0.lora_A" in name for name in names), names[:4]
    infer = tmp_path / "infer.yaml"
    text = RECIPE.format(model=model, solver="euler").splitlines()
    infer.write_text("\n".join(line for line in text if not line.startswith(("sampler", "generation"))))
    words = ["--config_path", str(infer), "--prompt", "a red three moves right", "--lora_path", str(lora)]
    assert inference.main([*words, "--output_folder", str(tmp_path / "out")]) == 0
    (video,) = (tmp_path / "out").glob("*.mp4")
    facts = json.loads(video.with_suffix(".json").read_text())["asked"]["config"]
    assert facts["model"]["sparse"]["max"] == 0.4 and facts["generation"]["steps"]["steps"] == [1000, 500]
