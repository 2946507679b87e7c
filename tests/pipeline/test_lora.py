"""A LoRA runs live by default; merged it gives the same velocity."""

from __future__ import annotations

import hashlib

import pytest
import torch

from pipeline.bundle import _network
from pipeline.config import ModelConfig
from tests import tiny
from utils.lora import inject, layers
from wan.checkpoint.key_maps import lora_state
from wan.checkpoint.parts import Parts
from wan.checkpoint.tensor_file import write_safetensors
from wan.checkpoint.weights import export_transformer
from wan.context import Full


@pytest.fixture
def files(tmp_path):
    model = tiny.transformer()
    export_transformer(tmp_path / "base.safetensors", model.state_dict(), model.spec)
    inject(model, rank=4)
    pairs = {n: (torch.randn(4, m.in_features), 0.1 * torch.randn(m.out_features, 4)) for n, m in layers(model).items()}
    write_safetensors(tmp_path / "lora.safetensors", lora_state(pairs))
    return tmp_path


def velocity(files, **knobs):
    config = ModelConfig(checkpoint=str(files / "base.safetensors"), dtype="fp32", **knobs)
    denoiser = _network(config, Parts(files, "official"), "", hashlib.sha256(), torch.device("cpu"), None, None)
    with torch.no_grad():
        return denoiser(tiny.latents(3), 0.7, tiny.condition(), Full()), denoiser


def test_live_equals_merged_and_differs_from_the_base(files):
    lora = str(files / "lora.safetensors")
    live, adapted = velocity(files, lora=lora)
    merged, plain = velocity(files, lora=lora, lora_merge=True)
    base, _ = velocity(files)
    assert layers(adapted) and not layers(plain)
    assert tiny.error(live, merged) < tiny.rounding(passes=1)
    assert tiny.error(live, base) > 10 * tiny.rounding(passes=1)
