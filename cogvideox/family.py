"""CogVideoX, version 1, behind the face of `wan/family.py`: text to video, whole clips."""

from __future__ import annotations

from cogvideox.spec import SPECS, CogVideoXSpec
from utils.json_reader import get
from wan.backbone import Wan

LIBRARY = "CogVideoXTransformer3DModel"  # its class in diffusers, whose config.json has other keys
OTHER = "; read here is text to video of version 1: CogVideoX-2b and CogVideoX-5b"
FIXED = {"activation_fn": "gelu-approximate", "attention_bias": True, "flip_sin_to_cos": True, "freq_shift": 0}
FIXED |= {"timestep_activation_fn": "silu", "norm_elementwise_affine": True, "patch_bias": True}
FIXED |= {"spatial_interpolation_scale": 1.875, "temporal_interpolation_scale": 1.0, "temporal_compression_ratio": 4}


class CogVideoX(Wan):
    """Official names are those of diffusers, the only layout there is."""

    class_name = "CogVideoXTransformer"
    class_names = ("CogVideoXTransformer", LIBRARY)
    spec_class = CogVideoXSpec
    specs = SPECS
    transformers = {
        "cogvideox transformer": (
            "patch_embed.proj.weight",
            "patch_embed.text_proj.weight",
            "transformer_blocks.0.norm1.linear.weight",
            "transformer_blocks.0.attn1.to_q.weight",
        )
    }
    codecs = {"vae, cogvideox": ("encoder.conv_in.conv.weight", "decoder.conv_in.conv.weight", "decoder.up_blocks.0.")}
    layouts = ("diffusers",)

    def rename(self, state: dict, kind: str) -> dict:
        return state

    def measure(self, state: dict) -> dict:
        patch, blocks = state["patch_embed.proj.weight"], "transformer_blocks."
        if patch.ndim == 2:
            raise ValueError(f"these are weights of CogVideoX 1.5, whose patches hold two frames{OTHER}")
        if "ofs_embedding.linear_1.weight" in state or patch.shape[1] != state["proj_out.bias"].shape[0] // 4:
            raise ValueError(f"these are weights of a CogVideoX that continues a picture{OTHER}")
        return {
            "dim": patch.shape[0],
            "freq_dim": patch.shape[0],
            "in_dim": patch.shape[1],
            "out_dim": state["proj_out.weight"].shape[0] // (patch.shape[2] * patch.shape[3]),
            "patch_size": (1, patch.shape[2], patch.shape[3]),
            "text_dim": state["patch_embed.text_proj.weight"].shape[1],
            "time_dim": state["time_embedding.linear_1.weight"].shape[0],
            "ffn_dim": state[f"{blocks}0.ff.net.0.proj.weight"].shape[0],
            "num_heads": patch.shape[0] // state[f"{blocks}0.attn1.norm_q.weight"].shape[0],
            "num_layers": 1 + max(int(name.split(".")[1]) for name in state if name.startswith(blocks)),
        }

    def read_config(self, config, where: str) -> dict | None:
        if config.get("_class_name") == self.class_name:
            return self.spec_class.select_fields(config, where)
        if config.get("_class_name") != LIBRARY:
            return None
        if config.get("patch_size_t") is not None:
            raise ValueError(f"{where} is of CogVideoX 1.5, whose patches hold two frames{OTHER}")
        if config.get("use_learned_positional_embeddings") or config.get("ofs_embed_dim"):
            raise ValueError(f"{where} is of a CogVideoX that continues a picture{OTHER}")
        for name, value in FIXED.items():
            if name in config and config[name] != value:
                raise ValueError(f"{where}: {name} is {config[name]!r}; networks are read here with {value!r} alone")
        heads, width = (get(config, name, int, where) for name in ("num_attention_heads", "attention_head_dim"))
        told = {name: get(config, key, int, where) for name, key in NAMES.items() if key in config}
        patch, rotary = told.pop("patch", 2), config.get("use_rotary_positional_embeddings", False)
        told |= {"dim": heads * width, "freq_dim": heads * width, "ffn_dim": 4 * heads * width, "num_heads": heads}
        told |= {"patch_size": (1, patch, patch), "rotary": bool(rotary), "snr_shift": snr_shift(bool(rotary))}
        if "norm_eps" in config:
            told["eps"] = get(config, "norm_eps", float, where)
        return told

    def spec(self, told: dict, measured: dict) -> CogVideoXSpec:
        told = {"snr_shift": snr_shift(told.get("rotary", True))} | told
        return self.spec_class(**{**measured, **told})

    def layout(self, name: str, state: dict, spec) -> tuple[dict, dict]:
        if name != "diffusers":
            raise ValueError(f"{self.class_name} has no {name} layout; write --to diffusers or --to longtake")
        return state, to_library(spec)

    def network(self, spec):
        from cogvideox.transformer import CogVideoXTransformer

        return CogVideoXTransformer(spec)

    def denoiser(self, network):
        from cogvideox.denoiser import CogVideoXDenoiser

        return CogVideoXDenoiser(network)

    def experts(self, low, high, boundary: float):
        raise ValueError("CogVideoX has one transformer, no experts")

    def open_vae(self, path, config, device):
        from cogvideox.vae import open_vae

        return open_vae(path, config, device)

    def latent_channels(self, path) -> int | None:
        from wan.checkpoint.tensor_file import read_config

        config = read_config(path) if path.is_dir() else None
        return get(config, "latent_channels", int, f"{path}/config.json", None) if config else None

    def open_text(self, parts, spec, config, device):
        from cogvideox.text import T5Text
        from wan.encoders.text import load_text_encoder

        return load_text_encoder(parts, spec.text_len, config, device, T5Text)

    def open_image(self, parts, spec, dtype, device):
        return None


NAMES = {"in_dim": "in_channels", "out_dim": "out_channels", "time_dim": "time_embed_dim", "patch": "patch_size"}
NAMES |= {"text_dim": "text_embed_dim", "text_len": "max_text_seq_length", "num_layers": "num_layers"}
NAMES |= {"sample_rows": "sample_height", "sample_columns": "sample_width", "sample_frames": "sample_frames"}


def snr_shift(rotary: bool) -> float:
    """Returns the shift of the noise schedule: the published 2B, without rotation, was trained with 3, 5B with none."""
    return 1.0 if rotary else 3.0


def to_library(spec: CogVideoXSpec) -> dict:
    """Returns the config.json of diffusers for these sizes."""
    named = {key: vars(spec)[name] for name, key in NAMES.items() if name != "patch"}
    heads = {"num_attention_heads": spec.num_heads, "attention_head_dim": spec.head_dim}
    rest = {"patch_size": spec.patch_size[1], "norm_eps": spec.eps, "use_rotary_positional_embeddings": spec.rotary}
    return {"_class_name": LIBRARY, **heads, **named, **rest, **FIXED}
