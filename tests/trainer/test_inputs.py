"""What a training reads is known by content; what was replaced is told where the run goes on."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.digits_fixture import link_parts
from trainer.build import build
from trainer.checkpoint.folder import Checkpoint, CheckpointConfig
from trainer.config import load_recipe
from trainer.inputs import find_inputs, input_hashes
from trainer.loop import Loop


@pytest.fixture
def run_files(distill_recipe, tmp_path):
    """(inputs of a distillation, key -> a file that it reads)."""
    recipe, clips = distill_recipe
    own = shutil.copytree(clips, tmp_path / "clips")
    config = load_recipe(recipe)[0]
    weights = shutil.copytree(config.trainer.teacher.weights, tmp_path / "teacher")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red three moves right\n")
    config.trainer.teacher.weights = str(weights)
    config.trainer.source.prompts, config.trainer.source.clips = str(prompts), str(own)
    config.model = str(link_parts(tmp_path / "model", ("text_encoder", "tokenizer")))
    shutil.copytree("assets/digits/vae", tmp_path / "model/vae")
    found = {
        "trainer.teacher.weights": next(weights.glob("*.safetensors")),
        "trainer.source.clips": next(own.iterdir()),
        "trainer.source.prompts": prompts,
        "model": next((tmp_path / "model/vae").glob("*.safetensors")),
    }
    return find_inputs(config), found


def test_inputs_are_known_by_their_content(run_files):
    inputs, held = run_files
    before = input_hashes(inputs)
    assert held.keys() <= before.keys()
    for key, file in held.items():
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert {k for k, v in input_hashes(inputs).items() if v != before[k]} == {key}
        file.write_bytes(whole)
    assert input_hashes(inputs) == before
    held["trainer.source.prompts"].unlink()
    assert input_hashes(inputs)["trainer.source.prompts"] is None


class Counting:
    """A method whose state is one number."""

    def __init__(self):
        self.number = torch.zeros(1)

    def step(self, step):
        self.number += 1
        return {}

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


def run(folder, total, **hashes):
    """Trains to step `total` with inputs of these hashes."""
    checkpoint = Checkpoint(folder, CheckpointConfig(every=1), {}, inputs=lambda: dict(hashes))
    Loop(Counting(), total, checkpoint).fit()


def test_replaced_inputs_are_told_at_resume(tmp_path, caplog):
    run(tmp_path, 1, prompts="a", teacher="b", clips="c")
    run(tmp_path, 2, prompts="a", teacher="b", clips="c")
    assert "was replaced since" not in caplog.text
    run(tmp_path, 3, prompts="x", teacher="b", clips=None, other="d")
    assert "was replaced since the checkpoint of step 2: prompts, clips; it goes on" in caplog.text
    caplog.clear()
    run(tmp_path, 4, prompts="x", teacher="b", other="d")
    assert "was replaced since" not in caplog.text, "told once; what the recipe names no more is in its differences"
    saved = json.loads((tmp_path / "checkpoints/step_0000004/state.json").read_text())
    assert saved["inputs"] == {"prompts": "x", "teacher": "b", "other": "d"}


def test_checkpoint_of_an_earlier_version_tells_nothing(tmp_path, caplog):
    run(tmp_path, 1)
    run(tmp_path, 2, prompts="a")
    assert "was replaced since" not in caplog.text


def test_prompts_longer_than_the_encoder_reads_are_named(distill_recipe, tmp_path, caplog):
    recipe, _ = distill_recipe
    prompts = tmp_path / "list.txt"
    prompts.write_text(f"a red three moves right\n{' and '.join(['a blue two moves left'] * 3)}\n")
    build(load_recipe(recipe, [f"trainer.source.prompts={prompts}"])[0], tmp_path / "run")
    (record,) = [r.getMessage() for r in caplog.records if "text encoder reads" in r.getMessage()]
    assert record.startswith(f"{prompts}, line 2: the prompt has ") and "what is not read begins" in record
