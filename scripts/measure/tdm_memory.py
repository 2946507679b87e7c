"""Arithmetic behind `estimate_memory.py tdm`: what a GPU holds in a TDM training by LoRA, by recipe and sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.measure.memory import BF16, FP32, block_inputs, count, inside_block, on_meta, part

RECIPES = Path(__file__).resolve().parents[2] / "configs/train"


@dataclass(frozen=True)
class Case:
    """One training. joined: the text's tokens stand in the sequence."""

    model: str
    recipe: str
    ranks: int
    joined: bool = False


CASES = (Case("cogvideox-5B", "tdm_cogvideox", 2, joined=True), Case("t2v-1.3B", "tdm_wan", 2))


def rows() -> list[dict]:
    """Returns one row a case: its fields, parts {what, sum, GB}, total."""
    made = []
    for case in CASES:
        parts = list(estimate(case))
        made.append({**asdict(case), "parts": parts, "total": round(sum(p["GB"] for p in parts), 3)})
    return made


def title(row: dict) -> str:
    """Returns the line above a row's parts."""
    return f"{row['model']}, {row['ranks']} GPUs, configs/train/{row['recipe']}.yaml"


def estimate(case: Case) -> Iterator[dict]:
    """Yields the parts of one GPU's memory: one clip at a time, prompts encoded before, frozen bases shared out."""
    from trainer.config import load_recipe
    from wan.family import find_published
    from wan.geometry import Geometry

    trainer = load_recipe(RECIPES / f"{case.recipe}.yaml")[0].trainer
    spec = find_published(case.model)
    sizes, (whole, block) = spec.transformer, count(case.model)
    added = sum(count_adapters(case.model, role.lora) for role in (trainer.generator, trainer.critic))
    yield part(
        "three frozen bases",
        3 * whole * BF16 / case.ranks,
        f"3 x {whole / 1e9:.2f}e9 x {BF16} / {case.ranks}",
    )
    held = added * 3 * FP32 / case.ranks
    yield part("adapters", held, f"{added / 1e6:.1f}e6 x {3 * FP32} bytes (master, two moments) / {case.ranks}")
    yield part("gathered weights", 2 * block * BF16 + (whole % block) * BF16, "two blocks, the ends")
    tokens = trainer.source.frames * Geometry.of(spec, 0, 0).frame_tokens + case.joined * sizes.text_len
    yield block_inputs(tokens, sizes)
    yield inside_block("inside one block", tokens, sizes)


def count_adapters(model: str, lora) -> int:
    """Returns the values of a role's LoRA: rank x (in + out) of each linear layer that its recipe names."""
    found = [module for name, module in on_meta(model).named_modules() if re.search(lora.targets, name)]
    linears = [module for module in found if hasattr(module, "in_features")]
    return lora.rank * sum(linear.in_features + linear.out_features for linear in linears)
