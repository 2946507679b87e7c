"""Wan 2.2 S2V behind the face of `wan/family.py`: Wan with audio layers, a portrait and a pose."""

from __future__ import annotations

from wan.backbone import Wan
from wan.spec import S2V_SPECS, S2VSpec

FIXED = {"enable_adain": True, "adain_mode": "attn_norm", "zero_timestep": True, "enable_framepack": True}
FIXED |= {"framepack_drop_mode": "padd", "enable_motioner": False, "enable_tsm": False}


class S2V(Wan):
    """The speech-to-video model; VAE, text encoder and loading are those of Wan."""

    class_name = "WanS2VTransformer"
    class_names = ("WanS2VTransformer", "WanModel_S2V", "CausalWanModel_S2V")
    spec_class = S2VSpec
    specs = S2V_SPECS
    transformers = {
        "wan s2v transformer, official": (
            "patch_embedding.weight",
            "blocks.0.self_attn.q.weight",
            "casual_audio_encoder.",
        )
    }
    codecs: dict = {}  # those of Wan
    layouts = ("official",)

    def measure(self, state: dict) -> dict:
        encoder = "casual_audio_encoder.encoder"
        local, width = state[f"{encoder}.conv1_local.conv.weight"].shape[:2]
        return super().measure(state) | {
            "audio_dim": width,
            "audio_layers": state["casual_audio_encoder.weights"].shape[1],
            "num_audio_token": local // state[f"{encoder}.conv1_global.conv.weight"].shape[0],
        }

    def read_config(self, config, where: str) -> dict | None:
        told = super().read_config(config, where)
        wrong = [name for name, value in FIXED.items() if name in config and config[name] != value]
        if told is not None and wrong:
            name = wrong[0]
            raise ValueError(
                f"{where}: {name} is {config[name]!r}; S2V networks are read here with {name} {FIXED[name]!r} alone, "
                "as the published one has it"
            )
        return told

    def layout(self, name: str, state: dict, spec) -> tuple[dict, dict]:
        if name == "diffusers":
            raise ValueError("diffusers has no S2V transformer, so there is no such layout; write --to official")
        return super().layout(name, state, spec)

    def network(self, spec):
        from wan.audio.transformer import S2VTransformer

        return S2VTransformer(spec)
