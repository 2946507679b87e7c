"""Names of transformer checkpoints: official Wan <-> diffusers, wrappers' prefixes, LoRA names.

Pure functions on dicts name -> tensor; no file is opened here. Tensors are renamed, never
recomputed, so every way back gives the same bits. A name outside a map is an error.
Source: Wan2.1 / Wan2.2 modules/model.py; diffusers `WanTransformer3DModel`; peft.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from utils.json_reader import get

State = dict[str, torch.Tensor]

# ---- prefixes that training frameworks leave in names --------------------------------------------

INNER_PREFIXES = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")  # anywhere in a name
OUTER_PREFIXES = ("base_model.model.", "model.", "module.", "diffusion_model.")  # at its start, in any order
WRAPPERS = ("generator_ema", "generator", "model", "state_dict")  # dicts around a state dict


def clean_name(name: str) -> str:
    """Removes the prefixes of FSDP, activation checkpointing, compile, DDP, peft and wrapper classes."""
    for prefix in INNER_PREFIXES:
        name = name.replace(prefix, "")
    while outer := next((p for p in OUTER_PREFIXES if name.startswith(p)), ""):
        name = name[len(outer) :]
    return name


def clean_names(state: State) -> State:
    """Cleans all names. Errors: ValueError if two names become one."""
    return renamed(state, clean_name)


def renamed(state: State, rename: Callable[[str], str]) -> State:
    """Returns the same tensors under new names. Errors: ValueError if two names become one."""
    out: State = {}
    origin: dict[str, str] = {}
    for name, tensor in state.items():
        new = rename(name)
        if new in out:
            raise ValueError(f"{origin[new]!r} and {name!r} both become {new!r}; the file holds two models: split it")
        out[new], origin[new] = tensor, name
    return out


def unknown_names(names: Iterable[str], what: str) -> ValueError:
    """Returns the error for names that a map does not know."""
    names = list(names)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ValueError(f"not keys of {what}: {', '.join(names[:10])}{more}")


# ---- the transformer ------------------------------------------------------------------------------

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_IMAGE_ATTENTION = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}

# module (or bare parameter) of the official model -> of diffusers; `blocks.N.` is cut off before
_DIT = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_DIT_BLOCK = {
    **{f"self_attn.{a}": f"attn1.{b}" for a, b in _ATTENTION.items()},
    **{f"cross_attn.{a}": f"attn2.{b}" for a, b in (_ATTENTION | _IMAGE_ATTENTION).items()},
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
_LORA_LEAF = r"lora_(?:A|B)\.weight"


def rename_by(table: dict[str, str], block_table: dict[str, str], name: str) -> str | None:
    """Returns the new name by the table of modules, `blocks.N.` kept in front; None if it is in no table."""
    match = re.match(r"blocks\.\d+\.", name)
    block = match[0] if match else ""
    chosen, rest = block_table if match else table, name[len(block) :]
    if rest in chosen:  # a bare parameter
        return block + chosen[rest]
    leaf = re.search(rf"\.({_LORA_LEAF}|weight|bias)$", rest)
    module = rest[: leaf.start()] if leaf else ""
    return block + chosen[module] + leaf[0] if module in chosen else None


def _rename_all(state: State, table, block_table, what: str) -> State:
    new = {name: rename_by(table, block_table, name) for name in state}
    if lost := [name for name, target in new.items() if target is None]:
        raise unknown_names(lost, what)
    return renamed(state, new.__getitem__)


def inverse(table: dict[str, str]) -> dict[str, str]:
    """Returns the table read from right to left."""
    return {b: a for a, b in table.items()}


def transformer_to_diffusers(state: State) -> State:
    """Official names of a Wan transformer (or of a LoRA over it) -> diffusers names."""
    return _rename_all(state, _DIT, _DIT_BLOCK, "an official Wan transformer")


def transformer_to_official(state: State) -> State:
    """Inverse of `transformer_to_diffusers`."""
    return _rename_all(state, inverse(_DIT), inverse(_DIT_BLOCK), "a diffusers WanTransformer3DModel")


# ---- LoRA -----------------------------------------------------------------------------------------

PEFT_PREFIX = "base_model.model."


# role of a tensor in a LoRA file -> endings of its name, of peft, kohya, ComfyUI, diffusers and LyCORIS
_LORA_ENDINGS = {
    "a": r"lora_A(?:\.[^.]+)?\.weight|lora_down\.weight|(?:lora|lora_linear_layer)\.down\.weight",
    "b": r"lora_B(?:\.[^.]+)?\.weight|lora_up\.weight|(?:lora|lora_linear_layer)\.up\.weight",
    "alpha": "alpha",
    "weight": "diff|w_norm",  # what is added to the parameter of this name
    "bias": "diff_b|b_norm",
    "modulation": "diff_m",
}
_LORA_NAME = re.compile(r"(.+?)\.(?:" + "|".join(f"(?P<{role}>{end})" for role, end in _LORA_ENDINGS.items()) + ")$")
# Changes of weights that are no plain LoRA: what their names hold -> their format
OTHER_ADAPTERS = {
    r"\.lokr_[wt]": "LoKr (LyCORIS)",
    r"\.hada_[wt]": "LoHa (LyCORIS)",
    r"\.(dora_scale|lora_magnitude_vector)": "DoRA (a magnitude next to the pair)",
    r"\.b?oft_(blocks|diag|r|s)|\.oft_": "OFT",
    r"\.lora_mid\.": "LoCon with a Tucker core (LyCORIS, of convolutions)",
    r"\.[ab][12]\.weight$": "GLoRA (LyCORIS)",
    r"\.(on_input|ia3_l)": "IA3",
    r"\.vera_lambda": "VeRA",
    r"\.(lora_E|ranknum)\b": "AdaLoRA",
    r"\.lora_embedding_[AB]": "a LoRA of embeddings",
    r"\.lora_[AB](\.[^.]+)?\.bias$|\.lora_(up|down)\.bias$": "a LoRA with biases of its own (lora_bias)",
    r"\.processor\.|_lora\.(up|down)\.weight$": "diffusers' old attention processors",
    r"\.(set_weight|reshape_weight)$": "ComfyUI's replaced weights",
}


def parse_lora_name(name: str) -> tuple[str, str] | None:
    """Returns (module as its maker names it, role) of a tensor of a LoRA file; None for a name of something else.

    role: `a`, `b` or `alpha` of a pair, or the parameter that the tensor is added to: `weight`, `bias`, `modulation`.
    """
    for prefix in INNER_PREFIXES:
        name = name.replace(prefix, "")
    found = _LORA_NAME.match(name)
    return (found[1], found.lastgroup) if found and found.lastgroup else None


def other_adapter(names: Iterable[str]) -> tuple[str, str] | None:
    """Returns (format, a name of it) if some names are those of another kind of adapter than plain LoRA."""
    every = list(names)
    for mark, form in OTHER_ADAPTERS.items():
        if found := next((name for name in every if re.search(mark, name)), None):
            return form, found
    return None


def is_lora(names: Iterable[str]) -> bool:
    """True for the names of an adapter file, of plain LoRA or another kind: half of them or more are such."""
    every = list(names)
    plain = [name for name in every if (parsed := parse_lora_name(name)) and parsed[1] != "alpha"]
    other = [name for name in every if any(re.search(mark, name) for mark in OTHER_ADAPTERS)]
    alphas = [name for name in every if name.endswith(".alpha")]
    return bool(plain or other) and 2 * len({*plain, *other, *alphas}) >= len(every)


LORA_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")  # of kohya's names, which have `_` for every dot


def module_names(name: str) -> Iterator[str]:
    """Yields what may be the module's own name: the text, and what is left of it without each prefix in turn."""
    yield name
    while prefix := next((p for p in (*OUTER_PREFIXES, "transformer.", *LORA_PREFIXES) if name.startswith(p)), ""):
        name = name[len(prefix) :]
        yield name


def lora_state(pairs: Mapping[str, Sequence]) -> State:
    """Returns pairs (A, B, ...) by official module name under the names that peft and LongLive write."""
    halves = ((m, half, t) for m, pair in pairs.items() for half, t in zip("AB", pair[:2], strict=True))
    return {f"{PEFT_PREFIX}{m}.lora_{half}.weight": t for m, half, t in halves}


# ---- configurations -------------------------------------------------------------------------------

_CONFIG = {  # official field -> diffusers field
    "num_heads": "num_attention_heads",
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "text_dim": "text_dim",
    "num_layers": "num_layers",
    "patch_size": "patch_size",
    "cross_attn_norm": "cross_attn_norm",
    "eps": "eps",
}
_OURS = ("model_type", "text_len", "rope_theta")  # diffusers has no such fields and leaves them alone
_DIFFUSERS_QK_NORM = "rms_norm_across_heads"


def config_from_diffusers(config: dict, where: str = "config.json") -> dict:
    """Returns the official fields of a `WanTransformer3DModel` config.json; where: names it in errors.

    Errors: ValueError naming a key that is missing or of another type.
    """
    out = {ours: config[theirs] for ours, theirs in _CONFIG.items() if theirs in config}
    heads, width = (get(config, key, int, where) for key in ("num_attention_heads", "attention_head_dim"))
    out["dim"] = heads * width
    out["image_dim"] = get(config, "image_dim", (int, type(None)), where, None) or 0
    out["qk_norm"] = config.get("qk_norm", _DIFFUSERS_QK_NORM) is not None
    channels = (out.get("in_dim", 16), out.get("out_dim", 16))
    out["model_type"] = "i2v" if channels[0] != channels[1] or out["image_dim"] else "t2v"
    if channels == (48, 48):
        out["model_type"] = "ti2v"
    return out | {name: config[name] for name in _OURS if name in config}


def config_to_diffusers(config: dict) -> dict:
    """Inverse of `config_from_diffusers` for a complete config (`asdict` of a TransformerSpec)."""
    out = {theirs: config[ours] for ours, theirs in _CONFIG.items()}
    image = config["image_dim"] or None
    return {
        "_class_name": "WanTransformer3DModel",
        **out,
        "patch_size": list(config["patch_size"]),
        "attention_head_dim": config["dim"] // config["num_heads"],
        "qk_norm": _DIFFUSERS_QK_NORM if config["qk_norm"] else None,
        "image_dim": image,
        "added_kv_proj_dim": config["dim"] if image else None,
        **{name: config[name] for name in _OURS},
    }


def config_to_official(config: dict) -> dict:
    """Returns the config.json of an official directory; fields its class fixes only where they differ."""
    usual = {"text_dim": 4096, "patch_size": (1, 2, 2), "qk_norm": True, "cross_attn_norm": True}
    usual |= {"image_dim": config["image_dim"], "rope_theta": 10000.0}  # the shapes tell the first
    named = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if usual.get(k, None) != v}
    return {"_class_name": "WanModel", **named}
