"""Two processes train the talking digits as one does, by FSDP2 and with shared sequences, in float64."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml

from tests import digits_fixture, tiny, tolerance
from tests.architecture.source import ROOT
from tests.trainer import worker
from tests.trainer.test_ranks import apart
from utils.data.latents import write_shard
from wan.family import find_published

CLIPS, FRAMES, STEPS = 4, 6, 2
SIDE = 16  # latent cells: the coarsest motion run has four tokens a frame, which two ranks can share
SEQUENCE = "layout.sequence=2"


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Returns {name: (recipe, what two ranks get beside it)}."""
    folder, spec = tmp_path_factory.mktemp("talking"), find_published("digits-s2v").transformer
    heard = (1, 4 * FRAMES, spec.audio_layers, spec.audio_dim)
    extra = {
        "audio": tiny.draw("audio", shape=(CLIPS, *heard)),
        "reference": tiny.draw("reference", shape=(CLIPS, 1, 16, SIDE, SIDE)),
    }
    latents = tiny.draw("latents", shape=(CLIPS, FRAMES, 16, SIDE, SIDE))
    write_shard(folder, 0, latents, [digits_fixture.PROMPTS[n % 3] for n in range(CLIPS)], extra=extra)
    text = yaml.safe_load((ROOT / "configs/train/digits_avatar_sft.yaml").read_text())
    text["trainer"]["source"] |= {"path": str(folder), "batch": 2, "frames": FRAMES, "corruption": 0.5}
    text["trainer"]["loss"]["distance"] = "drawn"
    text["trainer"]["optim"] = {"name": "adamw", "lr": 1e-3, "rates": [{"starts": "audio_injector.", "lr": 1e-4}]}
    text["generation"]["cache"] |= {"window_frames": FRAMES}
    text["generation"]["portrait"] = {"distance": [28, 34]}
    (folder / "sft.yaml").write_text(yaml.safe_dump(text))
    roll = yaml.safe_load((ROOT / "configs/train/digits_avatar_distill.yaml").read_text())
    roll["trainer"]["source"] |= {"clips": str(folder), "batch": 2, "frames": FRAMES, "loss_frames": FRAMES}
    for role in ("generator", "teacher", "critic"):
        roll["trainer"][role] = {"weights": "assets/digits_s2v/transformer"}
    roll["trainer"]["source"] |= {"height": 8 * SIDE, "width": 8 * SIDE}
    roll["generation"] |= {"steps": {"steps": [1000, 500], "warp": False, "shift": 3.0, "eta": 1.0}}
    roll["generation"]["cache"] |= {"window_frames": FRAMES}
    (folder / "roll.yaml").write_text(yaml.safe_dump(roll))
    sft, distill = str(folder / "sft.yaml"), str(folder / "roll.yaml")
    checkpointed = "trainer.generator.checkpointing=true"
    return {
        "fsdp2": (sft, []),
        "ulysses": (sft, [SEQUENCE, checkpointed]),
        "rollout": (distill, []),
        "rollout, ulysses": (distill, [SEQUENCE, checkpointed]),
    }


@pytest.mark.dist
def test_two_ranks_train_talking_models_as_one(jobs, tmp_path):
    two = {name: [recipe, STEPS, more, True] for name, (recipe, more) in jobs.items()}
    (tmp_path / "jobs.json").write_text(json.dumps(two))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.trainer.worker", str(tmp_path / "jobs.json"), str(tmp_path / "two.pt")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        alone = {recipe: worker.run(recipe, STEPS, [], True) for recipe in {recipe for recipe, _ in jobs.values()}}
        _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said[:6000]
    together = torch.load(tmp_path / "two.pt", weights_only=True)
    for name, (recipe, _) in jobs.items():
        one, other = alone[recipe], together[name]
        assert apart(one["weights"], other["weights"]) < tolerance.EXACT, name
        assert [m["loss"] for m in one["metrics"]] == pytest.approx(
            [m["loss"] for m in other["metrics"]], rel=tolerance.EXACT
        ), name
    start = worker.run(jobs["fsdp2"][0], 0, [], True)["weights"]
    trained = alone[jobs["fsdp2"][0]]["weights"]
    moved = [name for name, weight in start.items() if not torch.equal(weight, trained[name])]
    for part in ("audio_injector.injector.", "casual_audio_encoder.", "frame_packer.", "trainable_cond_mask", "blocks"):
        assert any(name.startswith(part) for name in moved), part
