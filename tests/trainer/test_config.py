"""Wrong training configurations fail before a model is built; the door says so in one line."""

from __future__ import annotations

import json

import pytest
import torch

import train
from tests import digits_fixture
from trainer.build import build
from trainer.config import load_recipe
from trainer.sources.config import LatentsConfig
from utils.rng import Rng
from wan.condition import Condition
from wan.generation import GenerationConfig

WRONG = [
    (["trainer.loss.name=flwo"], "flow"),
    (["trainer.loss.mode=causal"], "write one of"),
    (["trainer.loss.weight=bells"], "write uniform or bell"),
    (["trainer.loss.clean_chunks=1"], "clean_chunks is 1; write less"),
    (["generation.cache.rope=read"], "rope=read is not a single masked forward"),
    (["trainer.source.frames=5"], "5 latent frames do not fill chunks of 2"),
    (["trainer.source.frames=6"], "holds clips of 4 latent frames; frames is 6"),
    (["trainer.source.path="], "path is empty"),
    (["trainer.source.path=no/such/folder"], "trainer.source.path: no/such/folder is not there"),
    (["trainer.source.dropout=1"], "dropout is 1: no sample"),
    (["trainer.source.name=latent"], "latents"),
    (["trainer.generator.spec=digits"], "either spec .* or weights"),
    (["trainer.generator.weights="], "either spec .* or weights"),
    (["trainer.generator={spec: digit}"], "is unknown; write one of"),
    (["trainer.optim.name=sgd"], "write adamw or muon"),
    (["trainer.ema.decay=1"], "decay is 1, an average that never moves"),
    (["trainer.name=regres"], "regress"),
    (["steps=0"], "steps is 0; write 1 to"),
    (["checkpoint.keep=0"], "checkpoint.keep is 0; write 1 to"),
    (["generation.cache={window_frames: 2, sink_frames: 1}"], "smaller than sink_frames 1"),
    (["trainer.loss.mode=teacher_forcing", "generation.cache.window_frames=1"], "write at least 2"),
]


@pytest.mark.parametrize(("overrides", "words"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_wrong_configurations_fail_before_a_model_is_built(recipe, tmp_path, monkeypatch, overrides, words):
    monkeypatch.setattr("wan.backbone.Wan.denoiser", None)
    monkeypatch.setattr("wan.backbone.Wan.open_text", None)
    overrides = [o.replace("trainer.generator={", "trainer.generator={weights: '', ") for o in overrides]
    with pytest.raises(ValueError, match=words):
        build(load_recipe(recipe, overrides)[0], tmp_path)


def test_rotation_of_a_cache_means_nothing_to_a_bidirectional_loss(config):
    config("trainer.loss.mode=bidirectional", "generation.cache.rope=read")


def test_a_source_that_does_not_fill_what_the_loss_needs(config, monkeypatch):
    monkeypatch.setattr("trainer.sources.config.LatentsConfig.fills", frozenset({"latents"}))
    with pytest.raises(ValueError, match="loss flow needs condition, which source latents does not give"):
        config()


def test_a_loss_with_a_critic_is_a_distillation_and_no_regression(config):
    with pytest.raises(ValueError, match="loss dmd trains a critic too; write trainer.name=distill"):
        config("trainer.loss.name=dmd")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trainer.loss.mode=causal"], "mode is 'causal'"),
        (["trainer.generator.weights=no/such/file.pt"], "no/such/file.pt"),
        (["model=no/such/model"], "no/such/model"),
        (["step=3"], "steps"),
    ],
)
def test_the_door_refuses_with_a_message(recipe, tmp_path, capsys, arguments, words):
    assert train.main(["--config_path", str(recipe), "--logdir", str(tmp_path), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_the_door_reports_an_interrupt(recipe, tmp_path, capsys, monkeypatch):
    def interrupted(loop, resume):
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.loop.Loop.fit", interrupted)
    assert train.main(["--config_path", str(recipe), "--logdir", str(tmp_path)]) == 130
    assert "go on from the last checkpoint" in capsys.readouterr().err


SINGLE = GenerationConfig(1)  # frames


class Text:
    """Notes the prompts it is asked for."""

    device = torch.device("cpu")

    def __init__(self):
        self.requested = []

    def condition(self, prompts, null=True):
        self.requested += prompts
        return Condition(torch.zeros(len(prompts), 2, 3))


def test_dropout_share_and_what_a_sample_depends_on(tmp_path):
    folder = digits_fixture.latent_folder(tmp_path / "latents", num_clips=6, num_frames=4)
    source = LatentsConfig(str(folder), batch=4, frames=2, dropout=0.25).build(SINGLE)
    roles, rng = Text(), Rng(0)
    samples = [source.next(step, roles, rng) for step in range(500)]
    share = roles.requested.count("") / len(roles.requested)
    assert abs(share - 0.25) < 0.03  # 2000 draws: 3 standard deviations
    assert samples[7].latents.shape == (4, 2, 16, 4, 4) and list(samples[7].index) == [28, 29, 30, 31]
    again = LatentsConfig(str(folder), batch=4, frames=2, dropout=0.25).build(SINGLE).next(7, Text(), Rng(0))
    assert torch.equal(again.latents, samples[7].latents) and again.prompts == samples[7].prompts
    # A sample is keyed by its place in the global batch, not by the batch it is cut into.
    wide = LatentsConfig(str(folder), batch=8, frames=2, dropout=0.25).build(SINGLE).next(3, Text(), Rng(0))
    assert [s.index for s in (wide,)] == [range(24, 32)]
    kept = {(p, tuple(x.flatten()[:3].tolist())) for s in samples for p, x in zip(s.prompts, s.latents, strict=True)}
    pairs = {p: {x for q, x in kept if q == p} for p in digits_fixture.PROMPTS}
    assert all(len(xs) == 2 for xs in pairs.values()), "a prompt met a clip that is not its own"


def test_new_shards_are_seen_by_a_growing_source(tmp_path):
    folder = digits_fixture.latent_folder(tmp_path / "latents", num_clips=2)
    source = LatentsConfig(str(folder), batch=1, frames=2, growing=True).build(SINGLE)
    digits_fixture.write_shard(folder, 1, torch.zeros(3, 4, 16, 4, 4), ["x"] * 3)
    source.next(1, Text(), Rng(0))
    assert len(source.clips) == 2
    source.next(100, Text(), Rng(0))
    assert len(source.clips) == 5


def test_a_damaged_shard_is_named(tmp_path):
    folder = digits_fixture.latent_folder(tmp_path / "latents")
    (folder / "shard_00001.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="shard_00001.safetensors is damaged"):
        LatentsConfig(str(folder), frames=2).build(SINGLE)


@pytest.mark.parametrize("bad", [b"\xff\xfe{}", b"[" * 5000, b'{"loss": 1}', b'["step"]', b"\x00", b'{"step": "one"}'])
def test_a_bad_line_of_the_metrics_stops_no_resume(recipe, tmp_path, bad):
    from trainer.callbacks import Metrics

    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"step": 0, "loss": 2.0}\n' + bad + b'\n{"step": 1, "loss": 1.0}\n')
    Metrics(tmp_path, 1, None)._keep_before(start=2)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [0, 1]


def test_metrics_survive_a_line_cut_off(recipe, tmp_path):
    arguments = ["--config_path", str(recipe), "--logdir", str(tmp_path)]
    assert train.main([*arguments, "steps=2"]) == 0
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    assert train.main([*arguments, "steps=4"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and rows[2]["loss"] != 1.0
