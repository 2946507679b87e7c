"""Says what a file of weights is, by its keys and shapes, never by its name."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from utils.json_reader import parse_json
from wan.checkpoint import tensor_file
from wan.checkpoint.foreign import name_added, name_family, name_quantisation
from wan.checkpoint.key_maps import WRAPPERS, State, clean_names, is_lora
from wan.checkpoint.lora import is_lora_folder, lora_file, read_lora
from wan.family import Family, families, family_of_kind
from wan.spec import TransformerSpec

METADATA_KEY = "longtake"  # field of our exports' safetensors header
EDUCATIONAL = (
    "a checkpoint of minimal-self-forcing's TinyCausalWanModel: another architecture (3 pixel channels, 4x4 patches, "
    "sine-first time embedding, head modulated by the block's shift, scrambled unpatchify), no Wan transformer"
)

# Kinds of files that belong to no family of `wan.FAMILIES`: kind -> names that must all occur, cleaned.
# A family knows those of its networks and VAEs. The first that fits wins: the families, then SHARED.
SHARED = {
    "umt5": ("token_embedding.weight", "blocks.0.pos_embedding.embedding.weight", "blocks.0.ffn.gate.0.weight"),
    "umt5, transformers": ("encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.final_layer_norm.weight"),
    "clip": ("visual.patch_embedding.weight", "visual.transformer.0."),
    "clip, transformers": ("vision_model.embeddings.class_embedding", "vision_model.encoder.layers.0."),
    "wav2vec2": ("feature_extractor.conv_layers.0.conv.weight", "encoder.pos_conv_embed.conv."),
    "wav2vec2 under a head": (
        "wav2vec2.feature_extractor.conv_layers.0.conv.weight",
        "wav2vec2.encoder.pos_conv_embed.conv.",
    ),
}
HEARS = ("wav2vec2", "wav2vec2 under a head")
LORA = "lora over a transformer"
NO_KIND = "unknown"


@dataclass
class Description:
    """What `identify` found. `refused` holds the reason why such a file is not loaded."""

    path: str
    kind: str
    size: str = ""
    spec: TransformerSpec | None = None
    is_network: bool = False  # of a backbone family
    causal: bool | None = None
    lora: dict[str, str] = field(default_factory=dict)  # modules, rank, alpha and strength of a LoRA
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
        rows = {"file": self.path, "kind": self.kind, "size": self.size or "-"}
        if self.is_network or self.kind.startswith(("wan", "longlive")):
            rows["causal"] = words[self.causal]
            rows["ema"] = "yes" if self.has_ema else "no"
        rows |= self.lora
        rows["tensors"] = f"{self.num_tensors} ({self.num_parameters:,} values, {self.dtype or '-'})"
        rows |= {"holds": ", ".join(self.holds)} if self.holds else {}
        rows |= {"written by": json.dumps(self.notes, sort_keys=True)} if self.notes else {}
        rows |= {"refused": self.refused} if self.refused else {}
        return [f"{k + ':':11s} {v}" for k, v in rows.items()]


def find_kind(names: Iterable[str]) -> str:
    """Returns which kind of file has such (cleaned) names; `NO_KIND` if none has."""
    every = list(names)
    if is_lora(every):
        return LORA
    text = "\n".join(["", *every, ""])
    for kind, needed in _kinds():
        # A name that ends in a dot is a prefix; one that begins with a dot may stand anywhere.
        marks = (n if n[0] == "." else f"\n{n}" if n[-1] == "." else f"\n{n}\n" for n in needed)
        if all(mark in text for mark in marks):
            return kind
    return NO_KIND


def _kinds() -> Iterator[tuple[str, tuple[str, ...]]]:
    for family in families():
        yield from family.transformers.items()
        yield from family.codecs.items()
    yield from SHARED.items()


def is_state(value) -> bool:
    """True for a dict that holds tensors under names."""
    return isinstance(value, dict) and any(isinstance(v, torch.Tensor) and v.ndim for v in value.values())


def identify(path: str | Path) -> Description:
    """Returns what a file, or a folder of shards, holds. Errors: ValueError if it is nothing we know."""
    path = lora_file(path) if is_lora_folder(Path(path)) else Path(path)
    content = tensor_file.read(path, shapes_only=True)
    found = Description(str(path), NO_KIND)
    if "generator_state_dict" in content:
        found.kind, found.refused = "educational (refused)", EDUCATIONAL
        return _count(found, content["generator_state_dict"], content)
    if is_state(content):
        state, found.holds = content, ()
    else:
        state, found.holds = _main_part(path, content), tuple(k for k in content if isinstance(content[k], dict))
    found.has_ema = "generator_ema" in found.holds
    state = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    clean = state if is_lora(state) else clean_names(state)
    found.kind = find_kind(clean)
    if found.kind == NO_KIND:
        raise ValueError(f"{path} is {unknown(clean)}; its first keys: {', '.join(list(state)[:5])}")
    _measure(found, clean, path)
    if added := name_added(clean):
        found.refused = f"it holds layers of {added}, which are not run here"
    elif quantised := name_quantisation(clean):
        found.refused = f"its weights are quantised by {quantised}, which are not read here"
    if notes := read_notes(path):
        found.kind, found.notes = "longtake export", notes
        found.causal = notes["causal"] if isinstance(notes.get("causal"), bool) else None
    return _count(found, state, content)


def read_notes(path: str | Path) -> dict:
    """Returns what our export wrote into a file's header; empty for other files. Errors: JsonError naming the file."""
    notes = tensor_file.metadata(path).get(METADATA_KEY)
    return parse_json(notes, f"the field {METADATA_KEY} in the header of {path}") if notes else {}


def unknown(names: Iterable[str]) -> str:
    """Returns what to call a file that is none of `find_kind`."""
    family = name_family(names)
    return f"not a model that is read here, but {family}" if family else "not a model we know"


def family_of_vae(path: str | Path) -> Family:
    """Returns the family whose VAE a file or folder holds. Errors: ValueError for anything else."""
    kind = find_kind(clean_names(tensor_file.read(path, shapes_only=True)))
    family = family_of_kind(kind)
    if family is None or kind not in family.codecs:
        raise ValueError(f"{path} holds {kind} weights, not the VAE of a backbone family")
    return family


def matching_specs(family: Family, measured: dict) -> list[str]:
    """Returns the published models whose transformer has these sizes (experts of a pair look alike)."""
    specs = family.specs.items()
    return [name for name, spec in specs if all(vars(spec.transformer)[k] == v for k, v in measured.items())]


def _main_part(path: Path, content: dict) -> dict:
    """Returns the state dict to describe in a checkpoint of several."""
    for key in (*WRAPPERS, "generator_lora", "critic_lora", *content):
        if is_state(content.get(key)):
            return content[key]
    raise ValueError(f"{path} holds no named tensors; it has: {', '.join(map(str, list(content)[:10])) or 'nothing'}")


def _measure(found: Description, state: State, path: Path):
    """Fills size and spec, or rank, alpha and strength of a LoRA."""
    if found.kind == LORA:
        trained = next((k for k in found.holds if k.endswith("_lora")), "")
        lora = read_lora(path, role=trained.removesuffix("_lora") or "generator", shapes_only=True)
        if trained:
            found.kind = "longlive lora"
        blocks = {n[1] for name in lora.pairs if (n := re.search(r"(?:^|[._])blocks[._](\d+)[._]", name))}
        widths = sorted({a.shape[1] for name, (a, _) in lora.pairs.items() if re.search(r"(self_attn.q|to_q)$", name)})
        found.size = f"{len(lora.pairs)} pairs over {len(blocks)} blocks of width {', '.join(map(str, widths)) or '?'}"
        found.lora = {"modules": lora.modules(), **lora.describe()}
        return
    if found.kind in HEARS:
        layers = {n[1] for name in state if (n := re.search(r"(?:^|\.)encoder\.layers\.(\d+)\.", name))}
        width = next((len(v) for k, v in state.items() if k.endswith("feature_projection.projection.weight")), "?")
        found.size = f"{len(layers) + 1} hidden states of width {width}"
    family = family_of_kind(found.kind)
    if family and found.kind in family.transformers:
        found.is_network = True
        measured = family.measure(family.rename(state, found.kind))
        names = matching_specs(family, measured)
        found.spec = family.specs[names[0]].transformer if names else None
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
