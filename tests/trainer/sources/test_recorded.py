"""Sources of recorded data: what a step sees, and short runs of the objectives that need them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

import train
from model.config import OdeConfig
from tests import digits_fixture, tiny
from tests.digits_fixture import DIGITS
from trainer.roles import Roles
from trainer.sources.config import LatentsConfig, NoisedDataConfig, OdePairsConfig, RolloutConfig
from trainer.sources.latents import epoch_row
from trainer.sources.recorded import NoisedData
from utils.config.field import check
from utils.data.latents import LatentFolder
from utils.data.lmdb_store import write_lmdb
from utils.data.pairs import PairFolder, write_pairs
from utils.rng import Rng
from wan.denoiser import Denoiser
from wan.generation import GenerationConfig, StepsConfig
from wan.ledger import CacheConfig
from wan.schedule import step_sigmas

STEPS, SHIFT = (1000.0, 500.0), 3.0
SIGMAS = (*step_sigmas(STEPS, SHIFT), 0.0)
RNG = Rng(3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a digits model of one small block."""
    return digits_fixture.model_folder(tmp_path_factory.mktemp("model"), num_layers=1, ffn_dim=64)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six encoded clips of 4 latent frames."""
    return digits_fixture.latent_folder(tmp_path_factory.mktemp("clips"), num_clips=6)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Five trajectories of 4 latent frames at the sigmas of STEPS."""
    folder = tmp_path_factory.mktemp("pairs")
    prompts = [digits_fixture.PROMPTS[i % 3] for i in range(5)]
    write_pairs(folder, 0, tiny.draw("pairs", shape=(5, 3, 4, 16, 4, 4)), prompts, SIGMAS)
    return folder


def roles(**sizes) -> Roles:
    """A tiny generator for latents of 16 channels, and a text encoder of zeros."""
    network = tiny.denoiser(0, in_dim=16, out_dim=16, **sizes)
    text = lambda prompts: torch.zeros(len(prompts), 4, tiny.SPEC.text_dim)  # noqa: E731
    return Roles(network, text, torch.device("cpu"))


GENERATION = GenerationConfig(2, steps=StepsConfig(STEPS, SHIFT))


def noised(clips, **changes) -> NoisedData:
    """Returns a source of noised clips."""
    return NoisedDataConfig(**{"clips": str(clips), "batch": 2, "frames": 4, **changes}).build(GENERATION)


def test_noised_data_depends_on_the_step_alone(clips):
    source = noised(clips)
    source.next(5, roles(), RNG)
    again, fresh = source.next(2, roles(), RNG), noised(clips).next(2, roles(), RNG)
    assert torch.equal(again.latents, fresh.latents) and again.prompts == fresh.prompts
    other = source.next(3, roles(), RNG)
    assert list(other.index) == [6, 7] and not torch.equal(other.latents, again.latents)
    assert torch.equal(again.condition.null().text, torch.zeros(2, 4, tiny.SPEC.text_dim))


def test_an_epoch_sees_each_clip_once(clips):
    count = len(LatentFolder(clips))
    for epoch in range(2):
        assert sorted(epoch_row(i, count, RNG) for i in range(epoch * count, (epoch + 1) * count)) == [*range(count)]
    assert [epoch_row(i, count, RNG) for i in range(2 * count)][:count] != [
        epoch_row(i, count, RNG) for i in range(count, 2 * count)
    ]


def test_noised_data_draws_the_students_levels_per_chunk(clips):
    source = noised(clips, clean_step=True)
    sigma = torch.cat([source.draw_sigma(step, RNG, range(8)) for step in range(8)])
    assert torch.equal(sigma[:, ::2], sigma[:, 1::2]), "one level a chunk"
    wanted = [0.0, *sorted(step_sigmas(STEPS, SHIFT))]
    assert sorted(set(sigma.flatten().tolist())) == pytest.approx(wanted)
    assert not torch.equal(sigma[:, 0], sigma[:, 2]), "chunks draw apart"


@pytest.mark.parametrize("teacher_forcing", [False, True])
def test_gradient_follows_graded(clips, teacher_forcing):
    source, networks = noised(clips, teacher_forcing=teacher_forcing), roles()
    networks.generator.requires_grad_(True)
    assert source.next(0, networks, RNG).latents.requires_grad
    sample = source.next(0, networks, RNG, with_grad=False)
    assert not sample.latents.requires_grad
    assert sample.real.shape == sample.latents.shape and not torch.allclose(sample.real, sample.latents)
    assert source.config.fills >= {"latents", "condition", "null", "spans", "real"}


def test_a_clean_chunk_stays_as_it_is(clips):
    source = noised(clips, clean_step=True)
    step = next(s for s in range(99) if (source.draw_sigma(s, RNG, range(2 * s, 2 * s + 2))[0, :2] == 0).all())
    sample = source.next(step, roles(), RNG)
    assert torch.equal(sample.latents[0, :2], sample.real[0, :2])


def test_clips_may_lie_in_an_lmdb(clips, tmp_path):
    folder = LatentFolder(clips)
    write_lmdb(tmp_path / "store", (folder[i] for i in range(len(folder))))
    a, b = (noised(path).next(1, roles(), RNG) for path in (clips, tmp_path / "store"))
    assert a.prompts == b.prompts and tiny.error(a.real, b.real) < 2e-3, "stored in fp16"
    latents = LatentsConfig(str(tmp_path / "store"), batch=2, frames=4).build(GENERATION).next(0, roles(), RNG)
    assert latents.latents.shape == a.real.shape


def test_ode_pairs_fill_trajectories(pairs):
    source = OdePairsConfig(str(pairs), batch=3, frames=2).build(GENERATION)
    sample = source.next(0, roles(), RNG)
    assert sample.trajectory.shape == (3, 3, 2, 16, 4, 4) and sample.latents is None
    stored = PairFolder(pairs)
    rows = [stored[epoch_row(i, 5, RNG)] for i in range(3)]
    assert list(sample.prompts) == [p for _, p in rows]
    assert torch.equal(sample.trajectory[1], rows[1][0][:, :2].float())


def test_ode_loss_refuses_other_levels(pairs):
    source = OdePairsConfig(str(pairs), batch=1, frames=4).build(GENERATION)
    OdeConfig().build(GENERATION).check_trajectory(source.num_states, source.sigmas)
    for steps, words in (((STEPS, 5.0), "make pairs for these steps"), (((1000.0,), SHIFT), "3 states")):
        loss = OdeConfig().build(GenerationConfig(2, steps=StepsConfig(*steps)))
        with pytest.raises(ValueError, match=words):
            loss.check_trajectory(source.num_states, source.sigmas)


def test_a_rollout_on_clips_keeps_prompt_and_clip_together(clips):
    config = RolloutConfig(clips=str(clips), batch=2, frames=2, loss_frames=2, height=32, width=32)
    generation = GenerationConfig(1, steps=StepsConfig((1000.0,)))
    network = Denoiser(tiny.transformer(0, **asdict(DIGITS)))
    text = lambda prompts: torch.zeros(len(prompts), 4, DIGITS.text_dim)  # noqa: E731
    vae = SimpleNamespace(strides=(4, 8, 8))
    stand_in = Roles(network, text, torch.device("cpu"), vae=vae)
    sample, stored = config.build(generation).next(1, stand_in, RNG), LatentFolder(clips)
    rows = [stored[epoch_row(i, len(stored), RNG)] for i in (2, 3)]
    assert sample.prompts == [prompt for _, prompt in rows]
    assert torch.equal(sample.real, torch.stack([clip[:2] for clip, _ in rows]))
    assert sample.latents.shape == sample.real.shape


@pytest.mark.parametrize("changes, why", [({"on_bad": "cry"}, "skip"), ({"batch": 0}, "batch")])
def test_wrong_knobs_are_refused(clips, changes, why):
    with pytest.raises(ValueError, match=why):
        check(NoisedDataConfig(clips=str(clips), **changes))


@pytest.mark.parametrize(
    "generation, why",
    [
        (GenerationConfig(2), "noised data needs generation.steps.steps"),
        (replace(GENERATION, chunk=3), "do not fill"),
        (replace(GENERATION, cache=CacheConfig(rope="read")), "masked forward"),
    ],
)
def test_generation_that_does_not_fit_noised_data(generation, why):
    config = NoisedDataConfig("clips", frames=4)
    assert not list(config.problems_with(GENERATION))
    assert why in "".join(config.problems_with(generation))


def test_clips_that_are_too_short_are_refused(clips, pairs):
    with pytest.raises(ValueError, match="frames is 6"):
        noised(clips, frames=6)
    with pytest.raises(ValueError, match="frames is 6"):
        OdePairsConfig(str(pairs), frames=6).build(GENERATION)


ODE = """
model: {model}
steps: 2
log_every: 1
generation: {{chunk: 2, steps: {{steps: [1000, 500], shift: 3.0}}}}
trainer:
  generator: {{weights: {model}/transformer}}
  source: {{name: ode_pairs, path: {pairs}, batch: 2, frames: 4}}
  loss: {{name: ode}}
  text: {{dtype: fp32}}
"""
CAUSVID = """
model: {model}
steps: 2
log_every: 1
generation: {{chunk: 2, steps: {{steps: [1000, 500], shift: 3.0}}}}
trainer:
  name: distill
  generator: {{weights: {model}/transformer}}
  teacher: {{weights: {model}/transformer}}
  critic: {{weights: {model}/transformer}}
  source: {{name: noised_data, clips: {clips}, batch: 2, frames: 4}}
  loss: {{name: dmd, score: {{real_guidance: 3.0, shift: 3.0}}}}
  critic_updates_per_generator_update: 1
  text: {{dtype: fp32}}
"""


@pytest.mark.parametrize("recipe", [ODE, CAUSVID], ids=["ode", "causvid"])
def test_train_runs(recipe, model, clips, pairs, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.format(model=model, clips=clips, pairs=pairs))
    assert train.main(["--config_path", str(path), "--logdir", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    row = json.loads(lines[-1])
    norm = row["grad_norm"] if recipe is ODE else row["generator_grad_norm"]
    assert math.isfinite(row["loss"]) and norm > 0
    assert (tmp_path / "run/export/transformer/diffusion_pytorch_model.safetensors").exists()


def test_pairs_of_other_levels_end_a_run_before_a_model_is_built(pairs, tmp_path, capsys, monkeypatch):
    model, path = digits_fixture.model_folder(tmp_path / "model", num_layers=1, ffn_dim=64), tmp_path / "recipe.yaml"
    monkeypatch.setattr("trainer.roles.RoleConfig.build", None)
    path.write_text(ODE.format(model=model, pairs=pairs))
    status = train.main(["--config_path", str(path), "--logdir", str(tmp_path / "run"), "generation.steps.shift=5.0"])
    assert status == 2 and "make pairs for these steps" in capsys.readouterr().err


def test_noised_data_of_a_first_chunk_has_its_levels(clips):
    """A chunk at a video's start is noised as `first_steps` say; the others draw what they drew."""
    first, config = (1000.0, 800.0, 600.0), NoisedDataConfig(clips=str(clips), batch=64, frames=4)
    plain = NoisedData(config, GenerationConfig(2, steps=StepsConfig(STEPS, SHIFT)))
    own = NoisedData(config, GenerationConfig(2, steps=StepsConfig(STEPS, SHIFT, first_steps=first)))
    before, after = (source.draw_sigma(1, RNG, range(64)) for source in (plain, own))
    assert torch.equal(before[:, 2:], after[:, 2:]) and torch.equal(after[:, 0], after[:, 1])
    assert set(after[:, 0].tolist()) == set(torch.tensor(step_sigmas(first, SHIFT)).tolist())
    assert set(before[:, 0].tolist()) == set(torch.tensor(SIGMAS[:-1]).tolist())
