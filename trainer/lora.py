"""LoRA on a role: which layers, what it starts from, and what is written of it."""

from __future__ import annotations

import torch

from trainer.config import LoraConfig
from utils import lora
from utils.rng import Rng, seed_libraries
from wan.checkpoint.key_maps import lora_state
from wan.checkpoint.weights import load_lora, merge_lora


def apply_lora(config: LoraConfig, transformer: torch.nn.Module, rng: Rng, trained: bool) -> None:
    """Injects the adapters (fp32 weights); of a trained network only they are trained."""
    seed_libraries(rng)
    lora.inject(transformer, config.rank, config.alpha or None, config.targets)
    if config.weights:
        lora.load_pairs(transformer, load_lora(config.weights, role=config.role))
    if not trained:
        transformer.requires_grad_(False)


def export_lora(config: LoraConfig, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns what is written of a state dict with adapters: merged weights, or peft's names of the adapters."""
    names = [n.removesuffix(".lora_A.default.weight") for n in state if n.endswith(".lora_A.default.weight")]
    pairs = {n: tuple(state[f"{n}.lora_{half}.default.weight"] for half in "AB") for n in names}
    if not config.merged:
        return lora_state(pairs)
    base = {n.replace(".base_layer.", "."): t for n, t in state.items() if ".lora_" not in n}
    return merge_lora(base, pairs, config.alpha or None)
