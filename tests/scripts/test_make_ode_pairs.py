"""scripts/make_ode_pairs.py on a random digits model: levels, resuming, ranks, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

import train
from scripts import make_ode_pairs
from tests import digits_fixture
from utils.data.latents import shard_path
from utils.data.pairs import PairFolder
from wan.schedule import step_sigmas

STUDENT = """
model: {model}
steps: 2
generation: {{chunk: 2, steps: {{steps: [1000, 500], shift: 3.0}}}}
trainer:
  generator: {{weights: {model}/transformer}}
  source: {{name: ode_pairs, path: {pairs}, batch: 2, frames: 4}}
  loss: {{name: ode}}
  text: {{dtype: fp32}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return digits_fixture.model_folder(tmp_path_factory.mktemp("model"), num_layers=1, ffn_dim=64)


@pytest.fixture
def make(model, tmp_path):
    """make(*flags) -> exit status, with a tiny teacher and student."""
    teacher = digits_fixture.write_recipe(tmp_path / "teacher.yaml", model)
    student, prompts = tmp_path / "student.yaml", tmp_path / "prompts.txt"
    student.write_text(STUDENT.format(model=model, pairs=tmp_path / "pairs"))
    prompts.write_text("\n".join(digits_fixture.PROMPTS))
    flags = ["--teacher", teacher, "--student", student, "--prompts", prompts, "--num_steps", "3", "--shift", "3"]
    flags += ["--shard_pairs", "2", "--guidance", "3"]
    return lambda *more: make_ode_pairs.main([str(flag) for flag in (*flags, *more)])


def test_pairs_are_made_resumed_and_trained_on(make, tmp_path, capsys):
    assert make("--pairs", "5") == 0, capsys.readouterr().err
    pairs = PairFolder(tmp_path / "pairs")
    assert len(pairs) == 5 and pairs.shape == (3, 4, 16, 4, 4)
    assert pairs.sigmas == pytest.approx((*step_sigmas((1000, 500), 3.0), 0.0))
    assert [pairs[i][1] for i in range(4)] == [*digits_fixture.PROMPTS, digits_fixture.PROMPTS[0]]
    first, last = pairs[0][0], pairs[3][0]
    assert not torch.equal(first, last), "one prompt, two noises"
    stamp = shard_path(tmp_path / "pairs", 0).stat().st_mtime_ns
    shard_path(tmp_path / "pairs", 1).unlink()
    assert make("--pairs", "5") == 0
    assert shard_path(tmp_path / "pairs", 0).stat().st_mtime_ns == stamp
    assert torch.equal(PairFolder(tmp_path / "pairs")[3][0], last)
    run = ["--config_path", str(tmp_path / "student.yaml"), "--logdir", str(tmp_path / "run")]
    assert train.main(run) == 0, capsys.readouterr().err


def test_ranks_share_the_shards(make, tmp_path, monkeypatch):
    assert make("--pairs", "4", "--output", tmp_path / "one") == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, there in ((0, {"shard_00000"}), (1, {"shard_00000", "shard_00001"})):
        monkeypatch.setenv("RANK", str(rank))
        assert make("--pairs", "4", "--output", tmp_path / "two") == 0
        assert {p.stem for p in (tmp_path / "two").glob("*.safetensors")} == there
    one, two = PairFolder(tmp_path / "one"), PairFolder(tmp_path / "two")
    assert all(torch.equal(one[i][0], two[i][0]) for i in range(4))


def test_a_folder_holds_one_kind_of_pairs(make, tmp_path, capsys):
    assert make("--pairs", "1") == 0
    assert json.loads((tmp_path / "pairs/pairs.json").read_text())["guidance"] == 3
    assert make("--pairs", "3", "--guidance", "1") == 2
    assert "guidance: 3.0 then, 1.0 now" in capsys.readouterr().err


@pytest.mark.parametrize("flags, why", [(("--batch", "0"), "--batch"), (("--num_steps", "0"), "num_steps")])
def test_wrong_numbers_are_refused(make, capsys, flags, why):
    assert make(*flags) == 2
    assert why in capsys.readouterr().err


def test_a_student_of_another_loss_is_refused(make, tmp_path, capsys):
    (tmp_path / "student.yaml").write_text("trainer: {generator: {spec: digits}, source: {path: x, frames: 9}}")
    assert make() == 2
    assert "loss ode" in capsys.readouterr().err
