"""The parts of a model, loaded and on their device: network, VAE, text and image encoders."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.config import ModelConfig, OffloadConfig
from pipeline.trained import fetch
from utils import hub, offload
from utils.lora import inject_pairs
from utils.parallel import ranks
from utils.precision import check_float8, to_float8
from wan.attention import dispatch, selector
from wan.audio.features import HiddenStates, load_hidden_states
from wan.checkpoint.lora import LoraUpdate, add_tensors, combine, lora_file, merge_lora, read_lora
from wan.checkpoint.parts import Parts, find_parts, weight_files
from wan.checkpoint.weights import Sizes, Weights, read_weights
from wan.codec.base import Codec, StreamingDecoder, check_fit, resolve_device
from wan.condition import Condition
from wan.config import WIDE_LINEARS, TextConfig, VAEConfig
from wan.denoiser import Denoiser, ExpertDenoiser
from wan.encoders.prompts import PromptCache
from wan.encoders.text import DTYPES
from wan.family import find_published, get_family, spec_for
from wan.spec import ModelSpec, S2VSpec

logger = logging.getLogger(__name__)
HASHED_BYTES = 4096  # of each tensor; hashing all 28 GB would take longer than generating a video
ROLES = ("text", "denoise", "decode")
CACHED_PROMPTS = 64  # whose embeddings are kept; a long session may use many prompts


@dataclass
class ModelBundle:
    """A loaded model. `text`: prompts -> embeddings; `weights_hash` tells two sets of weights apart.

    vae: encodes what a video starts from. decoder: makes the pixels; by default the VAE. files: part -> the files or
    folders that it was read from, by name; empty for parts that were loaded elsewhere.
    """

    spec: ModelSpec
    denoiser: Denoiser | ExpertDenoiser
    vae: Codec
    text: Callable[[list[str]], torch.Tensor]
    image: Any
    device: torch.device
    dtype: torch.dtype
    weights_hash: str
    decoder: StreamingDecoder | None = None
    files: dict[str, dict[str, Path]] = field(default_factory=dict)
    offload: OffloadConfig = field(default_factory=OffloadConfig)

    def __post_init__(self):
        self._hearing: dict[Path, HiddenStates] = {}
        if self.decoder is None:
            self.decoder = self.vae

    @classmethod
    def of(cls, denoiser: Denoiser, vae: Codec, text, device: torch.device, dtype: torch.dtype) -> ModelBundle:
        """Returns the bundle of parts that are loaded already (a training's), for text to video."""
        return cls(spec_for(denoiser.spec, vae.strides), denoiser, vae, text, None, device, dtype, "")

    def condition(self, prompts: list[str], negative: str | list[str] | None) -> Condition:
        """Returns the text condition of a batch; `negative`: one for all, one each, or None for one branch."""
        if isinstance(negative, str):
            null = self.encode([negative]).expand(len(prompts), -1, -1)
        else:
            null = None if negative is None else self.encode(negative)
        return Condition(self.encode(prompts), null)

    def hear(self, path: str = "") -> HiddenStates:
        """Returns the audio encoder in folder `path`, or the model's own; kept, for all videos of a run share it.

        Errors: ValueError for a model that does not hear, without an encoder, or for one of another width.
        """
        spec, own = self.spec.transformer, self.files.get("audio_encoder", {})
        if not isinstance(spec, S2VSpec):
            raise ValueError(f"{self.spec.name} does not hear; take an S2V model (s2v-14B), or pipeline.name=causal")
        if not (path or own):
            raise ValueError(
                f"{self.spec.name} was loaded from a folder without an audio encoder (audio_encoder/ or wav2vec2-*/); "
                "name one: pipeline.encoder=FOLDER"
            )
        folder = hub.resolve(path) if path else own[""]
        if folder not in self._hearing:
            states = load_hidden_states(folder, self.device)
            if states.size != (spec.audio_layers, spec.audio_dim):
                raise ValueError(
                    f"{folder} makes {states.size[0]} hidden states of width {states.size[1]}, and {self.spec.name} "
                    f"hears {spec.audio_layers} of {spec.audio_dim}; name its own encoder"
                )
            self._hearing[folder] = states
        return self._hearing[folder]

    @property
    def joins_image(self) -> bool:
        """True for models that see the start image as joined channels (i2v), not as a given first frame."""
        return self.spec.transformer.in_dim > self.spec.transformer.out_dim

    @torch.no_grad()
    def with_image(self, condition: Condition, images_BCHW: torch.Tensor, pixel_frames: int) -> Condition:
        """Returns the condition with the start image joined: channels [mask 4 | latents 16], and CLIP tokens.

        The latents are those of a video that is the image and then grey; the mask is 1 in the first latent frame.
        Source: Wan2.1, wan/image2video.py.
        """
        images = images_BCHW.to(self.device)
        grey = images.new_zeros(len(images), pixel_frames - 1, *images.shape[1:])
        latents = self.vae.encode(torch.cat((images[:, None], grey), 1))
        mask = latents.new_zeros(*latents.shape[:2], self.spec.strides[0], *latents.shape[3:])
        mask[:, 0] = 1
        tokens = None if self.image is None else self.image(images).to(self.dtype)
        return replace(condition, channels=torch.cat((mask, latents), 2).to(self.dtype), image=tokens)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> torch.Tensor:
        """Returns text embeddings [B, T, width] in the compute dtype.

        Each prompt is encoded alone, so that a video does not depend on those that share its batch.
        """
        return torch.stack([self.text([prompt])[0].to(self.device, self.dtype) for prompt in prompts])


def load_bundle(
    config: ModelConfig, vae: VAEConfig, text: TextConfig, decoder=None, roles: Collection[str] = ROLES
) -> ModelBundle:
    """Returns the model that `config` names. decoder: an arm of `DECODERS`; None: the VAE decodes.

    roles: what this process does with it; what it does not need is None in the bundle.
    Errors: ValueError naming what is missing, or for a decoder of another model.
    """
    device = torch.device("cuda", ranks.local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    resolve_device("vae.device", vae.device, device)  # checked before any weight is read
    if config.linears != "weights":
        check_float8(device, config.linears == "fp8_rows")
    fetch([config.path, config.checkpoint, *(entry.path for entry in config.loras)])
    parts = find_parts(hub.resolve(config.path))
    experts = _choose_experts(config, parts)
    chosen = Sizes(find_published(config.spec).transformer, f"model.spec={config.spec}") if config.spec else None
    digest, folder = hashlib.sha256(), _folder_sizes(parts) if config.checkpoint and not chosen else None
    networks, sizes = [], None
    if "denoise" in roles:
        networks = [_network(config, parts, expert, digest, device, chosen, folder) for expert in experts]
        sizes = networks[0].spec
    else:
        source = hub.resolve(config.checkpoint) if config.checkpoint else parts.transformers[experts[0]]
        sizes = read_weights(source, use_ema=config.use_ema, chosen=chosen, folder=folder, shapes_only=True).spec
    family, dtype = get_family(sizes), DTYPES[config.dtype]
    face = family.open_vae(parts.need("vae"), vae, device)
    pixels = build_decoder(decoder, face, device)
    spec, denoiser, image, encoder = _spec(config, sizes, len(experts), face), None, None, None
    if networks:
        denoiser = networks[0] if len(networks) == 1 else family.experts(networks[0], networks[1], spec.boundary)
    if "text" in roles:
        image, encoder = _encoders(config, family, parts, sizes, text, device)
    weights_hash, files = digest.hexdigest()[:12] if networks else "", _files(config, parts, experts)
    return ModelBundle(spec, denoiser, face, encoder, image, device, dtype, weights_hash, pixels, files, config.offload)


def _encoders(config: ModelConfig, family, parts: Parts, sizes, text: TextConfig, device):
    """Returns the encoders of pictures (or None) and of texts; with `offload.parts` they come to the device to work."""
    at = torch.device("cpu") if config.offload.parts else device
    image, encoder = family.open_image(parts, sizes, DTYPES[config.dtype], at), family.open_text(parts, sizes, text, at)
    if config.offload.parts:
        image = image and offload.Visiting(image, device)
        encoder = encoder if text.device == "cpu" else offload.Visiting(encoder, device)
    return image, PromptCache(encoder, CACHED_PROMPTS)


def _files(config: ModelConfig, parts: Parts, experts: list[str]) -> dict[str, dict[str, Path]]:
    """Returns part -> name -> file or folder of all that makes the videos: weights, LoRA, VAE, encoders, tokenizer."""
    found = {}
    for expert in experts:
        source = hub.resolve(config.checkpoint) if config.checkpoint else parts.transformers[expert]
        found[f"transformer {expert}".strip()] = weight_files(source)
    for number, entry in enumerate(config.loras):
        found[f"lora {number}"] = weight_files(lora_file(hub.resolve(entry.path)))
    others = {
        name: vars(parts)[name] for name in ("vae", "text_encoder", "tokenizer", "image_encoder", "audio_encoder")
    }
    return found | {name: {"": path} for name, path in others.items() if path is not None}


def build_decoder(config, vae: Codec, device: torch.device) -> StreamingDecoder:
    """Returns what makes the pixels: the arm of `DECODERS`, or the VAE for None. Errors: ValueError if it cannot."""
    if config is None:
        return vae
    decoder = config.build(vae, device)
    check_fit(config.name, decoder, vae)
    return decoder


def set_knobs(network: torch.nn.Module, config: ModelConfig) -> torch.nn.Module:
    """Returns the network frozen, in evaluation mode, with the precision and attention that `config` names."""
    network.precision = config.precision
    dispatch.apply(network, config.attention)
    selector.apply(network, config.sparse)
    return network.requires_grad_(False).eval()


def set_linears(network: torch.nn.Module, config: ModelConfig) -> torch.nn.Module:
    """Returns the network with the linears that `config` names: its own, or 8-bit ones (`utils.precision`)."""
    if config.linears != "weights":
        chosen = to_float8(network, WIDE_LINEARS, config.linears == "fp8_rows")
        if ranks.rank() == 0:
            logger.info("model.linears=%s: %d linears run in 8 bits", config.linears, len(chosen))
    return network


def place(denoiser: Denoiser, config: ModelConfig, device: torch.device) -> Denoiser:
    """Returns the denoiser on its device, but for the blocks that `config` keeps in CPU memory."""
    if not config.offload.blocks:
        return denoiser.to(device)
    offload.place(denoiser, "transformer.blocks", device)
    return denoiser


def _choose_experts(config: ModelConfig, parts: Parts) -> list[str]:
    """Returns which transformers of the folder are loaded, low noise first; [""] for a checkpoint or a single one."""
    experts = sorted(parts.transformers, key=lambda name: name.startswith("high"))
    if config.checkpoint and len(experts) > 1:
        raise ValueError(f"{config.path} has two experts; model.checkpoint cannot say which it replaces")
    experts = [""] if config.checkpoint else experts
    if lost := [entry.expert for entry in config.loras if entry.expert not in ("", *experts)]:
        held = ", ".join(experts) if len(experts) > 1 else "one transformer: leave expert out"
        raise ValueError(f"model.lora names the expert {lost[0]!r}, and {config.path} has {held}")
    if not experts:
        raise ValueError(f"{config.path} has no transformer; give one with --checkpoint_path")
    if config.spec and len(find_published(config.spec).experts) != len(experts):
        wanted = len(find_published(config.spec).experts)
        raise ValueError(f"{config.spec} has {wanted} transformer(s), {config.path} holds {len(experts)}")
    return experts


def _network(config: ModelConfig, parts: Parts, expert: str, digest, device, chosen, folder) -> Denoiser:
    """Returns one transformer, its weights entered into the digest."""
    source = hub.resolve(config.checkpoint) if config.checkpoint else parts.transformers[expert]
    weights = read_weights(source, use_ema=config.use_ema, chosen=chosen, folder=folder)
    _enter(digest, weights.state)
    update = _read_loras(config, weights, expert)
    _enter(digest, update.tensors())
    state = add_tensors(weights.state, update.added)
    if config.lora_merge:
        state = merge_lora(state, update.pairs)
    dtype = DTYPES[config.dtype]
    network = replace(weights, state={k: v.to(dtype) for k, v in state.items()}).build()
    if update.pairs and not config.lora_merge:
        inject_pairs(network, update.pairs)
    if config.linears != "weights":
        digest.update(f"linears {config.linears}".encode())  # other numbers than those of the weights' own dtype
    network = set_linears(set_knobs(network, config), config)
    return place(get_family(weights.spec).denoiser(network), config, device)


def _read_loras(config: ModelConfig, weights: Weights, expert: str) -> LoraUpdate:
    """Returns what the LoRA files of this expert together add to its weights, each at its strength."""
    updates = []
    for entry in [entry for entry in config.loras if entry.expert in ("", expert)]:
        lora = read_lora(hub.resolve(entry.path), alpha=config.lora_alpha or None, strength=entry.strength)
        if ranks.rank() == 0:
            logger.info("%s", lora.summary())
        updates.append(lora.fit(weights.state, weights.spec))
    return combine(updates)


def _enter(digest, state: dict[str, torch.Tensor]) -> None:
    """Enters names, shapes and the first bytes of all tensors into the digest."""
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten()[: HASHED_BYTES // tensor.element_size()].contiguous().view(torch.uint8).numpy())


def _folder_sizes(parts: Parts) -> Sizes | None:
    """Returns the sizes of the model folder's own transformer, if it has one, for a checkpoint that tells none."""
    folder = parts.transformers.get("")
    return None if folder is None else read_weights(folder, shapes_only=True).sizes


def _spec(config: ModelConfig, sizes, num_experts: int, vae: Codec) -> ModelSpec:
    """Returns the published model that these networks are, or `custom`; with the sizes that they have."""
    if config.spec:
        return replace(find_published(config.spec), transformer=sizes)
    spec = spec_for(sizes, vae.strides, num_experts)
    if len(spec.experts) != num_experts:
        raise ValueError(f"{spec.name} has {len(spec.experts)} transformer(s), {config.path} holds {num_experts}")
    return spec
