"""A CogVideoX folder in diffusers' layout at tiny sizes with drawn weights: transformer, VAE, T5, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from cogvideox.denoiser import CogVideoXDenoiser
from cogvideox.family import CogVideoX, to_library
from cogvideox.spec import CogVideoXSpec
from cogvideox.transformer import CogVideoXTransformer
from cogvideox.vae import build_vae
from tests import tiny
from tests.architecture.source import ROOT
from wan.checkpoint.tensor_file import write_safetensors

SIZES = {"dim": 32, "ffn_dim": 128, "freq_dim": 32, "num_heads": 2, "num_layers": 2, "text_dim": 24, "text_len": 12}
SPEC = CogVideoXSpec(**SIZES, in_dim=4, out_dim=4, time_dim=16, sample_rows=4, sample_columns=6, sample_frames=9)
BLOCKS = {"down_block_types": ["CogVideoXDownBlock3D"] * 4, "up_block_types": ["CogVideoXUpBlock3D"] * 4}
VAE = {**BLOCKS, "block_out_channels": [4, 4, 4, 4], "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2}
VAE |= {"sample_height": 32, "sample_width": 48, "scaling_factor": 0.7}
T5 = {"d_model": 24, "d_kv": 6, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
T5 |= {"feed_forward_proj": "gated-gelu", "model_type": "t5", "relative_attention_num_buckets": 32}


def drawn(module: torch.nn.Module, dtype=None) -> torch.nn.Module:
    """Returns the module frozen, with drawn weights away from zero."""
    return tiny.filled(module, dtype=dtype)


def denoiser(spec: CogVideoXSpec = SPEC, dtype=None) -> CogVideoXDenoiser:
    """Returns the tiny network as a velocity field."""
    return CogVideoXDenoiser(drawn(CogVideoXTransformer(spec), dtype))


def write(folder: Path, spec: CogVideoXSpec = SPEC) -> Path:
    """Writes the folder; returns it."""
    from transformers import T5Config, T5EncoderModel

    tokens = len(json.loads((ROOT / "assets/digits/tokenizer/tokenizer.json").read_text())["model"]["vocab"])
    text = T5 | {"vocab_size": max(64, tokens)}
    parts = {
        "transformer": (drawn(CogVideoXTransformer(spec), torch.float32), to_library(spec)),
        "vae": (drawn(build_vae(VAE), torch.float32), {"_class_name": "AutoencoderKLCogVideoX", **VAE}),
        "text_encoder": (drawn(T5EncoderModel(T5Config(**text)), torch.float32), text),
    }
    for name, (module, config) in parts.items():
        (folder / name).mkdir(parents=True)
        state = {key: value.contiguous() for key, value in module.state_dict().items()}
        state.pop("encoder.embed_tokens.weight", None)  # tied
        write_safetensors(folder / name / "model.safetensors", state)
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer").symlink_to(ROOT / "assets/digits/tokenizer", target_is_directory=True)
    return folder


FAMILY = CogVideoX()
