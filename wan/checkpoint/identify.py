"""Says what a file of weights is, by its keys and shapes, never by its name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from wan.checkpoint import tensor_file
from wan.checkpoint.key_maps import WRAPPERS, State, clean_names, lora_pairs, transformer_to_official
from wan.spec import SPECS, TransformerSpec

METADATA_KEY = "longtake"  # field of our exports' safetensors header
EDUCATIONAL = (
    "a checkpoint of minimal-self-forcing's TinyCausalWanModel: another architecture (3 pixel channels, 4x4 patches, "
    "sine-first time embedding, head modulated by the block's shift, scrambled unpatchify), no Wan transformer"
)

# family -> names that must all occur in the cleaned state dict; the first that fits wins
FAMILIES = {
    "wan s2v transformer, official": ("patch_embedding.weight", "blocks.0.self_attn.q.weight", "casual_audio_encoder."),
    "wan transformer, official": ("patch_embedding.weight", "blocks.0.self_attn.q.weight", "head.head.weight"),
    "wan transformer, diffusers": ("patch_embedding.weight", "blocks.0.attn1.to_q.weight", "proj_out.weight"),
    "vae 2.2": ("encoder.downsamples.0.downsamples.", "decoder.upsamples.0.upsamples."),
    "vae 2.1": ("encoder.downsamples.0.", "decoder.upsamples.0.", "conv1.weight"),
    "vae 2.2, diffusers": ("encoder.down_blocks.0.resnets.", "decoder.up_blocks.0.", "quant_conv.weight"),
    "vae 2.1, diffusers": ("encoder.down_blocks.0.", "decoder.up_blocks.0.", "quant_conv.weight"),
    "umt5": ("token_embedding.weight", "blocks.0.pos_embedding.embedding.weight", "blocks.0.ffn.gate.0.weight"),
    "umt5, transformers": ("encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.final_layer_norm.weight"),
    "clip": ("visual.patch_embedding.weight", "visual.transformer.0."),
    "clip, transformers": ("vision_model.embeddings.class_embedding", "vision_model.encoder.layers.0."),
    "lora over a wan transformer": (".lora_A.",),
}
NO_FAMILY = "unknown"


@dataclass
class Description:
    """What `identify` found. `refused` holds the reason why such a file is not loaded."""

    path: str
    family: str
    size: str = ""
    spec: TransformerSpec | None = None
    causal: bool | None = None
    lora_rank: int | None = None
    has_ema: bool = False
    dtype: str = ""
    num_tensors: int = 0
    num_parameters: int = 0
    holds: tuple[str, ...] = ()
    refused: str = ""
    notes: dict = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Returns `name: value` lines for people."""
        words = {True: "yes", False: "no", None: "not told by the keys (both use the same names)"}
        rows = {"file": self.path, "family": self.family, "size": self.size or "-"}
        if self.family.startswith(("wan", "self-forcing", "longtake", "longlive")):
            rows["causal"] = words[self.causal]
            rows["ema"] = "yes" if self.has_ema else "no"
        if self.lora_rank:
            rows["lora rank"] = str(self.lora_rank)
        rows["tensors"] = f"{self.num_tensors} ({self.num_parameters:,} values, {self.dtype or '-'})"
        rows |= {"holds": ", ".join(self.holds)} if self.holds else {}
        rows |= {"written by": json.dumps(self.notes, sort_keys=True)} if self.notes else {}
        rows |= {"refused": self.refused} if self.refused else {}
        return [f"{k + ':':11s} {v}" for k, v in rows.items()]


def find_family(names: Iterable[str]) -> str:
    """Returns the family that has such (cleaned) names; `NO_FAMILY` if none has."""
    text = "\n".join(["", *names, ""])
    for family, needed in FAMILIES.items():
        # A name that ends in a dot is a prefix; one that begins with a dot may stand anywhere.
        marks = (n if n[0] == "." else f"\n{n}" if n[-1] == "." else f"\n{n}\n" for n in needed)
        if all(mark in text for mark in marks):
            return family
    return NO_FAMILY


def is_state(value) -> bool:
    """True for a dict that holds tensors under names."""
    return isinstance(value, dict) and any(isinstance(v, torch.Tensor) and v.ndim for v in value.values())


def identify(path: str | Path) -> Description:
    """Returns what a file, or a folder of shards, holds. Errors: ValueError if it is nothing we know."""
    path = Path(path)
    content = tensor_file.read(path, shapes_only=True)
    found = Description(str(path), NO_FAMILY)
    if "generator_state_dict" in content:
        found.family, found.refused = "educational (refused)", EDUCATIONAL
        return _count(found, content["generator_state_dict"], content)
    if is_state(content):
        state, found.holds = content, ()
    else:
        state, found.holds = _main_part(path, content), tuple(k for k in content if isinstance(content[k], dict))
    found.has_ema = "generator_ema" in found.holds
    state = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    clean = clean_names(state) if not any(".lora_A." in k for k in state) else state
    found.family = find_family(clean)
    if found.family == NO_FAMILY:
        raise ValueError(f"{path} is no model we know; its first keys: {', '.join(list(state)[:5])}")
    _measure(found, clean, path)
    if notes := tensor_file.metadata(path).get(METADATA_KEY):
        found.family, found.notes = "longtake export", json.loads(notes)
        found.causal = found.notes.get("causal")
    elif found.family == "wan transformer, official" and (found.holds or any(k.startswith("model.") for k in state)):
        # Only Self-Forcing and LongLive wrap the network like this, and both train causal students.
        found.family, found.causal = "self-forcing / longlive transformer", True
    return _count(found, state, content)


def sizes(state: State) -> dict:
    """Returns the fields of `TransformerSpec` that the shapes of an official state dict tell."""
    patch = state["patch_embedding.weight"].shape
    cells = patch[2] * patch[3] * patch[4]
    image = state.get("img_emb.proj.1.weight")
    return {
        "dim": patch[0],
        "in_dim": patch[1],
        "patch_size": tuple(patch[2:]),
        "out_dim": state["head.head.weight"].shape[0] // cells,
        "ffn_dim": state["blocks.0.ffn.0.weight"].shape[0],
        "freq_dim": state["time_embedding.0.weight"].shape[1],
        "text_dim": state["text_embedding.0.weight"].shape[1],
        "num_layers": 1 + max(int(n.split(".")[1]) for n in state if n.startswith("blocks.")),
        "qk_norm": "blocks.0.self_attn.norm_q.weight" in state,
        "cross_attn_norm": "blocks.0.norm3.weight" in state,
        "image_dim": 0 if image is None else image.shape[1],
    }


def matching_specs(measured: dict) -> list[str]:
    """Returns the published models whose transformer has these sizes (experts of a pair look alike)."""
    names = []
    for name, spec in SPECS.items():
        fields = asdict(spec.transformer)
        if all(fields[k] == v for k, v in measured.items()):
            names.append(name)
    return names


def _main_part(path: Path, content: dict) -> dict:
    """Returns the state dict to describe in a checkpoint of several."""
    for key in (*WRAPPERS, "generator_lora", "critic_lora", *content):
        if is_state(content.get(key)):
            return content[key]
    raise ValueError(f"{path} holds no named tensors; it has: {', '.join(map(str, list(content)[:10])) or 'nothing'}")


def _measure(found: Description, state: State, path: Path):
    """Fills size, spec and LoRA rank."""
    if found.family.startswith("lora"):
        pairs = lora_pairs(state)
        ranks = {a.shape[0] for a, _ in pairs.values()}
        found.lora_rank = max(ranks)
        if any(k.endswith("_lora") for k in found.holds):
            found.family, found.causal = "longlive lora", True
        layers = {m.split(".")[1] for m in pairs if m.startswith("blocks.")}
        dims = {a.shape[1] for m, (a, _) in pairs.items() if m.endswith("self_attn.q")}
        found.size = f"{len(pairs)} pairs over {len(layers)} blocks of width {', '.join(map(str, sorted(dims))) or '?'}"
        return
    if found.family.startswith("wan transformer"):
        official = transformer_to_official(state) if found.family.endswith("diffusers") else state
        measured = sizes(official)
        names = matching_specs(measured)
        found.spec = SPECS[names[0]].transformer if names else None
        rest = {k: v for k, v in measured.items() if k in ("dim", "ffn_dim", "num_layers", "in_dim", "out_dim")}
        found.size = " or ".join(names) or "no published size: " + ", ".join(f"{k} {v}" for k, v in rest.items())


def _count(found: Description, state: dict, content: dict) -> Description:
    tensors = [v for v in state.values() if isinstance(v, torch.Tensor)]
    found.num_tensors, found.num_parameters = len(tensors), sum(t.numel() for t in tensors)
    common = Counter(str(t.dtype).removeprefix("torch.") for t in tensors).most_common(2)
    found.dtype = " and ".join(name for name, _ in common)
    if found.refused:
        found.holds = tuple(k for k, v in content.items() if isinstance(v, dict))
    return found
