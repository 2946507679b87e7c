"""LoRA on a role: which layers, what it starts from, and what is written of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from utils import lora
from utils.rng import Rng, seed_libraries
from wan.checkpoint.key_maps import lora_state
from wan.checkpoint.weights import load_lora, merge_lora


@dataclass
class LoraConfig:
    """Adapters beside the linears whose names match `targets`; rank 0 = none, the whole network is trained.

    alpha: scale is alpha / rank, 0 = rank. weights: a LoRA file to start from (ours, peft's, LongLive's).
    merged: exports hold base + adapters as one plain model, else the adapters alone.
    """

    rank: int = 0
    alpha: float = 0.0
    targets: str = lora.BLOCK_LINEARS
    weights: str = ""
    role: str = "generator"  # which LoRA of `weights`, where it holds those of generator and critic
    merged: bool = False

    def problems(self) -> Iterator[str]:
        if self.rank < 0 or self.alpha < 0:
            yield "lora.rank and lora.alpha must be 0 or more"
        if (self.weights or self.merged) and not self.rank:
            yield "lora.weights and lora.merged need lora.rank (the rank of the adapters)"

    def apply(self, transformer: torch.nn.Module, rng: Rng, trained: bool) -> None:
        """Injects the adapters (fp32 weights); of a trained network only they are trained."""
        seed_libraries(rng)
        lora.inject(transformer, self.rank, self.alpha or None, self.targets)
        if self.weights:
            lora.load_pairs(transformer, load_lora(self.weights, role=self.role))
        if not trained:
            transformer.requires_grad_(False)

    def export(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns what is written of a state dict with adapters: merged weights, or peft's names of the adapters."""
        names = [n.removesuffix(".lora_A.default.weight") for n in state if n.endswith(".lora_A.default.weight")]
        pairs = {n: tuple(state[f"{n}.lora_{half}.default.weight"] for half in "AB") for n in names}
        if not self.merged:
            return lora_state(pairs)
        base = {n.replace(".base_layer.", "."): t for n, t in state.items() if ".lora_" not in n}
        return merge_lora(base, pairs, self.alpha or None)
