"""The recorded full-size key lists: name -> shape of every official checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parents[2] / "parity" / "manifests"
TRANSFORMERS = {
    "wan2.1_t2v_1.3B": "t2v-1.3B",
    "wan2.1_t2v_14B": "t2v-14B",
    "wan2.1_i2v_14B": "i2v-14B",
    "wan2.2_ti2v_5B": "ti2v-5B",
    "wan2.2_t2v_A14B": "t2v-A14B",
    "wan2.2_i2v_A14B": "i2v-A14B",
}


def manifest(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Returns (config, state dict of meta tensors); the file's own totals are checked."""
    content = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    shapes = content["state_dict"]
    assert len(shapes) == content["num_tensors"]
    assert sum(math.prod(s) for s in shapes.values()) == content["num_parameters"]
    return content["config"], {k: torch.empty(s, device="meta") for k, s in shapes.items()}


def tensor_shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def numbered(state: dict[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    """Returns random tensors of the same shapes."""
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tensor.shape, generator=rng) for name, tensor in state.items()}


def tiny_transformer(blocks: int = 2, **sizes):
    """Returns (spec, random official weights) of a small transformer; `sizes` as in TransformerSpec."""
    from wan.spec import TransformerSpec
    from wan.transformer import WanTransformer

    spec = TransformerSpec(
        **{"dim": 48, "ffn_dim": 80, "num_heads": 2, "num_layers": blocks, "text_dim": 32, "freq_dim": 16} | sizes
    )
    with torch.device("meta"):
        shapes = WanTransformer(spec).state_dict()
    return spec, numbered(shapes)


def same(a: dict, b: dict) -> bool:
    """True for equal names, bits and dtypes."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
