"""What a training reads: weights, data, the parts of its model. Replaced under its name, it makes another training."""

from __future__ import annotations

from pathlib import Path

from trainer.preflight import DATA, ROLES
from trainer.sources.config import EncodedTextConfig
from utils import hub
from utils.config.field import values
from utils.data.prompts import read_prompts, warn_cut
from utils.digest import content_hash
from wan.checkpoint.lora import lora_file
from wan.checkpoint.parts import find_parts, weight_files


def find_inputs(config) -> dict[str, dict[str, Path]]:
    """Returns key of the configuration (a `TrainConfig`) -> the files and folders that it names, by name."""
    knobs, found = values(config.trainer), {}
    for role in [name for name in ROLES if knobs.get(name) is not None]:
        named = {"weights": knobs[role].weights, "lora.weights": knobs[role].lora.weights}
        for key, path in _local(named):
            found[f"trainer.{role}.{key}"] = weight_files(path if key == "weights" else lora_file(path))
    if "source" in knobs:
        named = {key: value for key, value in values(knobs["source"]).items() if key in DATA}
        found |= {f"trainer.source.{key}": {"": path} for key, path in _local(named)}
        for key, path in _local({"model": config.model}):
            parts = vars(find_parts(path))
            store = isinstance(knobs["text"], EncodedTextConfig)
            names = ["vae"] if store else ["vae", "text_encoder", "tokenizer"]
            read = {name: parts[name] for name in names if parts[name] is not None}
            found[key] = read
        if isinstance(knobs["text"], EncodedTextConfig):
            found |= {f"trainer.text.{key}": {"": path} for key, path in _local({"path": knobs["text"].path})}
    return found


def warn_of_cut_prompts(config, roles) -> None:
    """Warns of the prompts of a training (`TrainConfig`) that its text encoder does not read whole."""
    knobs = values(config.trainer.source)
    for path in [knobs[name] for name in ("prompts", "switch_prompts") if knobs.get(name)]:
        places = ((f"{path}, line {line.line}", line.prompt) for line in read_prompts(path))
        warn_cut(places, roles.text.find_cut, roles.generator.spec.text_len)


def input_hashes(inputs: dict[str, dict[str, Path]]) -> dict[str, str | None]:
    """Returns key -> hash of all that the key names, or None where that cannot be read any more."""
    found: dict[str, str | None] = {}
    for key, paths in inputs.items():
        try:
            found[key] = content_hash(paths)
        except OSError:
            found[key] = None
    return found


def _local(named: dict[str, str]) -> list[tuple[str, Path]]:
    """Returns (key, path) of the names that are there."""
    found = [(key, hub.find_local(name)) for key, name in named.items() if name]
    return [(key, path) for key, path in found if path is not None]
