"""Builds, loads, freezes and places the networks of a training: the roles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from model.discriminator import Discriminator
from trainer.config import RoleConfig
from trainer.lora import apply_lora
from trainer.sources.config import EncodedTextConfig
from utils.data.encoded_prompts import EncodedPrompts
from utils.parallel import fsdp
from utils.parallel.layout import ParallelLayout
from utils.rng import Rng, seed_libraries
from wan.attention import dispatch, selector
from wan.checkpoint.parts import find_parts
from wan.checkpoint.weights import read_weights
from wan.condition import Condition
from wan.denoiser import Denoiser
from wan.encoders.prompts import PromptCache
from wan.encoders.text import DTYPES
from wan.family import find_published, get_family

CACHED_PROMPTS = 256  # whose embeddings are kept: 1.1 GB of umT5's


def build_network(
    config: RoleConfig, rng: Rng, device: torch.device, layout: ParallelLayout, trained: bool
) -> Denoiser:
    """Returns the network, freshly drawn or loaded, in its place on this rank."""
    transformer = read_weights(config.weights, use_ema=config.use_ema).build() if config.weights else _draw(config, rng)
    transformer.requires_grad_(trained)
    if config.lora.rank:
        apply_lora(config.lora, transformer, rng.at("init", "lora"), trained)
    transformer.precision, transformer.checkpointing = config.precision, config.checkpointing
    dispatch.apply(transformer, config.attention)
    selector.apply(transformer, config.sparse)
    _place(config, transformer, device, layout, trained)
    return get_family(transformer.spec).denoiser(transformer)


def _draw(config: RoleConfig, rng: Rng) -> torch.nn.Module:
    """Returns a fresh network."""
    spec = find_published(config.spec).transformer
    seed_libraries(rng.at("init", config.spec))
    network = get_family(spec).network(spec)
    if config.grow:
        take_over(network, read_weights(config.grow, use_ema=config.use_ema).state, config.grow)
    return network


def take_over(network: torch.nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """Copies the weights of a smaller model into a network that has all of them, and more, in place.

    Errors: ValueError naming weights that the network does not have, or has in another shape.
    """
    own = network.state_dict()
    lost = [name for name, tensor in state.items() if name not in own or own[name].shape != tensor.shape]
    if lost:
        raise ValueError(
            f"{where} has {len(lost)} tensors that the larger network does not have: {', '.join(lost[:5])}"
        )
    network.load_state_dict({**own, **state})


def _place(config: RoleConfig, transformer, device: torch.device, layout: ParallelLayout, trained: bool) -> None:
    """Joins the sample's ranks, compiles, casts, shards or moves."""
    if layout.sequence > 1:
        from utils.parallel import ulysses

        ulysses.apply(transformer, layout.sequence_group)
    if config.compile:
        from utils.parallel.compiled import compile_blocks

        compile_blocks(transformer)
    compute = DTYPES[config.dtype]
    if layout.world > 1 or config.offload or (trained and compute != torch.float32):  # masters need FSDP's copies
        fsdp.shard(transformer, transformer.blocks, layout, compute, config.offload)
    else:
        fsdp.cast(transformer, compute)
        transformer.to(device)


def open_text(model: str, config, spec, device: torch.device, layout: ParallelLayout):
    """Returns (what makes embeddings of prompts, how many of them to keep): an encoder, or what was encoded before."""
    if isinstance(config, EncodedTextConfig):
        return EncodedPrompts(config.path), CACHED_PROMPTS
    encoder = get_family(spec).open_text(find_parts(model), spec, config, device)
    if layout.world == 1 or not layout.config.shard_text:
        return encoder, CACHED_PROMPTS
    dtype = next(encoder.parameters()).dtype
    fsdp.shard(encoder.model.requires_grad_(False), encoder.model.encoder.block, layout, dtype)
    return encoder, 0  # ranks that share the encoder run it together: each call encodes all its prompts


@dataclass
class Roles:
    """The networks that losses and sources ask for by name."""

    generator: Denoiser
    text: Callable[[list[str]], torch.Tensor]  # prompts -> embeddings [B, T, width], kept per prompt
    device: torch.device
    layout: ParallelLayout = field(default_factory=ParallelLayout.single)
    teacher: Denoiser | None = None
    critic: Denoiser | None = None
    discriminator: torch.nn.Module | None = None
    vae: Any = None
    negative_prompt: str = ""

    def condition(self, prompts: list[str], null: bool = True) -> Condition:
        """Returns the text condition of a batch; null: whether with that of the unconditional branch, for guidance."""
        negative = self.text([self.negative_prompt]).expand(len(prompts), -1, -1) if null else None
        return Condition(self.text(prompts), negative).to(self.device)

    def measured(self) -> dict[str, torch.Tensor]:
        """Returns what sparse attention counted since it was asked last: the shares of blocks not read, and forced."""
        found: dict[str, torch.Tensor] = {}
        for name, network in (("", self.generator), ("critic_", self.critic)):
            counted = None if network is None else network.transformer.sequence.statistics
            found |= {f"{name}{key}": value for key, value in counted.take().items()} if counted else {}
        return found

    @classmethod
    def build(cls, model: str, config, rng: Rng, device: torch.device, layout: ParallelLayout) -> Roles:
        """Returns the generator and text encoder of a `RegressConfig`; `model` is the encoder's directory."""
        network = config.generator.build(rng, device, layout, trained=True)
        encoder, size = open_text(model, config.text, network.spec, device, layout)
        return cls(network, PromptCache(encoder, size), device, layout)

    @classmethod
    def for_distillation(cls, model: str, config, rng: Rng, device: torch.device, layout: ParallelLayout) -> Roles:
        """Returns generator, teacher, critic (and discriminator) of a `DistillConfig`, with text encoder and VAE."""
        roles = cls.build(model, config, rng, device, layout)
        needs, teacher = config.loss.needs, None
        if "teacher" in needs:
            teacher = config.teacher.build(rng, device, layout, trained=False)
        critic = config.critic.build(rng, device, layout, trained=True)
        discriminator = None
        if "discriminator" in needs:
            seed_libraries(rng.at("init", "discriminator"))
            fsdp.keep_root(critic.transformer)
            discriminator = Discriminator(critic.spec, config.loss.discriminator).to(device)
            if layout.world > 1 or config.critic.dtype != "fp32":
                fsdp.shard(discriminator, discriminator.readers, layout, DTYPES[config.critic.dtype])
        vae = get_family(roles.generator.spec).open_vae(find_parts(model).need("vae"), config.vae, device)
        return replace(
            roles,
            teacher=teacher,
            critic=critic,
            discriminator=discriminator,
            vae=vae,
            negative_prompt=config.negative_prompt,
        )
