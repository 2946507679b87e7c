"""Image-to-video: a folder of images with captions, or the ancestors' layout; the image is the first frame."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.digits_fixture import PROMPTS, videos
from utils.media.image import read_image
from wan.checkpoint.library import load_vae
from wan.codec.vae import StreamingVAE


def picture(path, seed=0, size=(50, 40)):
    """Writes a smooth picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(cells).resize(size, Image.BILINEAR).save(path)
    return path


@pytest.fixture
def pairs(tmp_path):
    """A folder with two images and their captions."""
    for n, prompt in enumerate(PROMPTS[:2]):
        picture(tmp_path / "in" / f"{n}.png", n)
        (tmp_path / "in" / f"{n}.txt").write_text(prompt)
    return tmp_path / "in"


@pytest.mark.parametrize("pipeline", ["causal", "bidirectional"])
def test_the_image_is_the_first_frame(door, pairs, tmp_path, pipeline):
    out = tmp_path / "out"
    overrides = ["output.latents=true", "--num_output_frames", 3]
    overrides += ["pipeline={name: bidirectional}"] if pipeline == "bidirectional" else []
    assert door("--i2v", "--data_path", pairs, "--output_folder", out, *overrides) == 0, door.error
    vae = StreamingVAE(load_vae(door.model / "vae")).eval()
    for n, prompt in enumerate(PROMPTS[:2]):
        video = load_file(out / f"{prompt}-0.safetensors")["latents"]
        with torch.no_grad():
            wanted = vae.encode(read_image(pairs / f"{n}.png", (32, 32))[None, None])[0, 0]
        assert video.shape[0] == 3 and torch.equal(video[0], wanted)
        assert (video[1] - wanted).abs().max() > 0.1
    assert len(set(videos(out).values())) == 2


def test_the_image_matters_beyond_its_frame(door, pairs, tmp_path):
    (pairs / "1.txt").write_text(PROMPTS[0])
    arguments = ["--i2v", "--data_path", pairs, "--save_with_index", "output.latents=true", "--output_folder"]
    assert door(*arguments, tmp_path / "a") == 0
    picture(pairs / "0.png", seed=9)
    assert door(*arguments, tmp_path / "b") == 0
    a, b = (load_file(tmp_path / name / "0-0.safetensors")["latents"] for name in "ab")
    assert (a[1:] - b[1:]).abs().max() > 1e-3
    assert videos(tmp_path / "a")["1-0.mp4"] == videos(tmp_path / "b")["1-0.mp4"]


def test_the_ancestors_layout(door, pairs, tmp_path):
    rows = [{"file_name": f"{n}.png", "caption": PROMPTS[n], "target_crop": {"target_ratio": "1-1"}} for n in (0, 1)]
    folder = tmp_path / "theirs"
    for n in (0, 1):
        picture(folder / "1-1" / f"{n}.png", n)
    (folder / "target_crop_info_1-1.json").write_text(json.dumps(rows))
    for name, path in (("ours", pairs), ("same", folder)):
        assert door("--i2v", "--data_path", path, "--output_folder", tmp_path / "out" / name) == 0, door.error
    assert videos(tmp_path / "out/ours") == videos(tmp_path / "out/same")


def test_a_corrupt_image_is_named_before_any_video(door, pairs, tmp_path):
    out, bad = tmp_path / "out", pairs / "1.png"
    whole = bad.read_bytes()
    for content in (whole[: len(whole) // 2], b"no image", b""):
        bad.write_bytes(content)
        assert f"{bad} cannot be read as an image" in door.fails("--i2v", "--data_path", pairs, "--output_folder", out)
        assert not out.exists()


def test_folders_that_do_not_fit_are_refused(door, pairs, tmp_path):
    out = ["--output_folder", tmp_path / "out"]
    assert "write either" in door.fails("--i2v", "--prompt", PROMPTS[0], "--data_path", pairs, *out)
    assert "image-to-video needs --data_path" in door.fails("--i2v", "--prompt", PROMPTS[0], *out)
    (pairs / "1.txt").unlink()
    assert "no caption 1.txt" in door.fails("--i2v", "--data_path", pairs, *out)
    (pairs / "1.png").unlink()
    three = ["--num_output_frames", 3, "generation.chunk=3", "generation.cache.window_frames=7"]
    assert "(1 + 3n); use 1 or 4" in door.fails("--i2v", "--data_path", pairs, *out, *three)
    (pairs / "0.txt").write_text("a pink horse")
    assert "['pink', 'horse']" in door.fails("--i2v", "--data_path", pairs, *out)
    assert "is not a folder" in door.fails("--i2v", "--data_path", tmp_path / "no", *out)
