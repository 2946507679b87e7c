"""A decoder on a device of its own: a thread next to the chunks, the same files, clear words where it cannot be."""

from __future__ import annotations

import threading

import pytest

from tests.digits_fixture import PROMPTS, files, videos
from wan.codec.vae import StreamingVAE


@pytest.fixture
def decoding(monkeypatch):
    """The threads that decoded, in order."""
    threads, decode = [], StreamingVAE.decode_stream

    def noted(self, *arguments):
        threads.append(threading.current_thread())
        return decode(self, *arguments)

    monkeypatch.setattr(StreamingVAE, "decode_stream", noted)
    return threads


def test_the_files_are_the_same(door, prompts, decoding, tmp_path):
    arguments = ["--data_path", prompts(*PROMPTS[:2]), "batch=2", "output.latents=true", "output.gif=true"]
    for name, device, other in (("together", "auto", False), ("apart", "cpu", True)):
        decoding.clear()
        assert door(*arguments, "--output_folder", tmp_path / name, f"vae.device={device}") == 0, door.error
        assert len(decoding) == 3 and len(set(decoding)) == 1  # three chunks of two videos
        assert (decoding[0] is not threading.main_thread()) == other
    for pattern in ("*.mp4", "*.gif", "*.safetensors"):
        made = files(tmp_path / "together", pattern)
        assert len(made) == 2 and files(tmp_path / "apart", pattern) == made


def test_an_error_of_the_decoder_ends_the_run_without_a_video(door, monkeypatch, tmp_path):
    def broken(self, latents, state=None):
        raise ValueError("the decoder is broken")

    monkeypatch.setattr(StreamingVAE, "decode_stream", broken)
    said = door.fails("--prompt", PROMPTS[0], "--output_folder", tmp_path / "out", "vae.device=cpu")
    assert "the decoder is broken" in said and files(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda:91", "vae.device is cuda:91 and this machine has"),
        ("cuda", "vae.device is 'cuda'; write auto, cpu, or a GPU of its own, e.g. cuda:1"),
        ("gpu1", "vae.device is 'gpu1'"),
    ],
)
def test_a_device_that_is_not_there_is_named(door, device, words, tmp_path):
    said = door.fails("--prompt", PROMPTS[0], "--output_folder", tmp_path / "out", f"vae.device={device}")
    assert words in said and videos(tmp_path / "out") == {}


def test_decoder_tiling_is_refused_when_the_recipe_is_read(door, monkeypatch, tmp_path):
    """A stream is decoded chunk by chunk; the error came when the first one had been generated."""
    monkeypatch.setattr("pipeline.batch.run.read_requests", None)  # no prompt is read, no model loaded
    said = door.fails("--prompt", PROMPTS[0], "--output_folder", tmp_path / "out", "vae.tiling=true")
    assert "vae.tiling decodes whole clips and a generation decodes a stream; write vae.tiling=false" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
def test_a_gpu_of_its_own_makes_the_same_video(door, tmp_path):
    """The last GPU, which may be the model's own: a stream next to it."""
    import torch

    last = f"cuda:{torch.cuda.device_count() - 1}"
    for name in ("auto", last):
        arguments = ["--prompt", PROMPTS[0], "--output_folder", tmp_path / name.replace(":", "")]
        assert door(*arguments, f"vae.device={name}") == 0, door.error
    assert videos(tmp_path / "auto") == videos(tmp_path / last.replace(":", ""))
