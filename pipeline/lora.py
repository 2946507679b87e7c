"""Which LoRA files a generation uses, and how strongly: `model.lora`, without torch.

One path, `path:strength`, or a list of paths and of `{path, strength, expert}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STRENGTH = re.compile(r"(.+):([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")
EXAMPLE = "[{path: style.safetensors, strength: 0.8}, other.safetensors]"
KEYS = ("path", "strength", "expert")
LARGEST = 100  # strength; more is a mistake


@dataclass(frozen=True)
class LoraEntry:
    """One LoRA. path: a file, a folder or a hub name; strength: a factor on the scale that its file says; expert: which
    transformer of a model with two it changes (low_noise_model, high_noise_model), empty for both.
    """

    path: str
    strength: float = 1.0
    expert: str = ""


def parse_loras(value: Any) -> tuple[LoraEntry, ...]:
    """Returns the entries of `model.lora`. Errors: ValueError for what is none."""
    items = value if isinstance(value, list | tuple) else [] if value in ("", None) else [value]
    return tuple(_entry(item) for item in items)


def plain_loras(entries: tuple[LoraEntry, ...]) -> str | list[dict[str, Any]]:
    """Returns what is recorded: "", the path of a single one of strength 1, or the list of all."""
    if not entries:
        return ""
    if len(entries) == 1 and entries[0] == LoraEntry(entries[0].path) and not STRENGTH.fullmatch(entries[0].path):
        return entries[0].path
    expert = [{"expert": entry.expert} if entry.expert else {} for entry in entries]
    return [{"path": e.path, "strength": e.strength} | more for e, more in zip(entries, expert, strict=True)]


def find_paths(value: Any) -> Iterator[str]:
    """Yields the paths of a `model.lora` that nobody has checked yet."""
    for item in value if isinstance(value, list | tuple) else [value]:
        try:
            yield from (entry.path for entry in parse_loras(item))
        except ValueError:
            continue


def split_strength(text: str) -> LoraEntry:
    """Returns `path:strength`, or a path alone. A path that is there, with its colon, is one.

    Errors: ValueError where both readings are there.
    """
    found = STRENGTH.fullmatch(text)
    if not found:
        return LoraEntry(text)
    whole, rest = (Path(name).expanduser().exists() for name in (text, found[1]))
    if whole and rest:
        raise ValueError(f"{text} and {found[1]} are both there; write model.lora=[{{path: ..., strength: ...}}]")
    return LoraEntry(text) if whole else LoraEntry(found[1], _strength(float(found[2]), text))


def _entry(item: Any) -> LoraEntry:
    if isinstance(item, str) and item:
        return split_strength(item)
    if not isinstance(item, dict):
        raise ValueError(f"lora holds {item!r}; write a path, or a list such as {EXAMPLE}")
    if unknown := [str(key) for key in item if key not in KEYS]:
        raise ValueError(f"lora has no {', '.join(unknown)}; an entry is {{path, strength}}, as in {EXAMPLE}")
    path = item.get("path")
    if not isinstance(path, str) or not path:
        raise ValueError(f"lora: an entry has the path {path!r}; write a file, a folder or a hub name, as in {EXAMPLE}")
    expert = item.get("expert", "")
    if not isinstance(expert, str):
        raise ValueError(f"lora: the expert of {path} is {expert!r}; write low_noise_model or high_noise_model")
    return LoraEntry(path, _strength(item.get("strength", 1.0), path), expert)


def _strength(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST <= value <= LARGEST:
        raise ValueError(f"lora: the strength of {where} is {value!r}; write a number of -{LARGEST} to {LARGEST}")
    return float(value)
