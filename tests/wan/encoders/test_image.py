"""The image encoder: preparation, the penultimate layer, and its loaders."""

from __future__ import annotations

import pytest
import torch

from tests import tolerance
from wan.checkpoint.encoder_maps import image_to_official
from wan.checkpoint.library import IMAGE_CONFIG, build_image_model
from wan.encoders.image import ImageEncoder, load_image_encoder

TINY = {**IMAGE_CONFIG, "dim": 16, "dim_ffn": 24, "dim_out": 8, "num_heads": 2, "num_layers": 3, "image_size": 28}


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_image_model(TINY)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.requires_grad_(False)


def test_preparation_is_clip_normalised_bicubic(model):
    grey = torch.full((1, 3, 50, 30), 2 * 0.48145466 - 1)
    out = ImageEncoder(model).prepare(grey)
    assert out.shape == (1, 3, 28, 28)
    torch.testing.assert_close(out[:, 0], torch.zeros(1, 28, 28), atol=1e-5, rtol=0)
    blue = (0.48145466 - 0.40821073) / 0.27577711
    torch.testing.assert_close(out[:, 2], torch.full((1, 28, 28), blue), atol=1e-5, rtol=0)
    ramp = torch.linspace(-1, 1, 56).expand(1, 3, 56, 56)
    wanted = torch.nn.functional.interpolate(ramp, (28, 28), mode="bicubic")
    got = ImageEncoder(model).prepare(ramp)[:, 1] * 0.26130258 + 0.4578275
    torch.testing.assert_close(got, wanted[:, 1] * 0.5 + 0.5, atol=1e-5, rtol=0)


def test_tokens_come_from_the_last_layer_but_one(model):
    """The reference's arithmetic written out, from official names."""
    pixels = torch.rand(2, 3, 28, 28) * 2 - 1
    w = {k.removeprefix("visual."): v for k, v in image_to_official(model.state_dict()).items()}
    encoder = ImageEncoder(model)

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    x = torch.nn.functional.conv2d(encoder.prepare(pixels), w["patch_embedding.weight"], stride=14).flatten(2)
    x = torch.cat((w["cls_embedding"].expand(2, -1, -1), x.transpose(1, 2)), 1) + w["pos_embedding"]
    x = norm(x, "pre_norm")
    for i in range(TINY["num_layers"] - 1):
        t = f"transformer.{i}"
        qkv = norm(x, f"{t}.norm1") @ w[f"{t}.attn.to_qkv.weight"].t() + w[f"{t}.attn.to_qkv.bias"]
        q, k, v = (y.unflatten(-1, (2, 8)).transpose(1, 2) for y in qkv.chunk(3, -1))
        y = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v
        x = x + y.transpose(1, 2).flatten(2) @ w[f"{t}.attn.proj.weight"].t() + w[f"{t}.attn.proj.bias"]
        y = torch.nn.functional.gelu(norm(x, f"{t}.norm2") @ w[f"{t}.mlp.0.weight"].t() + w[f"{t}.mlp.0.bias"])
        x = x + y @ w[f"{t}.mlp.2.weight"].t() + w[f"{t}.mlp.2.bias"]
    got = encoder(pixels)
    assert got.shape == (2, 5, 16) and got.std() > 0.1
    torch.testing.assert_close(got, x, atol=tolerance.rounding(terms=588, sums=30), rtol=0)


def test_loaders(model, tmp_path, monkeypatch):
    monkeypatch.setattr("wan.checkpoint.library.IMAGE_CONFIG", TINY)
    official = image_to_official(model.state_dict()) | {
        "log_scale": torch.zeros([]),
        "textual.norm.weight": torch.ones(2),
    }
    torch.save({k: v.half() for k, v in official.items()}, tmp_path / "models_clip.pth")
    model.save_pretrained(tmp_path / "image_encoder")
    pixels = torch.rand(1, 3, 40, 40) * 2 - 1
    wanted = ImageEncoder(model)(pixels)
    assert torch.equal(load_image_encoder(tmp_path / "image_encoder")(pixels), wanted)
    half = load_image_encoder(tmp_path / "models_clip.pth", torch.float32)(pixels)
    torch.testing.assert_close(half, wanted, atol=2e-2, rtol=2e-2)
    assert next(load_image_encoder(tmp_path / "models_clip.pth").parameters()).dtype == torch.float16
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no CLIP: x"):
        load_image_encoder(tmp_path / "other.pth")


def test_bad_pictures(model):
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\] in \[-1, 1\]; given \(3, 8, 8\)"):
        ImageEncoder(model)(torch.zeros(3, 8, 8))
