"""Models on disk: what is missing, cut off or of another kind is named; sizes that nobody published run too."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.digits_fixture import PROMPTS, link_parts, model_folder, videos

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(model, tmp_path):
    """A copy of the model whose transformer may be damaged."""
    folder = link_parts(tmp_path / "copy")
    shutil.copytree(model / "transformer", folder / "transformer")
    return folder


def refused(door, model, tmp_path, *arguments) -> str:
    """Returns the message of a refusal after asserting that it is one line and that nothing was written."""
    out = tmp_path / "out"
    said = door.fails("--model", model, "--prompt", PROMPTS[0], "--output_folder", out, *arguments)
    assert len([line for line in door.error.splitlines() if line.startswith("inference.py:")]) == 1
    assert said.startswith("inference.py: ") and not out.exists()
    return said


def test_missing_weights_are_named(door, copy, tmp_path):
    (copy / WEIGHTS).unlink()
    said = refused(door, copy, tmp_path)
    assert str(copy / "transformer") in said and "it has: config.json" in said


@pytest.mark.parametrize("length", [0, 5, 1000, -100])
def test_truncated_weights_are_named(door, copy, tmp_path, length):
    whole = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(whole[:length])
    assert str(copy / WEIGHTS) in refused(door, copy, tmp_path)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer", "transformer"])
def test_missing_parts_are_named(door, copy, tmp_path, part):
    shutil.rmtree(copy / part) if part == "transformer" else (copy / part).unlink()
    said = refused(door, copy, tmp_path)
    assert str(copy) in said and part in said


def test_another_family_is_named(door, copy, model, tmp_path):
    shutil.rmtree(copy / "transformer")
    (copy / "transformer").symlink_to(model / "vae")
    assert "not a transformer" in refused(door, copy, tmp_path)
    (copy / "vae").unlink()
    (copy / "vae").symlink_to(model / "text_encoder")
    shutil.copytree(model / "transformer", tmp_path / "fine")
    (copy / "transformer").unlink()
    (copy / "transformer").symlink_to(tmp_path / "fine")
    assert "no Wan VAE" in refused(door, copy, tmp_path)


def test_weights_that_contradict_the_configuration(door, copy, tmp_path):
    config = json.loads((copy / "transformer/config.json").read_text())
    (copy / "transformer/config.json").write_text(json.dumps({**config, "num_layers": 5}))
    said = refused(door, copy, tmp_path)
    assert f"{copy / WEIGHTS.split('/')[0]}: num_layers 4" in said and "config.json: num_layers 5" in said


def test_a_missing_key_is_named(door, copy, tmp_path):
    state = load_file(copy / WEIGHTS)
    del state["blocks.1.ffn.0.bias"]
    save_file(state, copy / WEIGHTS)
    said = refused(door, copy, tmp_path)
    assert "1 missing: blocks.1.ffn.0.bias" in said and str(copy) in said


def test_paths_that_are_nothing(door, tmp_path):
    assert "no/such/model is not there" in refused(door, "no/such/model", tmp_path)
    assert "lost.pt" in refused(door, door.model, tmp_path, "--checkpoint_path", tmp_path / "lost.pt")
    assert "no averaged ones" in refused(door, door.model, tmp_path, "--use_ema")
    assert "x.pt is not there" in refused(door, door.model, tmp_path, "--lora_path", "x.pt:0.5")


def test_a_training_checkpoint_and_its_average(door, tmp_path):
    state = load_file(door.model / WEIGHTS)
    other = {k: v * 0.5 for k, v in state.items()}
    path = tmp_path / "checkpoint.pt"
    torch.save({"generator": state, "generator_ema": {f"model.{k}": v for k, v in other.items()}}, path)
    arguments = ["--prompt", PROMPTS[0], "--output_folder", tmp_path / "out"]
    assert door(*arguments) == 0
    assert door(*arguments[:3], tmp_path / "given", "--checkpoint_path", path) == 0, door.error
    assert videos(tmp_path / "given") == videos(tmp_path / "out")
    assert door(*arguments, "--checkpoint_path", path, "--use_ema") == 0, door.error
    assert sorted(videos(tmp_path / "out")) == [f"{PROMPTS[0]}-0.mp4", f"{PROMPTS[0]}-0_ema.mp4"]
    assert len(set(videos(tmp_path / "out").values())) == 2
    hashes = {json.loads(p.read_text())["weights_hash"] for p in (tmp_path / "out").glob("*.json")}
    assert len(hashes) == 2


def test_no_code_in_a_checkpoint_is_run(door, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    path = tmp_path / "bomb.pt"
    torch.save({"generator": {"x": torch.zeros(2)}, "extra": Bomb()}, path)
    assert "refused" in refused(door, door.model, tmp_path, "--checkpoint_path", path)
    assert not (tmp_path / "boom").exists()


def test_a_model_of_no_published_size_runs(custom_door, custom_model, tmp_path):
    arguments = ["--prompt", "any words at all", "--output_folder", tmp_path]
    assert custom_door(*arguments) == 0, custom_door.error
    facts = json.loads((tmp_path / "any words at all-0.json").read_text())
    assert facts["model"] == "custom" and facts["fps"] == 16


def test_a_bare_checkpoint_of_no_published_size_takes_the_folders_sizes(custom_door, custom_model, tmp_path):
    arguments = ["--prompt", "any words", "--output_folder"]
    weights = custom_model / WEIGHTS
    bare = tmp_path / "bare.safetensors"
    shutil.copy(weights, bare)
    assert custom_door(*arguments, tmp_path / "a", "--checkpoint_path", bare) == 0, custom_door.error
    assert custom_door(*arguments, tmp_path / "b") == 0
    assert videos(tmp_path / "a") == videos(tmp_path / "b")
    wide = model_folder(tmp_path / "wide", num_layers=1, ffn_dim=32) / WEIGHTS
    lone = tmp_path / "lone.safetensors"
    shutil.copy(wide, lone)
    said = custom_door.fails(*arguments, tmp_path / "c", "--checkpoint_path", lone)
    assert f"{lone}: ffn_dim 32; {custom_model}/transformer/config.json: ffn_dim 64" in said


def test_a_checkpoint_folder_runs_with_its_own_configuration(door, tmp_path):
    own = model_folder(tmp_path / "own", rope_theta=10000.0, num_heads=4, text_len=20)
    arguments = ["--prompt", PROMPTS[0], "--output_folder"]
    assert door(*arguments, tmp_path / "a", "--model", own) == 0, door.error
    assert door(*arguments, tmp_path / "b", "--checkpoint_path", own / "transformer") == 0, door.error
    assert door(*arguments, tmp_path / "c") == 0
    assert videos(tmp_path / "a") == videos(tmp_path / "b") != videos(tmp_path / "c")
