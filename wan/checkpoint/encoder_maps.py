"""Names of the encoders' checkpoints: official VAE, umT5 and CLIP <-> the libraries' models.

Pure functions on dicts name -> tensor; no file is opened here. Tensors are renamed, reshaped, split
or joined, never recomputed, so every way back gives the same bits. A name outside a map is an error.
Source: Wan2.1 modules/{vae,t5,clip}.py, Wan2.2 modules/vae2_2.py; diffusers `AutoencoderKLWan`;
transformers `UMT5EncoderModel`, `CLIPVisionModelWithProjection`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from wan.checkpoint.key_maps import State, inverse, rename_by, renamed, unknown_names

# ---- the VAE --------------------------------------------------------------------------------------

_RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"}
_RESIDUAL |= {"shortcut": "conv_shortcut"}
_VAE_HEAD = {
    "encoder.conv1": "encoder.conv_in",
    "encoder.head.0": "encoder.norm_out",
    "encoder.head.2": "encoder.conv_out",
    "decoder.conv1": "decoder.conv_in",
    "decoder.head.0": "decoder.norm_out",
    "decoder.head.2": "decoder.conv_out",
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
}


def _vae_middle() -> dict[str, str]:
    out = {}
    for side in ("encoder", "decoder"):
        for a, b in _RESIDUAL.items():
            out[f"{side}.middle.0.{a}"] = f"{side}.mid_block.resnets.0.{b}"
            out[f"{side}.middle.2.{a}"] = f"{side}.mid_block.resnets.1.{b}"
        for part in ("norm", "to_qkv", "proj"):
            out[f"{side}.middle.1.{part}"] = f"{side}.mid_block.attentions.0.{part}"
    return out


def _vae_stages(modules: Iterable[str]) -> dict[str, str]:
    """Maps the modules of the down and up stages that occur in `modules` (official names).

    Wan 2.1 numbers encoder and decoder blocks flatly; diffusers keeps that for the encoder and
    groups the decoder into stages. Wan 2.2 nests both.
    """
    modules = [m for m in modules if re.match(r"(encoder\.down|decoder\.up)samples\.", m)]
    resamplers = [int(m.split(".")[2]) for m in modules if m.startswith("decoder") and "resample" in m]
    per_stage = min(resamplers, default=1000) + 1  # residual blocks and the resampler behind them
    out = {}
    for module in modules:
        side, outer, index, rest = module.split(".", 3)
        inner = re.match(rf"{outer}\.(\d+)\.", rest)
        leaf = rest[inner.end() :] if inner else rest
        up = side == "decoder"
        sampler = ("upsampler" if up else "downsampler") if inner else "upsamplers.0"
        stage, place = (index, inner[1]) if inner else divmod(int(index), per_stage)
        if up or inner:
            stem = f"{side}.{'up' if up else 'down'}_blocks.{stage}"
            part = f"resnets.{place}.{_RESIDUAL[leaf]}" if leaf in _RESIDUAL else f"{sampler}.{leaf}"
            out[module] = f"{stem}.{part}"
        else:
            out[module] = f"{side}.down_blocks.{index}.{_RESIDUAL.get(leaf, leaf)}"
    return out


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _vae_table(modules: Iterable[str]) -> dict[str, str]:
    return _VAE_HEAD | _vae_middle() | _vae_stages(modules)


def vae_to_diffusers(state: State) -> State:
    """Official Wan 2.1 or 2.2 VAE -> `AutoencoderKLWan`."""
    table = _vae_table({_module(n) for n in state})
    if lost := [n for n in state if _module(n) not in table]:
        raise unknown_names(lost, "an official Wan VAE")
    return renamed(state, lambda n: f"{table[_module(n)]}.{n.rpartition('.')[2]}")


def vae_to_official(state: State) -> State:
    """Inverse of `vae_to_diffusers`."""
    nested = any(n.startswith("encoder.down_blocks.0.resnets.") for n in state)
    table = inverse(_vae_table(_official_vae_stages({_module(n) for n in state}, nested)))
    if lost := [n for n in state if _module(n) not in table]:
        raise unknown_names(lost, "an AutoencoderKLWan")
    return renamed(state, lambda n: f"{table[_module(n)]}.{n.rpartition('.')[2]}")


def _official_vae_stages(modules: set[str], nested: bool) -> list[str]:
    """Returns the official modules of the stages that a diffusers VAE with `modules` has."""
    to_residual, out = inverse(_RESIDUAL), []
    places = [re.match(r"\w+\.\w+_blocks\.\d+\.resnets\.(\d+)", m) for m in modules if m.startswith("decoder.up")]
    per_decoder = max((int(p[1]) for p in places if p), default=0) + 2
    places = [re.match(r"encoder\.down_blocks\.\d+\.resnets\.(\d+)", m) for m in modules]
    per_encoder = max((int(p[1]) for p in places if p), default=0) + 2
    for module in modules:
        if not (found := re.match(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(.+)", module)):
            continue
        side, way, stage, rest = found.groups()
        per_stage = per_decoder if side == "decoder" else per_encoder
        resnet = re.match(r"resnets\.(\d+)\.(.+)", rest)
        leaf = resnet[2] if resnet else re.sub(r"^(up|down)sampler(s\.0)?\.", "", rest)
        place = int(resnet[1]) if resnet else per_stage - 1
        leaf = to_residual.get(leaf, leaf)
        if nested:
            out.append(f"{side}.{way}samples.{stage}.{way}samples.{place}.{leaf}")
        else:
            index = int(stage) if side == "encoder" else int(stage) * per_stage + place
            out.append(f"{side}.{way}samples.{index}.{leaf}")
    return out


# ---- the text encoder -----------------------------------------------------------------------------

_T5_BLOCK = {
    "norm1": "layer.0.layer_norm",
    **{f"attn.{x}": f"layer.0.SelfAttention.{x}" for x in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_T5 = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
T5_TIED = "encoder.embed_tokens.weight"  # a second name of shared.weight in transformers


def text_to_transformers(state: State) -> State:
    """Official umT5 encoder -> `UMT5EncoderModel`; its tied embedding appears once, as shared.weight."""
    new = {name: rename_by(_T5, _T5_BLOCK, name) for name in state}
    if lost := [name for name, target in new.items() if target is None]:
        raise unknown_names(lost, "an official umT5 encoder")
    return {re.sub(r"^blocks\.", "encoder.block.", new[name]): tensor for name, tensor in state.items()}


def text_to_official(state: State) -> State:
    """Inverse of `text_to_transformers`; the embedding's second name is left out if it is the first."""
    state = {("shared.weight" if n == T5_TIED and "shared.weight" not in state else n): t for n, t in state.items()}
    if T5_TIED in state and torch.equal(state[T5_TIED], state["shared.weight"]):
        del state[T5_TIED]
    flat = {n: re.sub(r"^encoder\.block\.", "blocks.", n) for n in state}
    new = {n: rename_by(inverse(_T5), inverse(_T5_BLOCK), flat[n]) for n in state}
    if lost := [name for name, target in new.items() if target is None]:
        raise unknown_names(lost, "a UMT5EncoderModel")
    return {new[name]: tensor for name, tensor in state.items()}


# ---- the image encoder ----------------------------------------------------------------------------

CLIP_DROPPED = ("textual.", "log_scale")  # the text tower and the contrastive temperature: no video model uses them

_CLIP_LAYER = {
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
_CLIP = {
    "patch_embedding": "embeddings.patch_embedding",
    "pre_norm": "pre_layrnorm",  # spelled so in transformers
    "post_norm": "post_layernorm",
}


def image_to_transformers(state: State) -> State:
    """`visual.*` of the official CLIP (xlm-roberta ViT-H/14) -> `CLIPVisionModelWithProjection`.

    What `CLIP_DROPPED` names is left out; `to_qkv` becomes q, k, v; `head` is transposed.
    """
    out, lost = {}, []
    for name, tensor in state.items():
        if name.startswith(CLIP_DROPPED):
            continue
        made = _clip_tensors(name.removeprefix("visual."), tensor) if name.startswith("visual.") else None
        if made is None:
            lost.append(name)
        else:
            out.update(made)
    if lost:
        raise unknown_names(lost, "the official CLIP")
    return out


def _clip_tensors(name: str, tensor: torch.Tensor) -> State | None:
    stem = "vision_model."
    if name == "cls_embedding":
        return {f"{stem}embeddings.class_embedding": tensor.reshape(-1)}
    if name == "pos_embedding":
        return {f"{stem}embeddings.position_embedding.weight": tensor.reshape(tensor.shape[-2:])}
    if name == "head":
        return {"visual_projection.weight": tensor.t()}
    if match := re.match(r"transformer\.(\d+)\.attn\.to_qkv\.(weight|bias)$", name):
        attention = f"{stem}encoder.layers.{match[1]}.self_attn"
        return {f"{attention}.{x}_proj.{match[2]}": t for x, t in zip("qkv", tensor.chunk(3), strict=True)}
    new = rename_by(_CLIP, _CLIP_LAYER, re.sub(r"^transformer\.", "blocks.", name))
    if not new:
        return None if new is None else {}
    return {stem + re.sub(r"^blocks\.", "encoder.layers.", new): tensor}


def image_to_official(state: State) -> State:
    """Inverse of `image_to_transformers`, without the dropped text tower."""
    out, rest = {}, dict(state)
    stem = "vision_model."
    out["visual.cls_embedding"] = rest.pop(f"{stem}embeddings.class_embedding").reshape(1, 1, -1)
    out["visual.pos_embedding"] = rest.pop(f"{stem}embeddings.position_embedding.weight")[None]
    if "visual_projection.weight" in rest:
        out["visual.head"] = rest.pop("visual_projection.weight").t()
    for name in [n for n in rest if ".self_attn.q_proj." in n]:
        parts = [rest.pop(name.replace("q_proj", f"{x}_proj")) for x in "qkv"]
        layer = re.search(r"layers\.(\d+)\.self_attn\.q_proj\.(\w+)", name)
        out[f"visual.transformer.{layer[1]}.attn.to_qkv.{layer[2]}"] = torch.cat(parts)
    lost = []
    for name, tensor in rest.items():
        flat = re.sub(r"^encoder\.layers\.", "blocks.", name.removeprefix(stem))
        new = rename_by(inverse(_CLIP), inverse(_CLIP_LAYER), flat)
        if new is None:
            lost.append(name)
        else:
            out["visual." + re.sub(r"^blocks\.", "transformer.", new)] = tensor
    if lost:
        raise unknown_names(lost, "a CLIPVisionModelWithProjection")
    return out
