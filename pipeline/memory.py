"""What a generation needs at the least, told before a weight is read."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import CausalConfig, InferConfig
from utils import memory
from wan.checkpoint import tensor_file
from wan.checkpoint.parts import find_parts
from wan.family import find_published, get_family, published_specs
from wan.geometry import Geometry
from wan.spec import TransformerSpec

BYTES = {"fp32": 4, "bf16": 2}
ADVICE = "take a smaller window, batch, length, height or width, or bf16"


def check_memory(config: InferConfig) -> None:
    """Raises ValueError for a generation that cannot fit into the memory of the device, whatever else it holds.

    A model that is not here yet, or whose files do not tell its sizes, is left to what loads it.
    """
    sizes = read_sizes(config)
    if sizes is not None:
        memory.check_fits(estimate(config, sizes), ADVICE)


def read_sizes(config: InferConfig) -> TransformerSpec | None:
    """Returns the sizes of the transformer, by its name or its `config.json`; None if neither tells them."""
    if config.model.spec:
        return find_published(config.model.spec).transformer
    path = Path(config.model.path)
    if not path.is_dir():
        return None
    try:
        folders = [Path(folder) for folder in find_parts(path).transformers.values()]
        tree = tensor_file.read_config(folders[0]) if folders and folders[0].is_dir() else None
        return TransformerSpec.from_config(tree) if tree else None
    except (ValueError, OSError, TypeError, KeyError):
        return None


def estimate(config: InferConfig, sizes: TransformerSpec) -> dict[str, float]:
    """Returns what -> bytes of weights and caches; each is the least, so that nothing possible is refused."""
    width, causal = BYTES[config.model.dtype], isinstance(config.pipeline, CausalConfig)
    parts = {"weights": count(sizes) * width}
    if causal:
        cache, known = config.generation.cache, [s for s in published_specs().values() if s.transformer == sizes]
        tokens = Geometry.of(known[0], config.height, config.width).frame_tokens if known else 1
        told = not (config.seconds or config.data.scheduled)
        frames = cache.window_frames if cache.window_frames > 0 else config.num_output_frames if told else 1
        copies = max(len(config.generation.steps.steps), 1) if cache.content == "same_step" else 1
        batch = min(config.batch, config.num_samples)
        parts["keys and values"] = 2.0 * sizes.num_layers * frames * tokens * sizes.dim * width * batch * copies
    return parts


def count(sizes: TransformerSpec) -> float:
    """Returns the number of weights of a transformer; none of them is made."""
    import torch

    with torch.device("meta"):
        return float(sum(weight.numel() for weight in get_family(sizes).network(sizes).parameters()))
