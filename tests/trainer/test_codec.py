"""The codec trainer: two steps on rendered clips, resumed to the bit, exported as a folder that loads."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.architecture.source import ROOT
from tests.trainer.test_regress import state_hash
from trainer.build import build
from trainer.codec import LOG_VARIANCE_START, codec_loss, make_codec
from trainer.config import CodecConfig, Stage, load_recipe
from utils.config.field import check
from utils.parallel.layout import ParallelLayout
from utils.rng import Rng
from wan.checkpoint.library import load_vae
from wan.codec.vae import StreamingVAE

SMALL = [
    "trainer.base_dim=4",
    "trainer.z_dim=4",
    "trainer.stages=[{frames: 5, batch: 1}]",
    "log_every=1",
    "trainer.digits.canvas=32",
]


@pytest.fixture
def config(monkeypatch):
    """config(*overrides) -> a codec recipe that is small enough for a test."""
    monkeypatch.setattr("trainer.codec.STATISTICS_CLIPS", 4)
    monkeypatch.setattr("trainer.codec.STATISTICS_FRAMES", 5)
    path = ROOT / "configs/train/digits_codec.yaml"
    return lambda *overrides: load_recipe(path, [*SMALL, *overrides])[0]


def test_two_steps_export_and_resume(config, tmp_path):
    whole = build(config("steps=2", "checkpoint.every=1"), tmp_path / "whole")
    whole.fit()
    vae = StreamingVAE(load_vae(tmp_path / "whole/export/vae")).eval()
    assert vae.spatial_stride == 8 and vae.dtype == torch.float32
    pixels = torch.linspace(-1, 1, 5 * 3 * 32 * 32).view(1, 5, 3, 32, 32)
    with torch.no_grad():
        latents = vae.encode(pixels)
        assert latents.shape == (1, 2, 4, 4, 4) and vae.decode(latents).shape == pixels.shape
    assert vae.std.unique().numel() == 1 and vae.std.min() > 0 and vae.mean.abs().max() > 0
    assert {p.dtype for p in whole.method.model.parameters()} == {torch.float32}, "the export changed what trains"
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(math.isfinite(row[k]) for row in rows for k in ("loss", "kl", "psnr", "psnr_ink"))

    parts = build(config("steps=2", "checkpoint.every=1"), tmp_path / "parts")
    parts.total = 1
    parts.fit()
    resumed = build(config("steps=2", "checkpoint.every=1"), tmp_path / "parts")
    resumed.fit()
    assert state_hash(resumed.method) == state_hash(whole.method) != state_hash(parts.method)


def test_the_loss_weighs_ink_and_fades_the_kl_in():
    settings = CodecConfig(base_dim=4, z_dim=4, beta=1.0)
    torch.manual_seed(0)
    model = make_codec(settings)
    pixels = torch.full((1, 3, 1, 32, 32), -1.0)
    pixels[..., :8, :8] = 1.0

    def loss(progress, **changes):
        with torch.no_grad():
            changed = CodecConfig(**{"base_dim": 4, "z_dim": 4, "beta": 1.0, **changes})
            return codec_loss(model, pixels, progress, changed, Rng(0))

    begin, metrics = loss(0.0)
    assert loss(0.15)[0] == begin
    half, end = loss(0.325)[0], loss(0.5)[0]
    assert half - begin == pytest.approx(metrics["kl"].item() / 2, rel=1e-4)
    assert end - begin == pytest.approx(metrics["kl"].item(), rel=1e-4) and loss(1.0)[0] == end
    assert loss(0.0, foreground=0.0)[0] < begin
    assert model.quant_conv.bias[4:].unique().tolist() == [LOG_VARIANCE_START]


def test_stages_lengthen_the_clips(config):
    settings = config("steps=10", "trainer.stages=[{frames: 5, batch: 2}, {start: 0.5, frames: 9, batch: 1}]")
    method = settings.trainer.build(settings, Rng(0), torch.device("cpu"), ParallelLayout.single())
    shapes = [tuple(method.clips(step, step / 10).shape) for step in (0, 4, 5, 9)]
    assert shapes == [(2, 3, 5, 32, 32)] * 2 + [(1, 3, 9, 32, 32)] * 2
    clips = method.clips(0, 0.0)
    assert (clips.min(), clips.max()) == (-1, 1)
    assert torch.equal(clips, method.clips(0, 0.0)) and not torch.equal(clips, method.clips(1, 0.0))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"stages": []}, "the first does not start at 0"),
        ({"stages": [Stage(0.5)]}, "start at 0"),
        ({"kl_ramp": (0.5, 0.5)}, "that rise"),
    ],
)
def test_wrong_knobs(wrong, words):
    with pytest.raises(ValueError, match=words):
        check(CodecConfig(**wrong))
