"""Trainings start from LoRA files of other makers, at the strength that these say."""

from __future__ import annotations

import re

import pytest
import torch

from tests import tiny, tolerance
from tests.wan.checkpoint.lora_files import MAKERS, MODULES, draw_pairs, write
from trainer.config import LoraConfig
from trainer.lora import apply_lora, export_lora
from utils.lora import layers
from utils.rng import Rng

TARGETS = "|".join(map(re.escape, MODULES))


@pytest.mark.parametrize("maker", ["kohya", "peft rslora", "diffusers", "header"])
@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_start_keeps_the_update_of_the_file(maker, alpha, tmp_path):
    transformer = tiny.transformer(dtype=torch.float64)
    pairs = draw_pairs(transformer.state_dict(), modules=MODULES)
    path = MAKERS[maker](tmp_path / "lora.safetensors", {m: (a.float(), b.float()) for m, (a, b) in pairs.items()})
    config = LoraConfig(rank=3, alpha=alpha, targets=TARGETS, weights=str(path))
    apply_lora(config, transformer, Rng(0), trained=True)
    assert layers(transformer).keys() == set(MODULES)
    for name, layer in layers(transformer).items():
        (a, b), own = pairs[name], layer.scaling["default"]
        update = own * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(update, 2.5 * b.double() @ a.double(), rtol=tolerance.EXACT, atol=tolerance.EXACT)
    written, notes = export_lora(config, transformer.state_dict())
    assert len(written) == 2 * len(MODULES) and notes == {"rank": "3", "lora_alpha": "1.5" if alpha else "3"}


def test_start_from_what_no_adapter_holds_is_refused(tmp_path):
    transformer = tiny.transformer()
    extra = {"diffusion_model.blocks.0.norm3.diff_b": torch.zeros(32)}
    path = write(tmp_path / "l.safetensors", draw_pairs(transformer.state_dict()), "diffusion_model.", extra=extra)
    config = LoraConfig(rank=3, targets=TARGETS, weights=str(path))
    with pytest.raises(ValueError, match="also adds tensors to 1 parameters .blocks.0.norm3.bias.*merge it"):
        apply_lora(config, transformer, Rng(0), trained=True)
    path = write(tmp_path / "l.safetensors", draw_pairs(transformer.state_dict()))
    with pytest.raises(ValueError, match="l.safetensors: the LoRA does not fit. .*without weights.*the targets"):
        apply_lora(LoraConfig(rank=3, weights=str(path)), transformer, Rng(0), trained=True)
