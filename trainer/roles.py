"""Builds, loads, freezes and places the networks of a training: the roles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from model.discriminator import Discriminator
from trainer.lora import LoraConfig
from utils.parallel import fsdp
from utils.parallel.layout import ParallelLayout
from utils.rng import Rng, seed_libraries
from wan.attention import dispatch
from wan.attention.config import AttentionConfig
from wan.checkpoint.parts import find_parts
from wan.checkpoint.weights import read_weights
from wan.condition import Condition
from wan.denoiser import Denoiser
from wan.encoders.prompts import PromptCache
from wan.encoders.text import DTYPES
from wan.family import family_of, find_published, published_specs
from wan.options import PRECISIONS

CACHED_PROMPTS = 256  # whose embeddings are kept: 1.1 GB of umT5's


@dataclass
class RoleConfig:
    """One network. spec: its sizes when it starts from nothing; weights: a file or folder to start from.

    dtype: what it computes in. A trained role keeps fp32 master weights in any case, a frozen one is
    stored in dtype. checkpointing: recompute activations during backward: less memory, more time.
    compile: torch.compile of the blocks. offload: weights lie in CPU memory between uses (frozen roles).
    """

    spec: str = ""
    weights: str = ""
    use_ema: bool = False
    dtype: str = "fp32"
    precision: str = "weights"  # upstream: modulation, residual stream and head in fp32 whatever the dtype
    checkpointing: bool = False
    compile: bool = False
    offload: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)

    def problems(self) -> Iterator[str]:
        if bool(self.spec) == bool(self.weights):
            yield "write either spec (start from nothing) or weights (a file or folder), one of the two"
        if self.spec and self.spec not in published_specs():
            yield f"spec {self.spec!r} is unknown; write one of {sorted(published_specs())}"
        if self.dtype not in DTYPES or self.precision not in PRECISIONS:
            yield f"dtype must be one of {tuple(DTYPES)} and precision one of {PRECISIONS}"

    def problems_if_trained(self, name: str) -> Iterator[str]:
        """Yields knobs that are for frozen roles only."""
        if self.offload:
            text = f"{name}.offload is for frozen roles; a trained one saves memory by more ranks (layout.shard)"
            yield f"{text}: write {name}.offload=false"

    def build(self, rng: Rng, device: torch.device, layout: ParallelLayout, trained: bool) -> Denoiser:
        """Returns the network, freshly drawn or loaded, in its place on this rank."""
        transformer = read_weights(self.weights, use_ema=self.use_ema).build() if self.weights else self._draw(rng)
        transformer.requires_grad_(trained)
        if self.lora.rank:
            self.lora.apply(transformer, rng.at("init", "lora"), trained)
        transformer.precision, transformer.checkpointing = self.precision, self.checkpointing
        dispatch.apply(transformer, self.attention)
        self._place(transformer, device, layout, trained)
        return family_of(transformer.spec).denoiser(transformer)

    def _draw(self, rng: Rng) -> torch.nn.Module:
        """Returns a fresh network."""
        spec = find_published(self.spec).transformer
        seed_libraries(rng.at("init", self.spec))
        return family_of(spec).network(spec)

    def _place(self, transformer, device: torch.device, layout: ParallelLayout, trained: bool) -> None:
        """Joins the sample's ranks, compiles, casts, shards or moves."""
        if layout.sequence > 1:
            from utils.parallel import ulysses as sequence_parallel

            sequence_parallel.apply(transformer, layout.sequence_group)
        if self.compile:
            from utils.parallel.compiled import compile_blocks

            compile_blocks(transformer)
        compute = DTYPES[self.dtype]
        if layout.world > 1 or self.offload or (trained and compute != torch.float32):  # masters need FSDP's copies
            fsdp.shard(transformer, transformer.blocks, layout, compute, self.offload)
        else:
            fsdp.cast(transformer, compute)
            transformer.to(device)


@dataclass
class Roles:
    """The networks that losses and sources ask for by name."""

    generator: Denoiser
    text: object  # prompts -> embeddings [B, T, width], kept per prompt
    device: torch.device
    layout: ParallelLayout = field(default_factory=ParallelLayout.single)
    teacher: Denoiser | None = None
    critic: Denoiser | None = None
    discriminator: torch.nn.Module | None = None
    vae: object | None = None
    negative_prompt: str = ""

    def condition(self, prompts: list[str], null: bool = True) -> Condition:
        """Returns the text condition of a batch; null: whether with that of the unconditional branch, for guidance."""
        negative = self.text([self.negative_prompt]).expand(len(prompts), -1, -1) if null else None
        return Condition(self.text(prompts), negative).to(self.device)

    @classmethod
    def build(cls, model: str, config, rng: Rng, device: torch.device, layout: ParallelLayout) -> Roles:
        """Returns the generator and text encoder of a `RegressConfig`; `model` is the encoder's directory."""
        network = config.generator.build(rng, device, layout, trained=True)
        sharded = layout.world > 1 and layout.config.shard_text
        encoder = family_of(network.spec).open_text(find_parts(model), network.spec, config.text, device)
        if sharded:
            dtype = next(encoder.parameters()).dtype
            fsdp.shard(encoder.model.requires_grad_(False), encoder.model.encoder.block, layout, dtype)
        # Ranks that share the encoder run it together: each call encodes all its prompts.
        return cls(network, PromptCache(encoder, 0 if sharded else CACHED_PROMPTS), device, layout)

    @classmethod
    def for_distillation(cls, model: str, config, rng: Rng, device: torch.device, layout: ParallelLayout) -> Roles:
        """Returns generator, teacher, critic (and discriminator) of a `DistillConfig`, with text encoder and VAE."""
        roles = cls.build(model, config, rng, device, layout)
        adversarial = config.loss.name == "gan"  # asks no teacher
        teacher = None if adversarial else config.teacher.build(rng, device, layout, trained=False)
        critic = config.critic.build(rng, device, layout, trained=True)
        discriminator = None
        if adversarial:
            seed_libraries(rng.at("init", "discriminator"))
            fsdp.keep_root(critic.transformer)
            discriminator = Discriminator(critic.spec, config.loss.discriminator).to(device)
            if layout.world > 1 or config.critic.dtype != "fp32":
                fsdp.shard(discriminator, discriminator.readers, layout, DTYPES[config.critic.dtype])
        vae = family_of(roles.generator.spec).open_vae(find_parts(model).need("vae"), config.vae, device)
        return replace(
            roles,
            teacher=teacher,
            critic=critic,
            discriminator=discriminator,
            vae=vae,
            negative_prompt=config.negative_prompt,
        )
