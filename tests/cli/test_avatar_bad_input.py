"""Bad sounds, portraits, masks, sizes and knobs of talking videos: refused before a weight is read, or made right."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.batch import run
from pipeline.tpp import Stages
from tests.architecture.source import ROOT
from tests.digits_fixture import Door
from tests.utils.media.test_audio import save
from utils.digits.speaking import random_talk
from utils.media.mp4 import VideoWriter
from utils.media.video import read_video

RECIPE = ROOT / "configs/infer/digits_avatar.yaml"
TALK = random_talk(4, 57, seed=77)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Sounds and pictures, good and bad."""
    folder, picture = tmp_path_factory.mktemp("inputs"), Image.fromarray(TALK.picture)
    save(folder / "voice.wav", 16_000, samples=TALK.sound[None])
    save(folder / "short.wav", seconds=0.02)
    save(folder / "brief.wav", seconds=0.2)
    save(folder / "zero.wav", 16_000, samples=np.zeros((1, 16_000), np.float32))
    save(folder / "eight.wav", 48_000, channels=8)
    broken = np.zeros((1, 16_000), np.float32)
    broken[0, 500] = np.nan
    save(folder / "nan.wav", 16_000, codec="pcm_f32le", samples=broken)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(4_000))
    with VideoWriter(folder / "silent.mp4", 8) as video:
        video.write(np.zeros((8, 16, 16, 3), np.uint8))
    picture.save(folder / "face.png")
    picture.resize((1, 1)).save(folder / "one.png")
    picture.resize((20_000, 64)).save(folder / "wide.png")
    picture.save(folder / "moving.gif", save_all=True, append_images=[picture.rotate(90)])
    picture.convert("RGBA").save(folder / "alpha.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.array(picture.convert("L")).astype(np.uint16) * 256).save(folder / "deep.png")
    (folder / "cut.png").write_bytes((folder / "face.png").read_bytes()[:200])
    Image.new("L", (300, 20), 255).save(folder / "mask.png")
    return folder


@pytest.fixture
def door(capsys):
    return Door(RECIPE, ROOT / "assets/digits", capsys)


def ask(folder, out, **more):
    given = {"image": "face.png", "audio": "voice.wav", **more}
    named = {key: "+".join(str(folder / part) for part in value.split("+")) for key, value in given.items()}
    flags = [word for key, path in named.items() for word in (f"--{key}", path)]
    return [*flags, "--prompt", TALK.prompt, "--output_folder", out, "output.sheet=false", "--seconds", "0.5"]


FAST = ["sampler.name=multi_step", "sampler.solver=euler", "sampler.num_steps=1", "sampler.guidance=1"]
TWO = {"audio": "voice.wav+voice.wav"}
SAME_STEP = "generation.cache.content=same_step"


@pytest.mark.parametrize(
    ("given", "more", "message"),
    [
        ({"audio": "gone.wav"}, [], "gone.wav is not a file"),
        ({"audio": "empty.wav"}, [], "empty.wav cannot be read as sound"),
        ({"audio": "noise.mp3"}, [], "noise.mp3 cannot be read as sound"),
        ({"audio": "short.wav"}, [], "short.wav holds 0.02 s of sound; give 0.1 s"),
        ({"audio": "nan.wav"}, [], "nan.wav holds samples that are not finite"),
        ({"audio": "silent.mp4"}, [], "silent.mp4 has no sound track"),
        ({"audio": "voice.wav+gone.wav"}, [], "gone.wav is not a file"),
        ({"image": "gone.png"}, [], "gone.png is not a file"),
        ({"image": "cut.png"}, [], "cut.png cannot be read as an image"),
        ({"image": "deep.png"}, [], "save it with 8 bits per channel"),
        ({}, ["--size", "32*32"], "an area of 1024 pixels is too small; write 64*64 or more"),
        ({"image": "wide.png"}, ["--size", "128*64"], "a portrait of 20000 x 64 pixels does not fit 8192 pixels"),
        ({**TWO, "masks": "mask.png"}, [], "for 2 sounds; give one picture for each, or none"),
        ({"masks": "mask.png+mask.png"}, [], "for 1 sounds; give one picture for each"),
        ({**TWO, "masks": "mask.png+gone.png"}, [], "gone.png is not a file"),
        ({"pose_video": "voice.wav"}, [], "voice.wav cannot be read as a video"),
        ({}, ["--num_clip", "-1"], "pipeline.num_clip is -1"),
        ({}, ["--sample_guide_scale", "4"], "sampler.guidance; the four-step model was distilled for 1"),
        ({}, ["sampler.name=multi_step", "sampler.solver=unipc", "sampler.grid=table"], "grid table is one of solver"),
        ({}, ["generation.cache.window_frames=2"], "write at least 3"),
        ({}, [SAME_STEP, "generation.cache.recache=bidirectional"], "write causal or none"),
        ({}, [SAME_STEP, "generation.context.sigma=0.1"], "no context pass runs; leave out context"),
    ],
)
def test_it_is_refused_before_a_weight_is_read(inputs, door, tmp_path, monkeypatch, given, more, message):
    monkeypatch.setattr(run, "load_bundle", lambda *configs: pytest.fail("weights were read"))
    assert message in door.fails(*ask(inputs, tmp_path / "out", **given), *more)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["Quark-Vision/Live-Avatar", "face.png"])
def test_a_lora_that_is_none_or_not_here(inputs, door, tmp_path, name):
    path = inputs / name if name.endswith(".png") else name
    said = door.fails(*ask(inputs, tmp_path), "--lora_path", path)
    assert ("is a PNG picture" if name.endswith(".png") else f"hf download {name}") in said


def test_odd_but_possible_inputs_are_made_right(inputs, door, tmp_path):
    """Silence, eight channels, less sound than a chunk; pictures of any kind and size; masks of another size."""
    pairs = [("zero.wav", "one.png"), ("eight.wav", "moving.gif"), ("brief.wav", "cmyk.jpg"), ("voice.wav", "wide.png")]
    lines = [{"image": image, "audio": audio, "prompt": TALK.prompt, "name": audio[:-4]} for audio, image in pairs]
    two = {"audio": ["voice.wav", "zero.wav"], "masks": ["mask.png", "mask.png"], "name": "two"}
    lines.append({"image": "alpha.png", "prompt": TALK.prompt, **two})
    (inputs / "odd.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    wanted = ["--data_path", inputs / "odd.jsonl", "--seconds", "0.5", "--output_folder", tmp_path]
    assert door(*wanted, *FAST, "output.sheet=false") == 0, door.error
    assert "brief.wav: 0.2 s of sound, and a chunk lasts 1.12 s; silence follows" in door.error
    assert "moving.gif holds 2 pictures; the first is taken" in door.error
    made = {path.stem: read_video(path)[0] for path in tmp_path.glob("*.mp4")}
    assert {name: frames.shape for name, frames in made.items()} == dict.fromkeys(
        ("zero-0", "eight-0", "brief-0", "voice-0", "two-0"), (9, 64, 64, 3)
    )


def test_more_ranks_than_steps_and_a_decoder_are_refused():
    with pytest.raises(ValueError, match="4 steps"):
        Stages.plan(4, 6, "own")


def test_a_full_disk_while_muxing_is_told_and_loses_no_finished_video(inputs, tmp_path):
    """The disk, which here is a limit on a file's size, fills in the second video."""
    lines = [
        {"image": "face.png", "audio": "voice.wav", "prompt": TALK.prompt, "name": name, "num_clip": clips}
        for name, clips in (("first", 1), ("second", 9))
    ]
    (inputs / "full.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    command = ["inference.py", "--config_path", RECIPE, "--data_path", inputs / "full.jsonl"]
    command += ["--output_folder", tmp_path, "output.sheet=false", "output.save_every_seconds=0", *FAST]
    command += ["generation.cache.window_frames=3"]

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=limit,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-1500:]
    assert [path.name for path in tmp_path.glob("*.mp4")] == ["first-0.mp4"]
    assert len(read_video(tmp_path / "first-0.mp4")[0]) == 9
