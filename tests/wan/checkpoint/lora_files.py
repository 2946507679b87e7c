"""One LoRA written as each of its makers writes it, over the tiny transformer of the manifest."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from wan.checkpoint.key_maps import transformer_to_diffusers

MODULES = ("blocks.0.self_attn.v", "blocks.1.cross_attn.o", "blocks.1.ffn.0", "time_projection.1")


def draw_pairs(state, rank=3, seed=2, modules=MODULES) -> dict:
    """Returns module -> (A, B)."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {m: state[f"{m}.weight"].shape for m in modules}
    return {
        m: (0.2 * torch.randn(rank, i, generator=rng), 0.2 * torch.randn(o, rank, generator=rng))
        for m, (o, i) in shapes.items()
    }


def diffusers_name(module: str) -> str:
    """Returns diffusers' name of an official module."""
    (name,) = transformer_to_diffusers({f"{module}.weight": torch.zeros(1)})
    return name.removesuffix(".weight")


def write(
    path, pairs, prefix="", ends=("lora_A.weight", "lora_B.weight"), rename=str, alpha=None, notes=None, extra=()
):
    """Writes the pairs under a maker's names; alpha: `.alpha` tensors; notes: of the header."""
    state = dict(extra)
    for module, pair in pairs.items():
        name = prefix + rename(module)
        state |= {f"{name}.{end}": tensor.clone() for end, tensor in zip(ends, pair, strict=True)}
        state |= {} if alpha is None else {f"{name}.alpha": torch.tensor(float(alpha))}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, notes)
    return path


def underscored(module: str) -> str:
    """Returns kohya's name of a module."""
    return module.replace(".", "_")


DOWN_UP = ("lora_down.weight", "lora_up.weight")
# maker -> writer(path, pairs) of a file of rank 3 and alpha 7.5
MAKERS = {
    "peft": lambda path, pairs: _peft(path, pairs, {"r": 3, "lora_alpha": 7.5}),
    "peft patterns": lambda path, pairs: _peft(
        path,
        pairs,
        {
            "r": 8,
            "lora_alpha": 1,
            "rank_pattern": {"[a-z_.0-9]*": 3},
            "alpha_pattern": {r".*\d": 7.5, "v": 7.5, "o": 7.5},
        },
    ),
    "peft rslora": lambda path, pairs: _peft(path, pairs, {"r": 3, "lora_alpha": 7.5 / 3**0.5, "use_rslora": True}),
    "diffusers": lambda path, pairs: write(
        path,
        pairs,
        "transformer.",
        rename=diffusers_name,
        notes={"lora_adapter_metadata": json.dumps({"transformer.r": 3, "transformer.lora_alpha": 7.5})},
    ),
    "diffusers alpha": lambda path, pairs: write(path, pairs, "transformer.", rename=diffusers_name, alpha=7.5),
    "kohya": lambda path, pairs: write(
        path, pairs, "lora_unet_", DOWN_UP, underscored, 7.5, {"ss_network_alpha": "Dynamic"}
    ),
    "kohya header": lambda path, pairs: write(
        path, pairs, "lora_unet_", DOWN_UP, underscored, notes={"ss_network_dim": "3", "ss_network_alpha": "7.5"}
    ),
    "kohya of diffusers": lambda path, pairs: write(
        path, pairs, "lora_transformer_", DOWN_UP, lambda m: underscored(diffusers_name(m)), 7.5
    ),
    "comfy": lambda path, pairs: write(path, pairs, "diffusion_model.", DOWN_UP, alpha=7.5),
    "header": lambda path, pairs: write(path, pairs, notes={"lora_alpha": "7.5"}),
    "old diffusers": lambda path, pairs: write(path, pairs, ends=("lora.down.weight", "lora.up.weight"), alpha=7.5),
}


def _peft(path, pairs, config):
    write(path.with_suffix("") / "adapter_model.safetensors", pairs, "base_model.model.")
    (path.with_suffix("") / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return path.with_suffix("")
