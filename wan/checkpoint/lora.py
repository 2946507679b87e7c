"""LoRA files of any maker: what they change, at which strength they were trained, and where that is written.

`read_lora` reads a file, `Lora.fit` finds the layers of a model that it changes. Read are the pairs of peft, diffusers,
kohya and musubi, ComfyUI and LongLive, and tensors that are added to a parameter (`.diff`, `.diff_b`, `.diff_m`).
Other kinds of adapters are refused by their name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from wan.checkpoint import tensor_file
from wan.checkpoint.key_maps import WRAPPERS, State, is_lora, module_names, other_adapter, parse_lora_name
from wan.checkpoint.lora_scale import Scales, find_scales
from wan.family import get_family
from wan.spec import TransformerSpec

FILES = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors", "lora.safetensors")
MERGE = "merge it into its base with the program that made it, and give the result as model.checkpoint"
TEXT_ENCODER = re.compile(r"(lora_te\d*_|lora_prior_te_|text_encoders?(_\d+)?\.|conditioner\.)")
NUMBERED = re.compile(r"[._]\d+([._]|$)")  # in a module's name: which block, or layer
IN_BLOCK = re.compile(r"self_attn|cross_attn|ffn|attn\d|[^._]+")
FOREIGN = {  # what a module's name holds -> of which model it is
    r"(k_img|v_img|img_emb|add_[kv]_proj|image_embedder)": "an image-to-video Wan",
    r"vace_": "a Wan with VACE layers",
    r"(audio|face_adapter|motion_encoder)": "a Wan with layers for sound or faces",
    r"(double_blocks|single_blocks|single_transformer_blocks)": "Flux or HunyuanVideo",
    r"joint_blocks": "Stable Diffusion 3",
    r"(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)": "a U-Net (Stable Diffusion)",
    r"transformer_blocks": "CogVideoX, LTX-Video or Qwen-Image",
    r"(text_model|encoder)[._]": "a text encoder",
}


class LoraPair(NamedTuple):
    """The update scale * B A of one linear. a: [rank, in]; b: [out, rank]; scale: alpha / rank, times the strength."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class LoraUpdate:
    """What LoRA files add to a model, by its official names. added: tensors that are added to parameters."""

    pairs: dict[str, LoraPair]
    added: State

    def tensors(self) -> State:
        """Returns all tensors, and the scales that are not 1, under names: what tells two updates apart."""
        out = {f"{name}.{half}": t for name, pair in self.pairs.items() for half, t in zip("AB", pair[:2], strict=True)}
        scales = {f"{n}.scale": torch.tensor(p.scale, dtype=torch.float64) for n, p in self.pairs.items()}
        return out | {n: t for n, t in scales.items() if t != 1} | {f"{n}.added": t for n, t in self.added.items()}


@dataclass(frozen=True)
class Lora:
    """A LoRA file. pairs: (A, B) by its maker's names; added: by (name, parameter); strength: the user's factor."""

    path: Path
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]
    added: dict[tuple[str, str], torch.Tensor]
    scales: Scales
    strength: float = 1.0

    @property
    def ranks(self) -> list[int]:
        """The ranks that occur, ascending."""
        return sorted({a.shape[0] for a, _ in self.pairs.values()})

    def describe(self) -> dict[str, str]:
        """Returns what `inspect` prints: rank, alpha, strength, and where that is written."""
        scales = self.scales.by_module
        alphas = sorted({scales[name] * a.shape[0] for name, (a, _) in self.pairs.items()})
        strength = f"{_span(sorted(set(scales.values())))} (alpha / rank; from {self.scales.origin})"
        rows = {"rank": _span(self.ranks), "alpha": _span(alphas), "strength": strength} if self.pairs else {}
        return rows | ({"added": f"{len(self.added)} tensors that no alpha scales"} if self.added else {})

    def modules(self) -> str:
        """Returns how many modules of which kind it changes: "448 = 400 blocks (160 cross_attn, ...) + 48 head"."""
        kinds: dict[str, Counter[str]] = {}
        for name in dict.fromkeys([*self.pairs, *(module for module, _ in self.added)]):
            *_, bare = module_names(name)
            kind, _, rest = NUMBERED.sub("\n", bare, count=1).partition("\n")
            part = IN_BLOCK.match(rest) if kind.endswith("blocks") else None
            kinds.setdefault(kind, Counter())[part[0] if part else ""] += 1
        texts = []
        for kind, parts in sorted(kinds.items(), key=lambda item: (-item[1].total(), item[0])):
            counts = sorted(parts.items(), key=lambda item: (-item[1], item[0]))
            inner = ", ".join(f"{count} {part}" for part, count in counts if part)
            texts.append(f"{parts.total()} {kind}" + (f" ({inner})" if inner else ""))
        return f"{sum(parts.total() for parts in kinds.values())} = {' + '.join(texts)}"

    def summary(self) -> str:
        """Returns the same in one line, with the user's factor."""
        rows = ", ".join(f"{name} {text}" for name, text in self.describe().items())
        return f"LoRA {self.path}: {rows}" + (f", times {self.strength:g}" if self.strength != 1 else "")

    def fit(self, state: Mapping[str, torch.Tensor], spec: TransformerSpec) -> LoraUpdate:
        """Returns the update of a network with these weights under official names.

        Errors: ValueError for layers that the network does not have, has twice under one name, or in another size.
        """
        modules = self._find_modules(state, spec)
        if not self.strength:
            return LoraUpdate({}, {})
        pairs, added, wrong = {}, {}, []
        for name, (a, b) in self.pairs.items():
            key, scale = f"{modules[name]}.weight", self.strength * self.scales.by_module[name]
            if key not in state or state[key].ndim < 2:
                wrong.append(f"{key} is no matrix of this model")
                continue
            shape, flat = tuple(state[key].shape), (a.flatten(1), b.flatten(1))
            if flat[1].shape != (shape[0], a.shape[0]) or flat[0].shape[1] != state[key][0].numel():
                wrong.append(f"{key} is {shape}, its LoRA {tuple(b.shape)} x {tuple(a.shape)}")
            elif len(shape) == 2:
                pairs[modules[name]] = LoraPair(*flat, scale)
            else:  # a convolution, whose kernel is one matrix
                wide = widest(b)
                added[key] = (scale * (flat[1].to(wide) @ flat[0].to(wide))).view(shape)
        for (name, parameter), tensor in self.added.items():
            key = f"{modules[name]}.{parameter}"
            if key not in state or state[key].numel() != tensor.numel():
                has = f"is {tuple(state[key].shape)}" if key in state else "is no parameter of this model"
                wrong.append(f"{key} {has}, the file adds {tuple(tensor.shape)}")
                continue
            tensor = self.strength * tensor.to(widest(tensor)).view(state[key].shape)
            added[key] = added[key] + tensor if key in added else tensor
        if wrong:
            text = f"{len(wrong)} layers of the LoRA {self.path} are not those of this model: {'; '.join(wrong[:5])}"
            raise ValueError(f"{text}; take a LoRA that was trained on this model")
        return LoraUpdate(pairs, added)

    def _find_modules(self, state: Mapping[str, torch.Tensor], spec: TransformerSpec) -> dict[str, str]:
        """Returns the maker's names -> official names of modules, by the one naming in which the model has all."""
        wanted = list(dict.fromkeys([*self.pairs, *(name for name, _ in self.added)]))
        found = [{name: _look_up(name, names) for name in wanted} for names in _namings(state, spec)]
        whole = [names for names in found if all(names.values())]
        if not whole:
            best = max(found, key=lambda names: sum(map(bool, names.values())))
            lost = [name for name in wanted if not best[name]]
            raise ValueError(_foreign_text(self.path, lost))
        several = [name for name in wanted if len({m for names in whole for m in names[name]}) > 1]
        if several:
            names = sorted({m for names in whole for m in names[several[0]]})
            raise ValueError(
                f"{self.path}: {several[0]} may be {' or '.join(names)} of this model; write its names with dots"
            )
        modules = {name: names[0] for name, names in whole[0].items()}
        origin: dict[str, str] = {}
        for name, module in modules.items():
            if module in origin:
                raise ValueError(
                    f"{self.path}: {origin[module]} and {name} both change {module}; it holds two LoRAs, split it"
                )
            origin[module] = name
        return modules


def read_lora(
    path: str | Path,
    *,
    role: str = "generator",
    alpha: float | None = None,
    strength: float = 1.0,
    shapes_only: bool = False,
) -> Lora:
    """Returns a LoRA file, or that of a folder. alpha: overrules what the file says; role: see `_select`.

    Errors: ValueError if it holds no LoRA, or a kind of adapter that is not read.
    """
    path = lora_file(path)
    state = _select(path, tensor_file.read(path, shapes_only), role)
    parsed = {name: parse_lora_name(name) for name in state}
    _refuse(path, state, [name for name, found in parsed.items() if found is None])
    roles = {found: state[name] for name, found in parsed.items() if found}
    if len(roles) != len(state):
        raise ValueError(f"{path} holds two LoRAs over the same layers; split it")
    modules = dict.fromkeys(module for module, role in roles if role in ("a", "b", "alpha"))
    if lost := [f"{m} ({half})" for m in modules for half in "ab" if (m, half) not in roles]:
        raise ValueError(f"{path}: LoRA pairs without their other half; missing: {', '.join(lost[:10])}")
    pairs = {m: (roles[m, "a"], roles[m, "b"]) for m in modules}
    for m, (a, b) in pairs.items():
        if a.ndim < 2 or b.ndim < 2 or not a.shape[0] or a.shape[0] != b.shape[1]:
            raise ValueError(f"{path}: {m} has the halves {tuple(a.shape)} and {tuple(b.shape)}, of no common rank")
    scales = find_scales(
        path,
        {m: a.shape[0] for m, (a, _) in pairs.items()},
        {m: tensor for (m, role), tensor in roles.items() if role == "alpha"},
        alpha,
    )
    added = {key: t for key, t in roles.items() if key[1] not in ("a", "b", "alpha")}
    return Lora(path, pairs, added, scales, strength)


def lora_file(path: str | Path) -> Path:
    """Returns the file itself, or the LoRA of a folder. Errors: ValueError listing what the folder holds."""
    path = Path(path)
    if not path.is_dir():
        return path
    found = [path / name for name in FILES if (path / name).is_file()][:1] or sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    exported = path / "export/lora.safetensors"
    hint = f"a run's LoRA is {exported}" if exported.is_file() else "name one file"
    why = f"{len(found)} files that may be a LoRA" if found else "no LoRA"
    raise ValueError(f"{path} holds {why}; {hint}; it has: {tensor_file.listing(path)}")


def is_lora_folder(folder: Path) -> bool:
    """True for a folder that holds a LoRA under one of the usual names."""
    return any((folder / name).is_file() for name in FILES)


def combine(updates: Iterable[LoraUpdate]) -> LoraUpdate:
    """Returns the sum of several updates."""
    pairs: dict[str, list[LoraPair]] = {}
    added: State = {}
    for update in updates:
        for name, pair in update.pairs.items():
            pairs.setdefault(name, []).append(pair)
        added |= {n: added[n] + t if n in added else t for n, t in update.added.items()}
    return LoraUpdate({name: join_pairs(several) for name, several in pairs.items()}, added)


def widest(tensor: torch.Tensor) -> torch.dtype:
    """Returns the dtype in which weights are added: fp64 for fp64, else fp32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def join_pairs(pairs: list[LoraPair]) -> LoraPair:
    """Returns the sum of several updates of one linear as one pair, of the sum of their ranks."""
    if len(pairs) == 1:
        return pairs[0]
    wide = widest(pairs[0].b)
    scaled = [pair.scale * pair.b.to(wide) for pair in pairs]
    return LoraPair(torch.cat([pair.a.to(wide) for pair in pairs]), torch.cat(scaled, 1))


def merge_lora(state: State, pairs: Mapping[str, LoraPair]) -> State:
    """Returns a new state dict with W + scale B A for every pair, summed in fp32 (fp64 for fp64 weights)."""
    merged = dict(state)
    for module, pair in pairs.items():
        weight = state[f"{module}.weight"]
        wide = widest(weight)
        update = pair.scale * (pair.b.to(wide) @ pair.a.to(wide))
        merged[f"{module}.weight"] = (weight.to(wide) + update).to(weight.dtype)
    return merged


def add_tensors(state: State, added: State) -> State:
    """Returns a new state dict with the tensors of a LoRA file that are added to parameters (`.diff`)."""
    sums = {n: (state[n].to(widest(state[n])) + t.to(widest(state[n]))).to(state[n].dtype) for n, t in added.items()}
    return {**state, **sums}


def _select(path: Path, content: dict, role: str) -> State:
    """Returns the tensors of the LoRA; role: which of a training checkpoint that holds `generator_lora` and others."""
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        key = next((k for k in (f"{role}_lora", *WRAPPERS) if isinstance(content.get(k), dict)), "")
        if not key:
            raise ValueError(f"{path} holds no {role}_lora; it has: {', '.join(map(str, content))}")
        tensors = {k: v for k, v in content[key].items() if isinstance(v, torch.Tensor)}
    if not is_lora(tensors):
        raise ValueError(
            f"{path} holds no LoRA; its first keys: {', '.join(list(tensors)[:5])}; "
            "`python scripts/convert_weights.py inspect` describes it"
        )
    return tensors


def _refuse(path: Path, state: State, lost: list[str]) -> None:
    """Raises ValueError for a file whose adapters are not read, by the name of their kind. lost: unknown names."""
    if mine := [name for name in state if TEXT_ENCODER.match(name)]:
        raise ValueError(
            f"{path} holds a LoRA of a text encoder ({mine[0]}), which is not read; save the file without these "
            f"{len(mine)} keys"
        )
    if other := other_adapter(state):
        raise ValueError(f"{path} holds {other[0]} ({other[1]}); only plain LoRA is read: {MERGE}")
    if lost:
        text = f"{path} holds {len(lost)} whole tensors next to its LoRA (peft's modules_to_save or bias): "
        raise ValueError(f"{text}{', '.join(lost[:5])}; {MERGE}")
    if whole := [name for name, tensor in state.items() if not tensor.is_floating_point() and tensor.numel() > 1]:
        raise ValueError(f"{path}: {whole[0]} is {state[whole[0]].dtype}; a LoRA is read in floating point alone")


def _namings(state: Mapping[str, torch.Tensor], spec: TransformerSpec) -> list[dict[str, list[str]]]:
    """Returns the ways to name the model's modules: name -> official names; with dots and with kohya's underscores."""
    try:
        theirs = list(get_family(spec).layout("diffusers", dict(state), spec)[0])
    except ValueError:  # a family that diffusers does not know
        theirs = list(state)
    tables: list[dict[str, list[str]]] = [{}, {}, {}, {}]
    for own, other in zip(state, theirs, strict=True):
        module, alias = own.rpartition(".")[0], other.rpartition(".")[0]
        names = (module, alias, module.replace(".", "_"), alias.replace(".", "_"))
        for table, name in zip(tables, names, strict=True):
            if module not in table.setdefault(name, []):
                table[name].append(module)
    return tables


def _look_up(name: str, names: dict[str, list[str]]) -> list[str]:
    """Returns the official modules that a maker's name means in one naming; none if the model has none."""
    return next((names[text] for text in module_names(name) if text and text in names), [])


def _foreign_text(path: Path, lost: list[str]) -> str:
    text = f"the LoRA {path} has weights for {len(lost)} layers that this model does not have: {', '.join(lost[:5])}"
    whose = next((model for mark, model in FOREIGN.items() if any(re.search(mark, name) for name in lost)), "")
    return f"{text}; {f'it was trained on {whose}: ' if whose else ''}take a LoRA that was trained on this model"


def _span(values: list) -> str:
    """Returns one value, or the least and the most."""
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}" if values else "-"
