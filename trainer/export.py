"""Writes a trained generator in the layout that inference reads."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.config import RoleConfig
from trainer.lora import export_lora
from utils.atomic import write_json
from utils.config.text import to_dict
from utils.parallel import fsdp, ranks
from wan.attention.config import NoSparsity
from wan.checkpoint.tensor_file import write_safetensors
from wan.family import write_config
from wan.generation import FILE, GenerationConfig
from wan.spec import TransformerSpec

EXPORTED = torch.bfloat16  # what weights are exported in


def export_generator(
    folder: str | Path, spec: TransformerSpec, state: dict, role: RoleConfig, generation: GenerationConfig
) -> None:
    """Writes weights, or their average, in bf16, and how they generate; all ranks call this together, the first writes.

    state: of the network, possibly sharded. With LoRA: the merged model if asked for, else the adapters alone
    in `lora.safetensors`, under peft's names, with their alpha.
    """
    config = role.lora
    state = {name: fsdp.whole(tensor.detach()).cpu() for name, tensor in state.items()}
    if ranks.rank():
        return
    state, notes = export_lora(config, state) if config.rank else (state, {})
    if config.rank and not config.merged:
        write_tensors(Path(folder) / "lora.safetensors", state, notes=notes)
    else:
        folder = write_transformer(folder, spec, state)
    sparse = {} if isinstance(role.sparse, NoSparsity) else {"sparse": to_dict(role)["sparse"]}
    write_json(Path(folder) / FILE, {**to_dict(generation), **sparse})


def write_transformer(folder: str | Path, spec: TransformerSpec, state: dict, dtype=EXPORTED) -> Path:
    """Writes `transformer/config.json` and its weights with official names: a part of a model folder."""
    folder = Path(folder) / "transformer"
    write_tensors(folder / "diffusion_pytorch_model.safetensors", state, dtype)
    write_json(folder / "config.json", write_config(spec))
    return folder


def write_tensors(path: Path, state: dict, dtype=EXPORTED, notes: dict[str, str] | None = None) -> None:
    """Writes one safetensors file in `dtype`, with its folder. notes: fields of its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, {k: v.detach().to(dtype).cpu().contiguous() for k, v in state.items()}, notes)
