"""Finished videos that are kept: a word for each that would be another one now, and none for the others."""

from __future__ import annotations

import json

import pytest

from tests.digits_fixture import PROMPTS, videos


@pytest.fixture
def script(prompts):
    """script(**fields) -> the path of a script of one video of two prompts, which `end_frame` separates."""

    def write(end_frame=1, **fields):
        cues = [{"text": PROMPTS[0], "end_frame": end_frame}, {"text": PROMPTS[1]}]
        return prompts(json.dumps({"name": "a", "prompts": cues, **fields}), name="videos.jsonl")

    return write


CHANGES = [
    ({"end_frame": 2}, (), "{'asked.ends.0': 'latent frame 1'}"),
    ({"length": 4}, (), "{'asked.length': 'latent frame 3'}"),
    ({}, ("--num_output_frames", 5), "{'asked.length': 'latent frame 3'}"),
    ({}, ("--seconds", 0.5), "{'asked.length': 'latent frame 3'}"),
    ({"negative_prompt": PROMPTS[2]}, (), "{'asked.negative_prompt': ''}"),
    ({"height": 48}, (), "{'asked.height': 32}"),
    ({}, ("width=48",), "{'asked.width': 32}"),
    ({"seed": 4}, (), "{'seed': 0}"),
    ({}, ("generation.cache.recache=none",), "{'asked.config.generation.cache.recache': 'causal'}"),
    ({}, ("sampler.num_steps=3",), "{'asked.config.sampler.num_steps': 2}"),
    (
        {},
        ("sampler={name: few_step}", "generation.steps.steps=[1000]"),
        "{'asked.config.generation.steps.steps': [], 'asked.config.sampler.name': 'multi_step'",
    ),
    ({}, ("--checkpoint_path", "other.pt"), "{'asked.config.model.checkpoint': ''}"),
    ({}, ("output.fps=5",), "{'asked.config.output.fps': 0"),
    ({}, ("--noise", "noise.safetensors"), "{'asked.config.data.noise': ''}"),
]


@pytest.fixture
def made(door, script, tmp_path):
    """The folder of the finished video."""
    assert door("--data_path", script(), "--output_folder", tmp_path / "out") == 0, door.error
    return tmp_path / "out"


def test_a_video_that_would_be_another_one_is_kept_with_a_word(door, script, made):
    whole = videos(made)
    for fields, flags, words in CHANGES:
        assert door("--data_path", script(**fields), "--output_folder", made, *flags) == 0, door.error
        assert f"a-0.mp4 is kept though it was made with {words}" in door.error, (fields, flags)
        assert "--overwrite makes it anew" in door.error and videos(made) == whole


def test_what_changes_no_video_is_passed_over(door, script, made, tmp_path):
    moved = made.rename(tmp_path / "moved")
    flags = ("threads=2", "vae.device=cpu", "text.device=cpu", "output.sheet=true", "output.gif=true", "batch=2")
    same = script(length=3, height=32, seed=0, negative_prompt="")  # what the configuration says, too
    assert door("--data_path", same, "--output_folder", moved, *flags) == 0, door.error
    assert "1 of 1 videos are finished" in door.error and "kept though" not in door.error


def test_a_json_of_an_older_version_is_no_reason_to_warn(door, script, made):
    path = made / "a-0.json"
    facts = json.loads(path.read_text())
    del facts["asked"]["length"], facts["asked"]["config"]["sampler"]["num_steps"]  # written before these were knobs
    path.write_text(json.dumps(facts))
    changed = ("--data_path", script(length=4), "--output_folder", made, "sampler.num_steps=3")
    assert door(*changed) == 0 and "kept though" not in door.error
    del facts["asked"]
    path.write_text(json.dumps(facts))
    assert door(*changed) == 0 and "kept though" not in door.error
    assert door(*changed, "--seed", 3) == 0 and "made with {'seed': 0}" in door.error


def test_the_keys_of_an_older_version_are_compared(door, script, made):
    path = made / "a-0.json"
    facts = json.loads(path.read_text())
    config = facts["asked"]["config"]
    config["pipeline"] |= {key: config["generation"][key] for key in ("chunk", "first_chunk", "cache", "context")}
    del config["generation"]
    path.write_text(json.dumps(facts))
    again = ("--data_path", script(), "--output_folder", made)
    assert door(*again) == 0 and "kept though" not in door.error
    assert door(*again, "generation.cache.sink_frames=0") == 0
    assert "made with {'asked.config.generation.cache.sink_frames': 1}" in door.error


@pytest.mark.parametrize("text", ["[]", "3", "null", "{"])
def test_a_damaged_json_is_named(door, script, made, text):
    (made / "a-0.json").write_text(text)
    said = door.fails("--data_path", script(), "--output_folder", made)
    assert "a-0.json is damaged (" in said and "; remove it" in said
