"""The scale of LoRA pairs, alpha / rank, wherever the maker of a file wrote alpha.

In this order: what the user says, the `.alpha` tensors (kohya, musubi, ComfyUI), peft's configuration (in the file's
header as diffusers writes it, or `adapter_config.json` next to it), fields of the header, and for earlier exports of
ours the recipe of their run. Where nothing says it, alpha is the rank and the scale 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.json_reader import JsonError, parse_json, read_bytes
from wan.checkpoint import tensor_file
from wan.checkpoint.key_maps import PEFT_PREFIX, module_names

DIFFUSERS = "lora_adapter_metadata"  # header field of diffusers and trainers that follow it
ALPHA_FIELDS = ("lora_alpha", "alpha", "network_alpha", "ss_network_alpha")  # of the header, plain texts
RANK_FIELDS = ("rank", "r", "lora_rank", "network_dim", "ss_network_dim")
UNSAID = "nothing: no alpha is written, so it is the rank"
ADVICE = "say its alpha yourself (model.lora_alpha; --alpha where LoRAs are merged)"
REPEATS = re.compile(r"[*+{?]")

Rule = Callable[[str, int], float | None]  # (module, rank) -> its scale; None where it says nothing


@dataclass(frozen=True)
class Scales:
    """alpha / rank of each pair by the maker's name, and where that was written."""

    by_module: dict[str, float]
    origin: str


def header(rank: int, alpha: float) -> dict[str, str]:
    """Returns the fields of a safetensors header that say how strong its LoRA is."""
    return {"rank": str(rank), "lora_alpha": f"{alpha:.17g}"}


def find_scales(
    path: Path, ranks: Mapping[str, int], alphas: Mapping[str, torch.Tensor], alpha: float | None
) -> Scales:
    """Returns the scale of every pair. ranks, alphas: by the maker's names of the modules; alpha: the user's.

    Errors: ValueError for an alpha that is no number or 0, or that belongs to another rank than the file has.
    """
    scales: dict[str, float] = {}
    origins: list[str] = []
    for origin, rule in [(f"the given alpha {alpha:g}", _of_all(alpha))] if alpha else _rules(path, alphas):
        left = {module: rank for module, rank in ranks.items() if module not in scales}
        found = {module: scale for module, rank in left.items() if (scale := rule(module, rank)) is not None}
        scales |= {
            module: _finite(scale, f"{path}: the scale of {module} is {scale}") for module, scale in found.items()
        }
        origins += [origin if len(found) == len(ranks) else f"{origin} ({len(found)} layers)"] if found else []
        if len(scales) == len(ranks):
            break
    else:
        rest = [module for module in ranks if module not in scales]
        scales |= dict.fromkeys(rest, 1.0)
        origins.append(UNSAID if len(rest) == len(ranks) else f"{UNSAID} ({len(rest)} layers)")
    return Scales(scales, "; ".join(origins))


def _of_all(alpha: float) -> Rule:
    return lambda module, rank: alpha / rank


def _rules(path: Path, alphas: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Rule]]:
    """Yields (where it is written, rule), the nearest to the weights first; what is not needed is not read."""
    if alphas:
        values = {m: _number(t.item() if t.numel() == 1 else None, f"{path}: {m}.alpha") for m, t in alphas.items()}
        yield f"the .alpha tensors of {path.name}", lambda m, rank: values[m] / rank if m in values else None
    fields = tensor_file.metadata(path)
    if DIFFUSERS in fields:
        origin = f"{DIFFUSERS} in the header of {path}"
        yield origin, _peft_rule(_unprefixed(_parse(fields[DIFFUSERS], origin)), origin)
    if (config := _own_config(path)) is not None:
        yield str(config), _peft_rule(_parse(read_bytes(config), str(config)), str(config))
    for name in ALPHA_FIELDS:
        if fields.get(name) not in (None, "", "None"):
            yield f"{name} in the header of {path}", _header_rule(path, fields, name)
            break
    if run := _run_recipe(path):
        yield run


def _peft_rule(config: dict, origin: str) -> Rule:
    """Returns the rule of a peft configuration, with its patterns for single modules."""
    kind = str(config.get("peft_type") or "LORA")
    if not kind.upper().endswith("LORA") or config.get("use_dora"):
        name = "DoRA" if config.get("use_dora") else kind
        raise ValueError(f"{origin} says that the adapter is {name}; only plain LoRA is read: merge it into its base")
    tables = {name: _pattern_table(config, name, origin) for name in ("rank_pattern", "alpha_pattern")}
    if config.get("lora_alpha") is None and not tables["alpha_pattern"]:
        return lambda module, rank: None

    def scale(module: str, rank: int) -> float | None:
        written = _match(tables["rank_pattern"], module, config.get("r"))
        if written is not None and written != rank:
            raise ValueError(
                f"{module} has rank {rank} and {origin} says {written}; the two do not belong together: "
                f"name the right one, or {ADVICE}"
            )
        alpha = _match(tables["alpha_pattern"], module, config.get("lora_alpha"))
        if alpha is None:
            return None
        return _number(alpha, f"{origin}: lora_alpha") / (math.sqrt(rank) if config.get("use_rslora") else rank)

    return scale


def _pattern_table(config: dict, name: str, origin: str) -> list[tuple[re.Pattern, object]]:
    """Returns peft's patterns: an expression fits a module whose name, or the end of it after a dot, it matches."""
    table = config.get(name) or {}
    if not isinstance(table, dict):
        raise ValueError(f"{origin}: {name} is {table!r:.60}; it must be an object of names and numbers")
    compiled = []
    for text, value in table.items():
        try:
            # Some expressions would take hours on one name.
            if len(REPEATS.findall(text)) > 3 or len(text) > 300 or re.search(r"\)[*+{]", text):
                raise re.error("too many repeats")
            compiled.append((re.compile(rf"(.*\.)?({text})$"), value))
        except re.error as error:
            raise ValueError(
                f"{origin}: {name} holds the expression {text!r:.60} ({error}); write module names"
            ) from None
    return compiled


def _match(table: list[tuple[re.Pattern, object]], module: str, default: object) -> object:
    """Returns the value of the first pattern that fits the module's name, or one of its names without prefixes."""
    names = list(module_names(module))
    return next((value for pattern, value in table if any(pattern.match(name) for name in names)), default)


def _header_rule(path: Path, fields: Mapping[str, str], name: str) -> Rule:
    """Returns the rule of plain texts in a safetensors header."""
    where = f"the header of {path}"
    alpha = _number(fields[name], f"{name} in {where}")
    written = next(((key, fields[key]) for key in RANK_FIELDS if fields.get(key) not in (None, "", "None")), None)

    def scale(module: str, rank: int) -> float:
        if written and _number(written[1], f"{written[0]} in {where}") != rank:
            raise ValueError(
                f"{module} has rank {rank} and {written[0]} in {where} is {written[1]}; the header is of other "
                f"weights: {ADVICE}"
            )
        return alpha / rank

    return scale


def _own_config(path: Path) -> Path | None:
    """Returns adapter_config.json if it is that of this file: peft's name, or the only weights of the folder."""
    config = path.parent / "adapter_config.json"
    if not config.is_file():
        return None
    files = [file for ending in ("safetensors", "bin", "pt", "pth") for file in path.parent.glob(f"*.{ending}")]
    return config if path.stem == "adapter_model" or files == [path] else None


def _run_recipe(path: Path) -> tuple[str, Rule] | None:
    """Returns the rule of the run in whose folder an export lies: those of earlier versions do not say their alpha."""
    runs = [path.parent.parent, path.parent]  # `export/lora.safetensors`, or a file that a user named
    states = sorted(file for run in runs for file in run.glob("checkpoints/step_*/state.json"))
    if not states:
        return None
    where = str(states[-1])
    node: object = _parse(read_bytes(states[-1]), where)
    for key in ("recipe", "trainer", "generator", "lora"):
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict) or not node.get("rank"):
        return None
    alpha, trained = _number(node.get("alpha") or node["rank"], f"{where}: the alpha of the recipe"), node["rank"]

    def scale(module: str, rank: int) -> float | None:
        return alpha / rank if rank == trained and module.startswith(PEFT_PREFIX) else None

    return f"the recipe in {where}", scale


def _unprefixed(config: dict) -> dict:
    """Returns the part of the transformer of a configuration whose keys say the part of the pipeline first."""
    own = {k.partition(".")[2]: v for k, v in config.items() if k.startswith(("transformer.", "transformer_2."))}
    return own or {k: v for k, v in config.items() if "." not in k}


def _parse(text: str | bytes, origin: str) -> dict:
    try:
        return parse_json(text, origin)
    except JsonError as error:
        raise ValueError(f"{error}; mend it, or {ADVICE}") from error


def _number(value: object, origin: str) -> float:
    """Returns an alpha. Errors: ValueError if it is no number, not finite, or 0 (some makers mean the rank by it)."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not number:
        raise ValueError(f"{origin} is 0, at which the LoRA changes nothing; {ADVICE} (often its rank)")
    return _finite(number, f"{origin} is {value!r:.40}")


def _finite(number: float, what: str) -> float:
    if not math.isfinite(number):
        raise ValueError(f"{what}, not a number; {ADVICE}")
    return number
