"""The decoder of `decoder.py` makes the videos of a recipe that names it, in line and on a thread."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.bundle import build_decoder
from pipeline.config import load_recipe
from tests import digits_fixture
from tests.architecture.source import ROOT
from tests.digits_fixture import PROMPTS, files
from tests.examples.decoder import NearestConfig, NearestDecoder
from utils.media.image import to_uint8
from utils.media.video import read_video
from wan.codec import DECODERS
from wan.codec.base import StreamingDecoder, check_fit


@pytest.fixture(autouse=True)
def entry(monkeypatch):
    """The line of the table."""
    monkeypatch.setitem(DECODERS, "nearest", "tests.examples.decoder:NearestConfig")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a digits model with random weights."""
    return digits_fixture.model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(model, tmp_path, capsys):
    """run(folder, *overrides) -> exit status of a generation of two videos, one batch, with latents."""
    door = digits_fixture.Door(digits_fixture.write_recipe(tmp_path / "recipe.yaml", model), model, capsys)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS[:2]))

    def call(folder, *overrides):
        given = ["--data_path", prompts, "--output_folder", tmp_path / folder, "batch=2", "output.latents=true"]
        return door(*given, "output.crf=0", *overrides)

    call.door = door
    return call


def stand_in(**changes):
    """The facts of a VAE that decoders are compared with."""
    facts = dict(strides=(4, 8, 8), latent_channels=16, first_pixel_frames=1) | changes
    return type("VAE", (), facts)()


def test_decoder_example_has_the_face():
    decoder = NearestConfig().build(stand_in(), "cpu")
    assert isinstance(decoder, StreamingDecoder) and decoder.own_device is None
    assert NearestConfig(device="cpu").build(stand_in(), "meta").own_device == torch.device("cpu")
    taken = list(inspect.signature(NearestDecoder.decode_stream).parameters)
    assert taken == list(inspect.signature(StreamingDecoder.decode_stream).parameters)


def test_decoder_example_streams_are_cut_anywhere():
    decoder = NearestConfig().build(stand_in(), "cpu")
    latents = torch.randn(2, 5, 16, 3, 4, generator=torch.Generator().manual_seed(0))
    whole, _ = decoder.decode_stream(latents)
    assert whole.shape == (2, 17, 3, 24, 32) and whole.abs().max() <= 1
    assert torch.equal(whole[:, 4, :, ::8, ::8], (0.5 * latents[:, 1, :3]).clamp(-1, 1))
    for sizes in ([1, 4], [2, 3], [1] * 5):
        state, parts = None, []
        for part in latents.split(sizes, 1):
            pixels, state = decoder.decode_stream(part, state)
            parts.append(pixels)
        assert torch.equal(torch.cat(parts, 1), whole)


def test_decoder_example_makes_the_files_of_a_recipe(run, tmp_path):
    for folder, device in (("inline", "auto"), ("apart", "cpu")):
        assert run(folder, "decoder.name=nearest", f"decoder.device={device}") == 0, run.door.error
    assert files(tmp_path / "inline", "*.mp4") == files(tmp_path / "apart", "*.mp4")
    (path, *others) = sorted((tmp_path / "inline").glob("*.safetensors"))
    assert len(others) == 1
    decoder = NearestConfig().build(stand_in(), "cpu")
    wanted = to_uint8(decoder.decode_stream(load_file(path)["latents"][None])[0])[0]
    frames, _ = read_video(path.with_suffix(".mp4"))
    inside = (frames[:, 3::8, 3::8].astype(int), wanted[:, 3::8, 3::8])  # of each square: colours bleed at its border
    assert frames.shape == wanted.shape and np.abs(inside[0] - inside[1]).max() <= 3  # lossless but for YUV's rounding
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["asked"]["config"]["decoder"] == {"name": "nearest", "gain": 0.5}
    assert run("vae") == 0, run.door.error
    assert files(tmp_path / "vae", "*.safetensors") == files(tmp_path / "inline", "*.safetensors")
    assert files(tmp_path / "vae", "*.mp4") != files(tmp_path / "inline", "*.mp4")


def test_decoder_example_that_replaces_the_vae_may_leave_it_tiled(run):
    assert run("tiled", "decoder.name=nearest", "vae.tiling=true") == 0, run.door.error


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("decoder.name=nearst", "decoder"),
        ("decoder={name: nearest, gains: 2}", "gain"),
        ("decoder={name: nearest, device: gpu}", "decoder.device is 'gpu'; write auto, cpu"),
    ],
)
def test_decoder_knobs_are_checked_with_the_recipe(given, words):
    with pytest.raises(ValueError, match=words):
        load_recipe(ROOT / "configs/infer/digits.yaml", [given])


@pytest.mark.parametrize(
    ("fact", "value"), [("strides", (8, 8, 8)), ("latent_channels", 48), ("first_pixel_frames", 4)]
)
def test_decoder_of_another_model_is_refused(fact, value):
    vae = stand_in()
    decoder = NearestConfig().build(vae, "cpu")
    check_fit("nearest", decoder, vae)
    setattr(decoder, fact, value)
    config = type("Config", (), {"name": "nearest", "build": lambda self, vae, device: decoder})()
    with pytest.raises(ValueError, match=rf"decoder.name=nearest does not fit this model: {fact} .* instead of"):
        build_decoder(config, vae, torch.device("cpu"))
