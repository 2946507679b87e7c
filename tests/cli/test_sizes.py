"""Lengths, sizes, windows, given noise and given latents; what does not fit is refused with the nearest that does."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import digits_fixture, tiny
from tests.digits_fixture import PROMPTS, videos
from utils.media.video import read_video


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--num_output_frames", 7, "generation.chunk=3"], "7 latent frames do not fill chunks of 3 (3n); use 6 or 9"),
        (["--num_output_frames", 2, "generation.chunk=3"], "use 3"),
        (["generation.chunk=3", "generation.first_chunk=1", "--num_output_frames=6"], "(1 + 3n); use 4 or 7"),
        (["height=40"], "height 40 is not a multiple of 16 pixels; use 32 or 48"),
        (["width=8"], "width 8 is not a multiple of 16 pixels; use 16 or 32"),
        (["generation.cache.window_frames=1"], "smaller than sink_frames 1 + chunk 1; write at least 2"),
        (["generation.cache.window_frames=0"], "write -1 (everything) or a length"),
        (["--num_output_frames", 0], "num_output_frames is 0; write 1 to 1000000"),
        (["--num_samples", 0], "num_samples is 0"),
        (["--seconds=-1"], "seconds is -1"),
        (["output.gif=true", "output.fps=60"], "at most 50 frames a second"),
        (["output.crf=99"], "output.crf is 99; write 0 to 51"),
        (["sampler.num_steps=0"], "sampler.num_steps is 0; write 1"),
        (["sampler.solver=heun"], "heun"),
        (["model.dtype=fp16"], "model.dtype must be one of"),
        (["data.initial_latents=x", "pipeline={name: bidirectional}"], "write pipeline.name=causal"),
    ],
)
def test_what_cannot_be_made_is_refused(door, tmp_path, overrides, words):
    window = ["generation.cache.window_frames=6"] if "generation.chunk=3" in overrides else []
    said = door.fails("--prompt", PROMPTS[0], "--output_folder", tmp_path / "out", *window, *overrides)
    assert words in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "latent_frames"),
    [
        (["--seconds", 1], 3),  # 8 pixel frames: 1 + 4 + 4
        (["--seconds", 0.1], 1),
        (["--seconds", 1.2, "output.fps=5"], 3),  # 6 pixel frames
        (["--seconds", 1, "generation.chunk=2"], 4),
        (["--seconds", 1, "generation.chunk=2", "generation.first_chunk=1"], 3),
        (["--num_output_frames", 4, "generation.cache.window_frames=-1"], 4),
        (["--num_output_frames", 5, "generation.cache.rope=read"], 5),
    ],
)
def test_lengths(door, tmp_path, overrides, latent_frames):
    assert door("--prompt", PROMPTS[0], "--output_folder", tmp_path, *overrides) == 0, door.error
    frames, _ = read_video(tmp_path / f"{PROMPTS[0]}-0.mp4")
    assert len(frames) == 4 * latent_frames - 3
    assert json.loads((tmp_path / f"{PROMPTS[0]}-0.json").read_text())["latent_frames"] == latent_frames


def noise_file(path, *shape):
    save_file({"noise": tiny.draw("given", shape=shape)}, path)
    return path


def test_given_noise_starts_the_video(door, prompts, tmp_path):
    outs = {}
    files = {"a": (2, 3, 16, 4, 4), "b": (1, 3, 16, 4, 4), "longer": (2, 5, 16, 4, 4)}
    for name, shape in files.items():
        outs[name] = tmp_path / name
        given = noise_file(tmp_path / f"{name}.safetensors", *shape)
        arguments = ["--data_path", prompts(PROMPTS[0], PROMPTS[0]), "--noise", given, "--output_folder", outs[name]]
        assert door(*arguments, "--seed", len(outs)) == 0, door.error
    assert len(set(videos(outs["a"]).values())) == 2
    assert len(set(videos(outs["b"]).values())) == 1  # one row serves all, and nothing else is drawn by this solver
    assert door("--prompt", PROMPTS[0], "--output_folder", tmp_path / "drawn") == 0
    assert not set(videos(tmp_path / "drawn").values()) & set(videos(outs["a"]).values())


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 16, 8, 8), "[N, F, 16, 4, 4]"),
        ((3, 16, 4, 4), "[N, F, 16, 4, 4]"),
        ((1, 2, 16, 4, 4), "has 2 latent frames and the videos 3"),
        ((2, 3, 16, 4, 4), "has 2 rows, prompt number 2 needs one of its own"),
    ],
)
def test_noise_that_does_not_serve_is_refused_before_any_video(door, prompts, tmp_path, shape, words):
    given = noise_file(tmp_path / "noise.safetensors", *shape)
    out = tmp_path / "out"
    said = door.fails("--data_path", prompts(*PROMPTS), "--noise", given, "--output_folder", out)
    assert words in said and str(given) in said
    assert not out.exists()


def test_noise_files_that_are_none_are_refused(door, tmp_path):
    bad, other = tmp_path / "bad.safetensors", tmp_path / "other.safetensors"
    bad.write_bytes(b"no tensors")
    save_file({"x": torch.zeros(1)}, other)
    for path, words in ((bad, "cannot be read"), (other, "no tensor 'noise'; it has ['x']"), (tmp_path / "no", "no")):
        said = door.fails("--prompt", PROMPTS[0], "--noise", path, "--output_folder", tmp_path / "out")
        assert words in said and str(path) in said


def test_initial_latents_are_continued(door, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    arguments = ["--prompt", PROMPTS[0], "output.latents=true", "--output_folder"]
    assert door(*arguments, first, "--num_output_frames", 2) == 0
    start = load_file(first / f"{PROMPTS[0]}-0.safetensors")["latents"]
    given = tmp_path / "given.safetensors"
    save_file({"latents": start[None]}, given)
    assert door(*arguments, second, "--num_output_frames", 4, f"data.initial_latents={given}") == 0, door.error
    video = load_file(second / f"{PROMPTS[0]}-0.safetensors")["latents"]
    assert video.shape[0] == 4 and torch.equal(video[:2], start)
    # The noise is keyed by the frame, so the continuation is the video that would have been made at once.
    assert door(*arguments, tmp_path / "whole", "--num_output_frames", 4) == 0
    whole = load_file(tmp_path / "whole" / f"{PROMPTS[0]}-0.safetensors")["latents"]
    assert tiny.error(video, whole) < digits_fixture.rounding(passes=12)
    assert door(*arguments, tmp_path / "s", "--seconds", 1.5, f"data.initial_latents={given}") == 0
    assert len(load_file(tmp_path / "s" / f"{PROMPTS[0]}-0.safetensors")["latents"]) == 4
    for frames, overrides, words in (
        (2, [], "2 latent frames are given and the video has 2"),
        (6, ["generation.chunk=3", "generation.cache.window_frames=6"], "(2 + 3n); use 5 or 8"),
    ):
        more = ["--num_output_frames", frames, f"data.initial_latents={given}", *overrides]
        assert words in door.fails(*arguments, tmp_path / "none", *more)
