"""What a generation needs at the least, told before a weight is read; and which switch helps where it is not there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import CausalConfig, InferConfig
from utils import memory
from wan.checkpoint import tensor_file
from wan.checkpoint.parts import find_parts
from wan.config import WIDE_LINEARS
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
        memory.check_fits(estimate(config, sizes), ", or ".join((*switches(config), ADVICE)))


def switches(config: InferConfig) -> list[str]:
    """Returns the knobs that save memory and are not in use: what each takes off the GPU, the cheapest first."""
    model, found = config.model, []
    if memory.on_gpu():
        if not model.offload.parts:
            found.append("model.offload.parts=true (encoders)")
        if model.offload.caches != "cpu" and isinstance(config.pipeline, CausalConfig):
            same_step = config.generation.cache.content == "same_step" and model.offload.caches == "device"
            found += ["model.offload.caches=staged (a portrait's copies)"] if same_step else []
            found.append("model.offload.caches=cpu (keys and values)")
    if model.linears == "weights" and model.dtype == "bf16" and (model.lora_merge or not model.lora):
        found.append("model.linears=fp8 (half of the weights)")
    if memory.on_gpu() and not model.offload.blocks:
        found.append("model.offload.blocks=true (all blocks but three)")
    return found


@contextlib.contextmanager
def advised(config: InferConfig) -> Iterator[None]:
    """Names the switches that help where the GPU has no memory left. Errors: MemoryError in place of torch's own."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).partition("\n")[0].partition(". GPU")[0].rstrip(".")
        helps = "; what helps: " + ", ".join(switches(config)) if switches(config) else ""
        raise MemoryError(first + helps) from error


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
    offload, on_gpu = config.model.offload, memory.on_gpu()
    parts = {"weights": weight_bytes(sizes, width, config.model.linears, offload.blocks and on_gpu)}
    if causal:
        cache, known = config.generation.cache, [s for s in published_specs().values() if s.transformer == sizes]
        tokens = Geometry.of(known[0], config.height, config.width).frame_tokens if known else 1
        told = not (config.seconds or config.data.scheduled)
        frames = cache.window_frames if cache.window_frames > 0 else config.num_output_frames if told else 1
        copies = max(len(config.generation.steps.steps), 1) if cache.content == "same_step" else 1
        layers = sizes.num_layers * copies if offload.caches != "cpu" or not on_gpu else 2
        parts["keys and values"] = (
            2.0 * layers * frames * tokens * sizes.dim * width * min(config.batch, config.num_samples)
        )
    return parts


def weight_bytes(sizes: TransformerSpec, width: int, linears: str = "weights", swapped: bool = False) -> float:
    """Returns the bytes of a transformer's weights on the device; none of them is made.

    width: bytes of a value. swapped: all blocks but three lie elsewhere.
    """
    from torch import nn

    from utils.offload import RESIDENT

    network = shapes(sizes)
    narrow = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if linears != "weights" and isinstance(module, nn.Linear) and not any(kept in name for kept in WIDE_LINEARS)
    }
    total, block = 0.0, 0.0
    for name, weight in network.named_parameters():
        size = weight.numel() * (1 if name in narrow else width)
        total += size
        block += size if name.startswith("blocks.0.") else 0
    return total - max(sizes.num_layers - RESIDENT, 0) * block if swapped else total


def shapes(sizes: TransformerSpec):
    """Returns the transformer on the meta device."""
    import torch

    with torch.device("meta"):
        return get_family(sizes).network(sizes)
