"""What weights were trained with: their `generation_config.json`, the defaults of a generation with them.

It is a layer between the project's defaults and the recipe. A recipe that contradicts it is carried out, and told so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.lora import find_paths
from utils import hub
from utils.config.field import dotted
from utils.config.layer import Layer
from utils.config.load import load, peek
from utils.config.renamed import leaves
from utils.config.text import DEFAULT_ORIGIN, format_value, to_dict
from utils.json_reader import JsonError, read_json
from utils.parallel import ranks
from wan.generation import FILE, GenerationConfig

logger = logging.getLogger(__name__)
SPARSE_KEY = "sparse"  # of `model`, and of the file where the weights were trained with sparse attention
LORA, CHECKPOINT, MODEL = "model.lora", "model.checkpoint", "model.path"  # what was trained last comes first


@dataclass(frozen=True)
class Trained:
    """The file that weights carry, as a layer. is_own: False if it is that of a model whose weights are replaced."""

    layer: Layer
    is_own: bool

    def warn(self, config: Any, origins: dict[str, str]) -> None:
        """Logs one warning with each value of an `InferConfig` that differs from the training's, and who wrote it."""
        given, lines = self.layer.tree["generation"], []
        trained = to_dict(load(GenerationConfig, [Layer(self.layer.source, given)])[0])
        used = dict(leaves(to_dict(config.generation)))
        found = [(("generation", *path), used[path], value) for path, value in leaves(trained) if _holds(given, path)]
        sparse = self.layer.tree.get("model", {}).get(SPARSE_KEY, {})
        used = dict(leaves(to_dict(config.model)[SPARSE_KEY]))
        found += [(("model", SPARSE_KEY, *path), used.get(path), value) for path, value in leaves(sparse) if path]
        for path, used_value, value in found:
            if used_value != value:
                key = dotted(path)
                place = origins.get(key, DEFAULT_ORIGIN)
                lines.append(f"{key} is {format_value(used_value)} ({place}), trained with {format_value(value)}")
        guidance, steps = getattr(config.sampler, "guidance", 1), trained["steps"]["steps"]
        if steps and guidance != 1:
            place = origins.get("sampler.guidance", DEFAULT_ORIGIN)
            lines.append(f"sampler.guidance is {guidance:g} ({place}), distilled to {len(steps)} steps that need 1")
        if lines and self.is_own and ranks.rank() == 0:
            logger.warning("not as the weights were trained (%s): %s", self.layer.source, "; ".join(lines))


def find_trained(layers: list[Layer]) -> Trained | None:
    """Returns what the weights that the layers name were trained with, or None where they do not say it.

    A checkpoint or LoRA without the file takes that of what it changes: of the checkpoint that the recipe names for the
    same model, else of the model. Errors: ValueError for a file that is not JSON.
    """
    path, checkpoint = peek(layers, MODEL), peek(layers, CHECKPOINT)
    groups = [list(find_paths(peek(layers, LORA))), [checkpoint]]
    for end in range(len(layers) - 1, 0, -1) if checkpoint else ():  # what it replaces, the newest first
        if peek(layers[:end], MODEL) == path and (name := peek(layers[:end], CHECKPOINT)) not in groups[-1]:
            groups.append([name])
    groups.append([path])
    groups = [names for group in groups if (names := [name for name in group if isinstance(name, str) and name])]
    for number, names in enumerate(groups):
        if files := [file for name in names if (file := find_file(name))]:
            tree, others = _read(files[0]), [str(file) for file in files[1:] if _read(file) != _read(files[0])]
            if others and ranks.rank() == 0:
                logger.warning("the LoRAs were trained otherwise (%s); %s counts", ", ".join(others), files[0])
            layer = {"generation": tree}
            if sparse := tree.pop(SPARSE_KEY, None):
                layer["model"] = {SPARSE_KEY: sparse}
            return Trained(Layer(str(files[0]), layer), is_own=number == 0)
    return None


def find_file(weights: str) -> Path | None:
    """Returns the file next to weights: a transformer's folder, a model's folder or hub name, or a file of tensors."""
    path = hub.find_local(weights)
    if path is None:
        return None
    folder = path if path.is_dir() else path.parent
    return next((file for file in (folder / FILE, folder / "transformer" / FILE) if file.is_file()), None)


def fetch(names: list[str]) -> None:
    """Downloads weights that are not on this machine.

    Errors: ValueError if they then say how they generate, since the recipe was read without that.
    """
    for name in [name for name in names if name and hub.find_local(name) is None]:
        hub.resolve(name)
        if file := find_file(name):
            raise ValueError(f"{name} was downloaded and its {file.name} says how it generates; start again to use it")


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = read_json(file)
    except JsonError as error:
        raise ValueError(f"{error}; export the weights again, or remove the file") from error
    if "${" in str(tree):
        raise ValueError(f"{file} must hold an object of plain values, as an export writes it; mend or remove it")
    return tree


def _holds(tree: dict[str, Any], path: tuple) -> bool:
    """Returns whether a tree gives a value at a path."""
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True
