"""The parts of a model, loaded and on their device: network, VAE, text and image encoders."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from pipeline.options import ModelConfig
from utils import hub
from utils.lora import inject_pairs
from utils.parallel import ranks
from wan.checkpoint.parts import Parts, find_parts
from wan.checkpoint.weights import load_lora, load_strict, load_transformer, merge_lora
from wan.codec.base import Codec, StreamingDecoder, check_fit, resolve_device
from wan.codec.vae import StreamingVAE, VAEConfig, open_vae
from wan.condition import Condition
from wan.denoiser import Denoiser, ExpertDenoiser
from wan.encoders.image import load_image_encoder
from wan.encoders.text import DTYPES, TextConfig, load_text_encoder
from wan.spec import SPECS, ModelSpec, spec_for
from wan.transformer import WanTransformer

HASHED_BYTES = 4096  # of each tensor; reading 28 GB for a name would take longer than a video
CACHED_PROMPTS = 64  # whose embeddings are kept, the latest used; a conversation may never say the same thing twice


@dataclass
class ModelBundle:
    """A loaded model. `weights_hash` tells two sets of weights apart.

    vae: encodes what a video starts from. decoder: makes the pixels; by default the VAE.
    """

    spec: ModelSpec
    denoiser: Denoiser | ExpertDenoiser
    vae: Codec
    text: object
    image: object | None
    device: torch.device
    dtype: torch.dtype
    weights_hash: str
    decoder: StreamingDecoder | None = None
    _kept: dict = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self):
        if self.decoder is None:
            self.decoder = self.vae

    @classmethod
    def of(cls, denoiser: Denoiser, vae: Codec, text, device: torch.device, dtype: torch.dtype) -> ModelBundle:
        """Returns the kit of parts that are loaded already (a training's), for text to video."""
        return cls(spec_for(denoiser.spec, vae.strides), denoiser, vae, text, None, device, dtype, "")

    def condition(self, prompts: list[str], negative: str | list[str] | None) -> Condition:
        """Returns the text condition of a batch; `negative`: one for all, one each, or None for one branch."""
        if isinstance(negative, str):
            null = self.encode([negative]).expand(len(prompts), -1, -1)
        else:
            null = None if negative is None else self.encode(negative)
        return Condition(self.encode(prompts), null)

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
        """Returns text embeddings [B, T, width] in the compute dtype; each prompt is encoded alone, and then kept."""
        rows = []
        for prompt in prompts:
            with self._lock:  # sessions of several threads share a kit
                row = self._kept.pop(prompt, None)
            if row is None:
                row = self.text([prompt])[0].to(self.device, self.dtype)
            rows.append(row)
            with self._lock:
                self._kept[prompt] = row
                while len(self._kept) > CACHED_PROMPTS:
                    del self._kept[next(iter(self._kept))]
        return torch.stack(rows)


def load_bundle(config: ModelConfig, vae: VAEConfig, text: TextConfig, decoder=None) -> ModelBundle:
    """Returns the model that `config` names. decoder: an arm of `DECODERS`; None: the VAE decodes.

    Errors: ValueError naming what is missing, or for a decoder of another model.
    """
    device = torch.device("cuda", ranks.local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    resolve_device("vae.device", vae.device, device)  # checked before any weight is read
    parts = find_parts(hub.resolve(config.path))
    networks, digest = [], hashlib.sha256()
    experts = sorted(parts.transformers, key=lambda name: name.startswith("high"))
    if config.checkpoint and len(experts) > 1:
        raise ValueError(f"{config.path} has two experts; model.checkpoint cannot say which it replaces")
    for expert in [""] if config.checkpoint else experts:
        networks.append(_network(config, parts, expert, digest, device))
    if not networks:
        raise ValueError(f"{config.path} has no transformer; give one with --checkpoint_path")
    face = open_vae(parts.need("vae"), vae, device)
    pixels = build_decoder(decoder, face, device)
    spec = _spec(config, networks[0], len(networks), face)
    if len(networks) == 2:
        denoiser = ExpertDenoiser(networks[0], networks[1], spec.boundary)
    else:
        denoiser = networks[0]
    dtype = DTYPES[config.dtype]
    image = load_image_encoder(parts.need("image_encoder"), dtype, device) if spec.transformer.image_dim else None
    encoder = load_text_encoder(parts, spec.transformer.text_len, text, device)
    return ModelBundle(spec, denoiser, face, encoder, image, device, dtype, digest.hexdigest()[:12], pixels)


def build_decoder(config, vae: Codec, device: torch.device) -> StreamingDecoder:
    """Returns what makes the pixels: the arm of `DECODERS`, or the VAE for None. Errors: ValueError if it cannot."""
    if config is None:
        return vae
    decoder = config.build(vae, device)
    check_fit(config.name, decoder, vae)
    return decoder


def _network(config: ModelConfig, parts: Parts, expert: str, digest, device) -> Denoiser:
    """Returns one transformer, its weights entered into the digest."""
    source = hub.resolve(config.checkpoint) if config.checkpoint else parts.transformers[expert]
    sizes = _sizes(config, parts) if config.checkpoint else None
    spec, state = load_transformer(source, use_ema=config.use_ema, spec=sizes)
    _enter(digest, state)
    pairs, alpha = load_lora(config.lora) if config.lora else {}, config.lora_alpha or None
    _enter(digest, {f"{name}.{half}": t for name, pair in pairs.items() for half, t in zip("AB", pair, strict=True)})
    if pairs and config.lora_merge:
        state = merge_lora(state, pairs, alpha)
    with torch.device("meta"):
        transformer = WanTransformer(spec)
    dtype = DTYPES[config.dtype]
    load_strict(transformer, {k: v.to(dtype) for k, v in state.items()}, str(source), assign=True)
    if pairs and not config.lora_merge:
        inject_pairs(transformer, pairs, alpha)
    transformer.precision = config.precision
    for block in transformer.blocks:
        block.self_attn.backend = block.cross_attn.backend = config.attention
    return Denoiser(transformer.requires_grad_(False).eval()).to(device)


def _enter(digest, state: dict[str, torch.Tensor]) -> None:
    """Enters names, shapes and the first bytes of all tensors into the digest."""
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten()[: HASHED_BYTES // tensor.element_size()].contiguous().view(torch.uint8).numpy())


def _sizes(config: ModelConfig, parts: Parts):
    """Returns the transformer sizes that the model's folder or `spec` tells, for a bare checkpoint."""
    if config.spec:
        return SPECS[config.spec].transformer
    folder = parts.transformers.get("")
    return load_transformer(folder)[0] if folder is not None and Path(folder).is_dir() else None


def _spec(config: ModelConfig, network: Denoiser, num_experts: int, vae: StreamingVAE) -> ModelSpec:
    """Returns the published model that these networks are, or `custom` for sizes that the folder alone tells."""
    if config.spec:
        spec = SPECS[config.spec]
    else:
        same = [s for s in SPECS.values() if s.transformer == network.spec and len(s.experts) == num_experts]
        spec = same[0] if same else spec_for(network.spec, vae.strides)
    if len(spec.experts) != num_experts:
        raise ValueError(f"{spec.name} has {len(spec.experts)} transformer(s), {config.path} holds {num_experts}")
    return spec
