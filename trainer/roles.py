"""Builds, loads and freezes the networks of a training: the roles."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from model.discriminator import Discriminator
from utils.atomic import write_json
from utils.rng import Rng, seed_libraries
from wan.denoiser import Denoiser
from wan.library import load_vae
from wan.options import TextConfig
from wan.parts import find_parts
from wan.spec import SPECS
from wan.tensor_file import write_safetensors
from wan.text import load_text_encoder
from wan.transformer import WanTransformer
from wan.vae import StreamingVAE
from wan.weights import load_strict, load_transformer


@dataclass
class RoleConfig:
    """One network. spec: its sizes when it starts from nothing; weights: a file or folder to start from."""

    spec: str = ""
    weights: str = ""
    use_ema: bool = False
    checkpointing: bool = False  # recompute activations during backward: less memory, more time

    def check(self):
        if bool(self.spec) == bool(self.weights):
            raise ValueError("write either spec (start from nothing) or weights (a file or folder), one of the two")
        if self.spec and self.spec not in SPECS:
            raise ValueError(f"spec {self.spec!r} is unknown; write one of {sorted(SPECS)}")

    def build(self, rng: Rng, device: torch.device) -> Denoiser:
        """Returns the network in fp32 on the device, freshly drawn or loaded."""
        if self.weights:
            spec, state = load_transformer(self.weights, use_ema=self.use_ema)
            transformer = WanTransformer(spec)
            load_strict(transformer, {k: v.float() for k, v in state.items()}, self.weights)
        else:
            seed_libraries(rng.at("init", self.spec))
            transformer = WanTransformer(SPECS[self.spec].transformer)
        transformer.checkpointing = self.checkpointing
        return Denoiser(transformer).to(device)


@dataclass
class Roles:
    """The networks that losses and sources ask for by name."""

    generator: Denoiser
    text: object  # prompts -> embeddings [B, T, width], kept per prompt
    device: torch.device
    teacher: Denoiser | None = None
    critic: Denoiser | None = None
    discriminator: torch.nn.Module | None = None
    vae: object | None = None
    negative_prompt: str = ""

    @classmethod
    def build(cls, model: str, generator: RoleConfig, text: TextConfig, rng: Rng, device: torch.device) -> Roles:
        """Returns the roles; `model` is the directory that holds the text encoder."""
        network = generator.build(rng, device)
        encoder = load_text_encoder(find_parts(model), network.spec.text_len, text, device)
        return cls(network, KeptText(encoder), device)

    @classmethod
    def for_distillation(cls, model: str, config, rng: Rng, device: torch.device) -> Roles:
        """Returns generator, teacher, critic (and discriminator) of a `DistillConfig`, with text encoder and VAE."""
        roles = cls.build(model, config.generator, config.text, rng, device)
        roles.teacher = config.teacher.build(rng, device).requires_grad_(False)
        roles.critic = config.critic.build(rng, device)
        if config.loss.name == "gan":
            seed_libraries(rng.at("init", "discriminator"))
            roles.discriminator = Discriminator(roles.critic.spec, config.loss.discriminator).to(device)
        roles.vae = StreamingVAE(load_vae(find_parts(model).need("vae")), config.vae).to(device).requires_grad_(False)
        roles.negative_prompt = config.negative_prompt
        return roles


class KeptText:
    """Encodes each prompt once."""

    def __init__(self, encoder):
        self.encoder, self._kept = encoder, {}

    @torch.no_grad()
    def __call__(self, prompts) -> torch.Tensor:
        """Returns the embeddings [B, T, width] of the prompts."""
        new = [p for p in dict.fromkeys(prompts) if p not in self._kept]
        if new:
            self._kept.update(zip(new, self.encoder(new), strict=True))
        return torch.stack([self._kept[p] for p in prompts])


def export_transformer(folder: str | Path, transformer: WanTransformer, weights: dict, dtype=torch.bfloat16) -> Path:
    """Writes `config.json` and `diffusion_pytorch_model.safetensors` with official names; a valid `--model` part."""
    folder = Path(folder) / "transformer"
    folder.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": "WanTransformer", **asdict(transformer.spec)}
    write_json(folder / "config.json", config)
    state = {k: v.detach().to(dtype).cpu().contiguous() for k, v in weights.items()}
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", state)
    return folder
