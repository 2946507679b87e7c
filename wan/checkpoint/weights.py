"""Loads and writes transformer weights: official, diffusers, Self-Forcing, LongLive and our exports.

Inside the project a transformer's state dict always carries the official names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from utils.json_reader import get
from wan.checkpoint import tensor_file
from wan.checkpoint.foreign import name_added
from wan.checkpoint.identify import (
    EDUCATIONAL,
    METADATA_KEY,
    NO_KIND,
    find_kind,
    is_state,
    matching_specs,
    read_notes,
    unknown,
)
from wan.checkpoint.key_maps import State, clean_names, is_lora
from wan.checkpoint.parts import find_parts
from wan.checkpoint.scales import apply_scales
from wan.family import Family, families, family_of_kind, get_family, read_config, write_config
from wan.spec import TransformerSpec


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network, and which file or setting told them (for error messages)."""

    spec: TransformerSpec
    origin: str


@dataclass(frozen=True)
class Weights:
    """The weights of a network under official names, in the dtype of their file."""

    path: Path
    sizes: Sizes
    state: State

    @property
    def spec(self) -> TransformerSpec:
        """The sizes of the network."""
        return self.sizes.spec

    def build(self) -> nn.Module:
        """Returns the network with these tensors (not copies). Errors: ValueError unless every tensor fits."""
        with torch.device("meta"):
            network = get_family(self.spec).network(self.spec)
        load_strict(network, self.state, f"{self.path} (sizes of {self.sizes.origin})", assign=True)
        return network


def read_weights(
    path: str | Path,
    *,
    use_ema: bool = False,
    role: str = "generator",
    expert: str = "",
    chosen: Sizes | None = None,
    folder: Sizes | None = None,
    shapes_only: bool = False,
) -> Weights:
    """Returns the weights of a network of any family.

    path: a weight file, a transformer's folder, or a model's folder. use_ema: take the averaged
    weights of a training checkpoint. role: `generator` or `critic` of a checkpoint that holds both.
    expert: which transformer of a model that has two. chosen, folder: see `find_sizes`.
    shapes_only: no weight is read (see `tensor_file.read`).
    Errors: ValueError, naming the file, for anything else or if sizes contradict each other.
    """
    path = Path(path)
    if path.is_dir():
        path = _transformer_folder(path, expert)
    state = clean_names(_select(path, tensor_file.read(path, shapes_only), use_ema, role))
    kind = find_kind(state)
    family = family_of_kind(kind)
    if family is None or kind not in family.transformers:
        raise ValueError(
            f"{path} holds {_article(kind, state)}, not a transformer of the families {', '.join(_names())}: "
            f"{', '.join(list(state)[:5])}"
        )
    if added := name_added(state):
        raise ValueError(f"{path} holds layers of {added}, which are not run here; take the weights without them")
    state = family.rename(apply_scales(state, str(path)), kind)
    return Weights(path, find_sizes(path, state, family, chosen, folder), state)


def load_transformer(path: str | Path, **options) -> tuple[TransformerSpec, State]:
    """Returns (spec, state dict with official names); arguments and errors are those of `read_weights`."""
    weights = read_weights(path, **options)
    return weights.spec, weights.state


def export_transformer(path: str | Path, state: State, spec: TransformerSpec, metadata: dict | None = None):
    """Writes one safetensors file with official names and the sizes in its header; whole or not at all.

    metadata: JSON values to keep next to the sizes, e.g. `causal`, `step`.
    """
    notes = {**(metadata or {}), "config": write_config(spec)}
    tensor_file.write_safetensors(path, state, {METADATA_KEY: json.dumps(notes)})


def load_strict(module: nn.Module, state: State, what: str, assign: bool = False):
    """Loads `state` into `module`; every tensor must find its place (a tied one once).

    assign: take the tensors themselves (a module built on the meta device).
    Errors: ValueError with the first ten missing, unexpected and mis-shaped keys and a hint.
    """
    own = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    own = {name: own[name] for name in module.state_dict() if name in own}
    tied = {id(own[name]) for name in state if name in own}
    missing = [n for n, t in own.items() if n not in state and id(t) not in tied]
    unexpected = [n for n in state if n not in own]
    shaped = [n for n in own if n in state and own[n].shape != state[n].shape]
    if not (missing or unexpected or shaped):
        module.load_state_dict(state, strict=False, assign=assign)
        return
    bad = [f"{n} (file {tuple(state[n].shape)}, model {tuple(own[n].shape)})" for n in shaped]
    lists = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", bad))
    listed = [f"{len(names)} {kind}: {', '.join(names[:10])}" for kind, names in lists if names]
    raise ValueError(f"{what} does not fit the model. " + "; ".join(listed) + _hint(own, state, shaped))


def _hint(own, state: State, shaped: list[str]) -> str:
    given = find_kind(clean_names(state) if not is_lora(state) else state)
    wanted = find_kind(own)
    if given != wanted and given != NO_KIND:
        return f". Hint: these look like {given} keys; `python scripts/convert_weights.py inspect` describes the file"
    if given == wanted and set(state) != set(clean_names(state)):
        return ". Hint: the keys carry prefixes of a training framework; load them with load_transformer"
    if shaped and len(shaped) > len(own) // 2:
        return ". Hint: the names fit and the sizes do not: the file belongs to a model of another size"
    return ""


def _article(kind: str, names: Iterable[str]) -> str:
    return f"what is {unknown(names)}" if kind == NO_KIND else f"weights of the kind '{kind}'"


def _transformer_folder(folder: Path, expert: str) -> Path:
    """Returns the folder with the weights themselves."""
    found = find_parts(folder).transformers
    if len(found) > 1 and not expert:
        raise ValueError(f"{folder} holds {len(found)} experts; name one of {', '.join(found)}")
    if expert and expert not in found:
        raise ValueError(f"{folder} has no expert {expert!r}; it has: {', '.join(filter(None, found)) or 'one model'}")
    if not found:
        raise ValueError(f"{folder} holds no transformer; it has: {tensor_file.listing(folder)}")
    return found[expert]


def _select(path: Path, content: dict, use_ema: bool, role: str) -> State:
    """Returns the wanted state dict of a checkpoint that may hold several."""
    if "generator_state_dict" in content:
        raise ValueError(f"{path} is refused: {EDUCATIONAL}")
    held = [k for k, v in content.items() if is_state(v)]
    if is_state(content):
        if use_ema:
            raise ValueError(f"{path} holds one set of weights and no averaged ones; leave use_ema out")
        return {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if role == "generator":
        wanted = ("generator_ema",) if use_ema else ("generator", "model", "state_dict")
    else:
        wanted = (f"{role}_ema",) if use_ema else (role,)
    for key in wanted:
        if key in held:
            return content[key]
    advice = "; set use_ema" if "generator_ema" in held and not use_ema else "; leave use_ema out" if use_ema else ""
    if any(k.endswith("_lora") for k in held):
        advice = "; it is a LoRA: give it next to its base"
    raise ValueError(f"{path} holds no {' or '.join(wanted)}; it has: {', '.join(map(str, content))}{advice}")


def find_sizes(path: Path, state: State, family: Family, chosen: Sizes | None, folder: Sizes | None) -> Sizes:
    """Returns the sizes of official weights: of their own configuration (the file's header, or the config.json next to
    it), else `chosen` (the user's), else `folder` (the model folder that they are used with), else a published model.

    Errors: ValueError if two of these contradict each other or the shapes, or nothing tells the number of heads.
    """
    measured = family.measure(state)
    own, told = _own_sizes(path, family, measured)
    if folder is not None and type(folder.spec) is not family.spec_class:
        folder = None  # another family's folder lends its VAE and text encoder
    if chosen is not None and type(chosen.spec) is not family.spec_class:
        theirs = get_family(chosen.spec).class_name
        raise ValueError(f"{path} holds weights of a {family.class_name}, and {chosen.origin} is a {theirs}")
    mine = f"the weights of {path}"
    if own is not None:
        _compare(mine, measured, own, "the two do not belong together")
        mine = own.origin
    if chosen is not None:
        _compare(mine, measured | told, chosen, "leave it out, or name the model of these weights")
    if folder is not None:
        _compare(mine, measured, folder, "take the model folder of these weights, or one without a transformer")
    if found := own or chosen or folder:
        return found
    names = matching_specs(family, measured)
    if not names:
        raise ValueError(
            f"{path} has the sizes of no published model ({_listed(measured)}); known: {', '.join(family.specs)}. "
            "Put a config.json next to it (it must tell num_heads)"
        )
    return Sizes(family.specs[names[0]].transformer, f"the published {names[0]}")


def _own_sizes(path: Path, family: Family, measured: dict) -> tuple[Sizes | None, dict]:
    """Returns (sizes, the fields told) of the weights' own configuration; (None, {}) if they have none."""
    folder = path if path.is_dir() else path.parent
    notes = read_notes(path)
    origin = f"the header of {path}" if notes else str(folder / "config.json")
    config = get(notes, "config", dict, origin) if notes else tensor_file.read_config(folder)
    found = read_config(config, family, origin) if config is not None else None
    if found is None:
        return None, {}
    if found[0] is not family:
        raise ValueError(
            f"{path} holds weights of a {family.class_name}, and {origin} is of a {found[0].class_name}; "
            "the two do not belong together"
        )
    try:
        return Sizes(family.spec(found[1], measured), origin), found[1]
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error


def _compare(what: str, known: dict, other: Sizes, advice: str) -> None:
    """Raises ValueError if sizes that `what` tells are others in `other`."""
    wrong = {name: value for name, value in known.items() if name != "model_type" and vars(other.spec)[name] != value}
    if wrong:
        others = _listed({name: vars(other.spec)[name] for name in wrong})
        raise ValueError(f"{what}: {_listed(wrong)}; {other.origin}: {others}. They contradict each other: {advice}")


def _listed(sizes: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in sizes.items())


def _names() -> list[str]:
    return sorted(family.class_name for family in families())
