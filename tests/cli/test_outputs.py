"""What a run leaves: videos, JSON, contact sheet, GIF, latents; under safe names."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from tests.digits_fixture import PROMPTS, files, videos
from utils.media.video import read_video


def test_video_json_and_sheet(door, prompts, tmp_path):
    out = tmp_path / "out"
    assert door("--data_path", prompts(*PROMPTS[:2]), "--output_folder", out, "--seed", 5, "output.sheet=true") == 0
    names = [f"{p}-0{suffix}" for p in PROMPTS[:2] for suffix in (".json", ".mp4")]
    assert sorted(files(out)) == sorted([*names, "contact_sheet.png"])
    frames, fps = read_video(out / f"{PROMPTS[0]}-0.mp4")
    assert frames.shape == (9, 32, 32, 3) and fps == 8
    assert frames.std() > 1
    assert f"2 videos in {out}" in door.said


def test_sidecar_tells_what_made_the_video(door, tmp_path):
    out = tmp_path / "out"
    assert door("--prompt", PROMPTS[0], "--output_folder", out, "--seed", 5) == 0
    facts = json.loads((out / f"{PROMPTS[0]}-0.json").read_text())
    assert facts["prompt"] == PROMPTS[0] and facts["seed"] == 5 and (facts["index"], facts["sample"]) == (0, 0)
    assert facts["model"] == "digits" and facts["latent_frames"] == 3 and (facts["frames"], facts["fps"]) == (9, 8)
    assert len(facts["config_hash"]) == len(facts["weights_hash"]) == 12
    times = facts["seconds"]
    assert set(times) == {"total", "denoise", "decode", "write"} and min(times.values()) > 0
    assert times["total"] == pytest.approx(times["denoise"] + times["decode"] + times["write"])


def test_gif_and_latents(door, tmp_path):
    from PIL import Image

    out = tmp_path / "out"
    assert door("--prompt", PROMPTS[0], "--output_folder", out, "output.gif=true", "output.latents=true") == 0
    with Image.open(out / f"{PROMPTS[0]}-0.gif") as gif:
        assert (gif.n_frames, gif.size) == (9, (32, 32))
    latents = load_file(out / f"{PROMPTS[0]}-0.safetensors")["latents"]
    assert latents.shape == (3, 16, 4, 4) and latents.isfinite().all() and latents.std() > 0.1
    assert set(files(out)) == {f"{PROMPTS[0]}-0{suffix}" for suffix in (".mp4", ".json", ".gif", ".safetensors")}


def test_index_and_samples_in_names(door, prompts, tmp_path):
    out, path = tmp_path / "out", prompts(PROMPTS[0], "", PROMPTS[1])
    assert door("--data_path", path, "--output_folder", out, "--save_with_index", "--num_samples", 2) == 0
    assert sorted(videos(out)) == ["0-0.mp4", "0-1.mp4", "2-0.mp4", "2-1.mp4"]  # a blank line keeps its number
    assert len(set(videos(out).values())) == 4, "two videos are equal"


@pytest.mark.parametrize(
    "hostile", ["../../escape", "/etc/passwd", "a/b\\c", "..", "CON", "a\tb", "~", "-rf", "'; rm *"]
)
def test_names_stay_in_the_folder(custom_door, prompts, tmp_path, hostile):
    out = tmp_path / "deep" / "out"
    assert custom_door("--data_path", prompts(hostile), "--output_folder", out) == 0, custom_door.error
    (name,) = videos(out)
    assert not set(name) & set("/\\\0\n\t*;~") - {"~"} and not name.startswith((".", "-"))
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["out"]
    assert not list(tmp_path.glob("escape*")) and len(files(out)) == 2
    assert json.loads((out / name).with_suffix(".json").read_text())["prompt"] == hostile.replace("\t", " ")


def test_equal_long_prompts_get_names_of_their_own(custom_door, prompts, tmp_path):
    out, long = tmp_path / "out", "very " * 100
    assert custom_door("--data_path", prompts(long + "long", long + "wide", long + "wide"), "--output_folder", out) == 0
    assert len(videos(out)) == 3 and max(map(len, videos(out))) < 120


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("x" * 100_000, "100000 characters, allowed are 10000"),
        ("a\x1bb", "control character U+001B"),
        ("a\x00b", "control character U+0000"),
    ],
)
@pytest.mark.parametrize("by", ["file", "flag"])
def test_prompts_that_are_damage_are_refused(custom_door, prompts, tmp_path, prompt, words, by):
    out = tmp_path / "out"
    given = ["--data_path", prompts("fine", prompt)] if by == "file" else ["--prompt", prompt]
    said = custom_door.fails(*given, "--output_folder", out)
    assert words in said and len(said) < 400
    assert ("line 2" if by == "file" else "--prompt") in said
    assert not out.exists()


@pytest.mark.parametrize("prompt", ["123", "true", "[a, b", "{x", '"quoted" cat', "a: b # c", "null", "1.10", "--- x"])
def test_a_prompt_may_look_like_yaml(custom_door, tmp_path, prompt):
    out = tmp_path / "out"
    assert custom_door(f"--prompt={prompt}", "--output_folder", out) == 0, custom_door.error
    (sidecar,) = out.glob("*.json")
    assert json.loads(sidecar.read_text())["prompt"] == prompt


def test_a_folder_may_look_like_a_number(door, tmp_path, monkeypatch):
    recipe = door.recipe
    monkeypatch.chdir(tmp_path)
    door.recipe = recipe
    assert door("--prompt", PROMPTS[0], "--output_folder", "007") == 0, door.error
    assert len(videos(tmp_path / "007")) == 1
