"""LoRA on a role: which layers, what it starts from, and what is written of it."""

from __future__ import annotations

import torch

from trainer.config import LoraConfig
from utils import lora
from utils.rng import Rng, seed_libraries
from wan.checkpoint.key_maps import lora_state
from wan.checkpoint.lora import LoraPair, merge_lora, read_lora
from wan.checkpoint.lora_scale import header


def apply_lora(config: LoraConfig, transformer: torch.nn.Module, rng: Rng, trained: bool) -> None:
    """Injects the adapters (fp32 weights); of a trained network only they are trained."""
    seed_libraries(rng)
    if config.weights:
        load_start(config, transformer, shapes_only=False)
    else:
        lora.inject(transformer, config.rank, config.alpha or None, config.targets)
    if not trained:
        transformer.requires_grad_(False)


def load_start(config: LoraConfig, transformer: torch.nn.Module, shapes_only: bool = True) -> None:
    """Injects adapters with the weights of a LoRA file, whose updates keep their strength under another alpha.

    Errors: ValueError naming the file, if it does not fit the transformer or has pairs for other layers or ranks.
    """
    start = read_start(config, transformer, shapes_only)
    lora.inject(transformer, config.rank, config.alpha or None, config.targets)
    try:
        lora.load_pairs(transformer, start)
    except ValueError as error:
        raise ValueError(f"{config.weights}: {error}; write the rank and the targets of that file") from error


def read_start(config: LoraConfig, transformer: torch.nn.Module, shapes_only: bool) -> dict[str, LoraPair]:
    """Returns the pairs that the adapters start from, by the names of a transformer without adapters.

    Errors: ValueError for a file that is no LoRA of this transformer, or adds tensors that no adapter can hold.
    """
    found = read_lora(config.weights, role=config.role, shapes_only=shapes_only)
    update = found.fit(dict(transformer.named_parameters()), transformer.spec)
    if update.added:
        raise ValueError(
            f"{found.path} also adds tensors to {len(update.added)} parameters ({next(iter(update.added))}), which no "
            "adapter holds; merge it into the base (convert_weights.py merge) and start from that"
        )
    return update.pairs


def export_lora(config: LoraConfig, state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Returns what is written of a state dict with adapters, and the fields of its header: merged weights, or the
    adapters under peft's names, whose header says their alpha.
    """
    names = [n.removesuffix(".lora_A.default.weight") for n in state if n.endswith(".lora_A.default.weight")]
    scale = (config.alpha or config.rank) / config.rank
    halves = {n: [state[f"{n}.lora_{half}.default.weight"] for half in "AB"] for n in names}
    pairs = {n: LoraPair(a, b, scale) for n, (a, b) in halves.items()}
    if not config.merged:
        return lora_state(pairs), header(config.rank, config.alpha or config.rank)
    base = {n.replace(".base_layer.", "."): t for n, t in state.items() if ".lora_" not in n}
    return merge_lora(base, pairs), {}
