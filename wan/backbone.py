"""The Wan family behind the face of `wan/family.py`; others derive from it what they share."""

from __future__ import annotations

from dataclasses import asdict

from utils.json_reader import get
from wan.spec import SPECS, TransformerSpec

DIFFUSERS = "WanTransformer3DModel"  # its class in diffusers, whose config.json has other keys


class Wan:
    """Wan 2.1 and 2.2: one transformer class, the two VAEs, umT5 and CLIP. What heavy imports need is imported late."""

    class_name = "WanTransformer"
    class_names: tuple[str, ...] = ("WanTransformer", "WanModel", "CausalWanModel", DIFFUSERS)
    spec_class = TransformerSpec
    specs = SPECS
    transformers: dict[str, tuple[str, ...]] = {
        "wan transformer, official": ("patch_embedding.weight", "blocks.0.self_attn.q.weight", "head.head.weight"),
        "wan transformer, diffusers": ("patch_embedding.weight", "blocks.0.attn1.to_q.weight", "proj_out.weight"),
    }
    codecs: dict[str, tuple[str, ...]] = {
        "vae 2.2": ("encoder.downsamples.0.downsamples.", "decoder.upsamples.0.upsamples."),
        "vae 2.1": ("encoder.downsamples.0.", "decoder.upsamples.0.", "conv1.weight"),
        "vae 2.2, diffusers": ("encoder.down_blocks.0.resnets.", "decoder.up_blocks.0.", "quant_conv.weight"),
        "vae 2.1, diffusers": ("encoder.down_blocks.0.", "decoder.up_blocks.0.", "quant_conv.weight"),
    }
    layouts: tuple[str, ...] = ("official", "diffusers")  # that `layout` can write

    def rename(self, state: dict, kind: str) -> dict:
        from wan.checkpoint.key_maps import transformer_to_official

        return transformer_to_official(state) if kind.endswith(", diffusers") else state

    def measure(self, state: dict) -> dict:
        patch = state["patch_embedding.weight"].shape
        cells = patch[2] * patch[3] * patch[4]
        image = state.get("img_emb.proj.1.weight")
        return {
            "dim": patch[0],
            "in_dim": patch[1],
            "patch_size": tuple(patch[2:]),
            "out_dim": state["head.head.weight"].shape[0] // cells,
            "ffn_dim": state["blocks.0.ffn.0.weight"].shape[0],
            "freq_dim": state["time_embedding.0.weight"].shape[1],
            "text_dim": state["text_embedding.0.weight"].shape[1],
            "num_layers": 1 + max(int(n.split(".")[1]) for n in state if n.startswith("blocks.")),
            "qk_norm": "blocks.0.self_attn.norm_q.weight" in state,
            "cross_attn_norm": "blocks.0.norm3.weight" in state,
            "image_dim": 0 if image is None else image.shape[1],
        }

    def read_config(self, config, where: str) -> dict | None:
        from wan.checkpoint.key_maps import config_from_diffusers

        named = config.get("_class_name")
        # A config.json of something else next to a checkpoint (a language model's, a VAE's) tells nothing.
        if named not in self.class_names and not {"num_heads", "dim"} <= config.keys():
            return None
        if named == DIFFUSERS or ("num_attention_heads" in config and "num_heads" not in config):
            config = config_from_diffusers(config, where)
        return self.spec_class.select_fields(config, where)

    def spec(self, told: dict, measured: dict) -> TransformerSpec:
        # Official configs leave out what their class fixes, and the CLIP width; the shapes know both.
        return self.spec_class.from_config({**measured, **told, "image_dim": measured["image_dim"]})

    def layout(self, name: str, state: dict, spec: TransformerSpec) -> tuple[dict, dict]:
        from wan.checkpoint.key_maps import config_to_diffusers, config_to_official, transformer_to_diffusers

        if name not in self.layouts:
            raise ValueError(f"{self.class_name} has no {name} layout; write --to longtake")
        if name == "diffusers":
            return transformer_to_diffusers(state), config_to_diffusers(asdict(spec))
        return state, config_to_official(asdict(spec))

    def network(self, spec: TransformerSpec):
        from wan.transformer import WanTransformer

        return WanTransformer(spec)

    def denoiser(self, network):
        from wan.denoiser import Denoiser

        return Denoiser(network)

    def experts(self, low, high, boundary: float):
        from wan.denoiser import ExpertDenoiser

        return ExpertDenoiser(low, high, boundary)

    def open_vae(self, path, config, device):
        from wan.codec.vae import open_vae

        return open_vae(path, config, device)

    def latent_channels(self, path) -> int | None:
        from wan.checkpoint.tensor_file import read_config

        config = read_config(path) if path.is_dir() else None
        published = {spec.vae_file: spec.latent_channels for spec in self.specs.values()}
        return get(config, "z_dim", int, f"{path}/config.json", None) if config else published.get(path.name)

    def text_width(self, path) -> int | None:
        from wan.checkpoint.library import TEXT_CONFIG
        from wan.checkpoint.tensor_file import read_config

        if not path.is_dir():
            return TEXT_CONFIG["dim"]  # a bare file is the published umT5
        config = read_config(path)
        return get(config, "d_model", int, f"{path}/config.json", None) if config else None

    def open_text(self, parts, spec: TransformerSpec, config, device):
        from wan.encoders.text import load_text_encoder

        return load_text_encoder(parts, spec.text_len, config, device)

    def open_image(self, parts, spec: TransformerSpec, dtype, device):
        from wan.encoders.image import load_image_encoder

        return load_image_encoder(parts.need("image_encoder"), dtype, device) if spec.image_dim else None
