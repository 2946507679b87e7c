"""The face of a backbone family: what loading, generation, training and scripts ask of one, whichever it is.

A family is one class behind this face and one line in `wan.FAMILIES`. Its module imports nothing heavy at its top:
the names and sizes of its models are asked for while a configuration is checked. One that differs from Wan in little
derives from `wan.backbone.Wan`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib import import_module
from typing import Any, Protocol

from wan import FAMILIES
from wan.spec import ModelSpec, TransformerSpec

Config = Mapping[str, Any]  # of a config.json
Marks = Mapping[str, tuple[str, ...]]  # kind of file -> names that must all occur in its state dict


class Family(Protocol):
    """What a backbone family is.

    `spec_class`: a frozen dataclass of sizes whose class attribute `family` is this family's name; everybody may ask a
    spec for in_dim, out_dim, dim, num_heads, head_dim, num_layers, patch_size, text_dim, text_len and image_dim.
    `specs`: its published models, the values of `model.spec` and of a role's `spec`.
    `transformers`, `codecs`: the kinds of files it reads as network and as VAE, with their marks (see `identify`).

    A network has, next to its forward: `spec`, `blocks`, `dtype`, `precision`, `checkpointing`, `weights_version` and
    `sequence` (see `WanTransformer`). Inside the project its state dict carries the official names.
    """

    class_name: str  # `_class_name` in the config.json that `config` writes
    class_names: tuple[str, ...]  # those that it reads
    spec_class: type[TransformerSpec]
    specs: Mapping[str, ModelSpec]
    transformers: Marks
    codecs: Marks

    def rename(self, state: dict, kind: str) -> dict:
        """Returns the state dict under the official names; kind: one of `transformers`."""

    def measure(self, state: dict) -> dict:
        """Returns the fields of `spec_class` that the shapes of an official state dict tell."""

    def read_config(self, config: Config, where: str) -> dict | None:
        """Returns the fields of `spec_class` that a config.json tells; None if it is of something else.

        where: names it in errors. Errors: ValueError naming a key that is missing or has a wrong value.
        """

    def spec(self, told: dict, measured: dict) -> TransformerSpec:
        """Returns the sizes of a network whose config tells `told` and whose shapes tell `measured`."""

    def layout(self, name: str, state: dict, spec: TransformerSpec) -> tuple[dict, dict]:
        """Returns (state dict, config.json) as `name` (official, diffusers) has them. Errors: ValueError: has none."""

    def network(self, spec: TransformerSpec):
        """Returns a fresh network, on the default device of torch."""

    def denoiser(self, network):
        """Returns the network as a velocity field over sigma (see `wan.denoiser`)."""

    def experts(self, low, high, boundary: float):
        """Returns two denoisers as one: `high` from the sigma `boundary` upward."""

    def open_vae(self, path, config, device):
        """Returns the frozen VAE at `path`, streaming."""

    def latent_channels(self, path) -> int | None:
        """Returns the latent channels of the VAE at `path` without reading a weight; None if nothing tells."""

    def text_width(self, path) -> int | None:
        """Returns the width of the text encoder at `path` without reading a weight; None if nothing tells."""

    def open_text(self, parts, spec: TransformerSpec, config, device):
        """Returns the text encoder of a model folder's parts: list of prompts -> [B, T, text_dim]."""

    def open_image(self, parts, spec: TransformerSpec, dtype, device):
        """Returns the image encoder that the sizes ask for, or None."""


@functools.cache
def _resolve(target: str) -> Family:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)()


def families() -> list[Family]:
    """Returns all families, in the order in which they are asked whether a file is theirs."""
    return [_resolve(target) for target in reversed(FAMILIES.values())]


def get_family(spec: TransformerSpec) -> Family:
    """Returns the family of these sizes."""
    return _resolve(FAMILIES[spec.family])


def family_of_kind(kind: str) -> Family | None:
    """Returns the family that reads files of this kind, as network or as VAE; None if none does."""
    return next((f for f in families() if kind in f.transformers or kind in f.codecs), None)


def write_config(spec: TransformerSpec) -> dict:
    """Returns the sizes as exports and checkpoints hold them: the fields under the name of the network's class."""
    sizes = {f.name: vars(spec)[f.name] for f in fields(spec)}
    return {"_class_name": get_family(spec).class_name, **sizes}


def read_config(
    config: Config, fallback: Family | None = None, where: str = "config.json"
) -> tuple[Family, dict] | None:
    """Returns (family, told fields) of a config.json: by its class name, else read as `fallback` (default: Wan).

    None if it is of something else. where: names it in errors. Errors: ValueError for a wrong value of a network's.
    """
    named = config.get("_class_name")
    family = next((f for f in families() if named in f.class_names), fallback or _resolve(FAMILIES["wan"]))
    told = family.read_config(config, where)
    return None if told is None else (family, told)


def read_spec(config: Config, where: str = "config.json") -> TransformerSpec:
    """Returns the sizes that `write_config` wrote; without a class name (earlier versions) they are Wan's.

    Errors: ValueError for the class of a family that is not there, or for wrong sizes.
    """
    name, known = config.get("_class_name"), [name for family in families() for name in family.class_names]
    if name is not None and name not in known:
        raise ValueError(f"{where}: {name} is not a network of a family of wan.FAMILIES; known: {', '.join(known)}")
    found = read_config(config, where=where)
    if found is None:
        raise ValueError(f"{where} holds no sizes of a network (num_heads, dim, ...)")
    return found[0].spec_class(**found[1])


def published_specs() -> dict[str, ModelSpec]:
    """Returns the published models of all families by name."""
    return {name: spec for family in reversed(families()) for name, spec in family.specs.items()}


def find_published(name: str) -> ModelSpec:
    """Returns a published model. Errors: ValueError listing the known ones."""
    known = published_specs()
    if name not in known:
        raise ValueError(f"spec {name!r} is unknown; write one of {sorted(known)}")
    return known[name]


def spec_for(transformer: TransformerSpec, strides: tuple[int, int, int], num_experts: int = 1) -> ModelSpec:
    """Returns the published model of these shapes with these sizes, or a model of its own with its VAE's strides."""
    for spec in published_specs().values():
        if spec.transformer.same_shapes(transformer) and len(spec.experts) == num_experts:
            return replace(spec, transformer=transformer)
    return ModelSpec("custom", transformer, strides=strides, causal_ok=transformer.causal_ok)
