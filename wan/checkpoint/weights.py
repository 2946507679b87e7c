"""Loads and writes transformer weights: official, diffusers, Self-Forcing, LongLive and our exports.

Inside the project a transformer's state dict always carries the official names.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from wan.checkpoint import tensor_file
from wan.checkpoint.identify import EDUCATIONAL, METADATA_KEY, NO_FAMILY, find_family, is_state, matching_specs, sizes
from wan.checkpoint.key_maps import (
    State,
    clean_names,
    config_from_diffusers,
    lora_pairs,
    transformer_to_official,
)
from wan.checkpoint.parts import find_parts
from wan.spec import SPECS, TransformerSpec

LoraPairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def load_transformer(
    path: str | Path,
    *,
    use_ema: bool = False,
    role: str = "generator",
    expert: str = "",
    spec: TransformerSpec | None = None,
    shapes_only: bool = False,
) -> tuple[TransformerSpec, State]:
    """Returns (spec, state dict with official names, in the dtype of the file).

    path: a weight file, a transformer's folder, or a model's folder. use_ema: take the averaged
    weights of a training checkpoint. role: `generator` or `critic` of a checkpoint that holds both.
    expert: which transformer of a model that has two. spec: its sizes if neither the file nor a
    config.json beside it nor the published sizes tell them. shapes_only: no weight is read (see `tensor_file.read`).
    Errors: ValueError, naming the file, for anything else or if sizes contradict each other.
    """
    path = Path(path)
    if path.is_dir():
        path = _transformer_folder(path, expert)
    state = clean_names(_select(path, tensor_file.read(path, shapes_only), use_ema, role))
    family = find_family(state)
    if family == "wan transformer, diffusers":
        state = transformer_to_official(state)
    elif family != "wan transformer, official":
        raise ValueError(f"{path} holds {_article(family)}, no Wan transformer: {', '.join(list(state)[:5])}")
    return resolve_spec(path, state, spec), state


def load_lora(path: str | Path, *, role: str = "generator") -> LoraPairs:
    """Returns official module name -> (A, B) of a LoRA file (LongLive's, or bare peft names).

    Errors: ValueError if the file holds no LoRA for that role.
    """
    content = tensor_file.read(path)
    if not is_state(content):
        if f"{role}_lora" not in content:
            raise ValueError(f"{path} holds no {role}_lora; it has: {', '.join(map(str, content))}")
        content = content[f"{role}_lora"]
    if not any(".lora_A." in name for name in content):
        raise ValueError(f"{path} holds no LoRA but {_article(find_family(clean_names(content)))}")
    return lora_pairs(content)


def merge_lora(state: State, pairs: LoraPairs, alpha: float | None = None) -> State:
    """Returns a new state dict with W + alpha / rank * B A for every pair, summed in fp32.

    alpha: None means alpha = rank (scale 1), as LongLive trains. Errors: ValueError if a pair has no weight.
    """
    merged = dict(state)
    lost = [m for m in pairs if f"{m}.weight" not in state]
    if lost:
        raise ValueError(f"the LoRA changes {len(lost)} layers that the base lacks: {', '.join(lost[:10])}")
    for module, (a, b) in pairs.items():
        name, scale = f"{module}.weight", 1.0 if alpha is None else alpha / a.shape[0]
        weight = state[name]
        if weight.shape != (b.shape[0], a.shape[1]):
            raise ValueError(f"{name} is {tuple(weight.shape)}, its LoRA {b.shape[0]} x {a.shape[1]}: another size")
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        merged[name] = (weight.to(wide) + scale * (b.to(wide) @ a.to(wide))).to(weight.dtype)
    return merged


def export_transformer(path: str | Path, state: State, spec: TransformerSpec, metadata: dict | None = None):
    """Writes one safetensors file with official names and the sizes in its header; whole or not at all.

    metadata: JSON values to keep beside the sizes, e.g. `causal`, `step`.
    """
    notes = {**(metadata or {}), "config": asdict(spec)}
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
    given = find_family(clean_names(state) if not any(".lora_A." in n for n in state) else state)
    wanted = find_family(own)
    if given != wanted and given != NO_FAMILY:
        return f". Hint: these look like {given} keys; `python scripts/convert_weights.py inspect` describes the file"
    if given == wanted and set(state) != set(clean_names(state)):
        return ". Hint: the keys carry prefixes of a training framework; load them with load_transformer"
    if shaped and len(shaped) > len(own) // 2:
        return ". Hint: the names fit and the sizes do not: the file belongs to a model of another size"
    return ""


def _article(family: str) -> str:
    return "no model we know" if family == NO_FAMILY else f"weights of the family '{family}'"


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
        advice = "; it is a LoRA: give it beside its base"
    raise ValueError(f"{path} holds no {' or '.join(wanted)}; it has: {', '.join(map(str, content))}{advice}")


def resolve_spec(path: Path, state: State, spec: TransformerSpec | None = None) -> TransformerSpec:
    """Returns the sizes: as given, or of the file's header, the config.json beside it, or a published model.

    Errors: ValueError if they contradict the shapes, or nothing tells the number of heads.
    """
    measured = sizes(state)
    if spec is None and (config := _read_config(path)) is not None:
        # Official configs leave out what their class fixes, and the CLIP width; the shapes know both.
        spec = TransformerSpec.from_config({**measured, **config, "image_dim": measured["image_dim"]})
    if spec is not None:
        wrong = {k: v for k, v in measured.items() if asdict(spec)[k] != v}
        if wrong:
            listed = ", ".join(f"{k} {asdict(spec)[k]} but weights of {v}" for k, v in wrong.items())
            raise ValueError(f"{path} contradicts its configuration: {listed}")
        return spec
    names = matching_specs(measured)
    if not names:
        listed = ", ".join(f"{k} {v}" for k, v in measured.items())
        raise ValueError(
            f"{path} has the sizes of no published model ({listed}); known: {', '.join(SPECS)}. "
            "Put a config.json beside it (it must tell num_heads)"
        )
    return replace(SPECS[names[0]].transformer)


def _read_config(path: Path) -> dict | None:
    notes = tensor_file.metadata(path).get(METADATA_KEY)
    if notes:
        return json.loads(notes)["config"]
    config = tensor_file.read_config(path if path.is_dir() else path.parent)
    if config is None:
        return None
    config = config_from_diffusers(config) if "num_attention_heads" in config else config
    # A stray config.json of something else beside a checkpoint tells nothing.
    return config if "num_heads" in config else None
