"""What sums of memory are made of: parameters counted on the meta device, and lines with their arithmetic."""

from __future__ import annotations

from functools import cache

GIGA = 1e9
BF16, FP32 = 2, 4
TEXT_ENCODER = 5.68e9  # parameters of the umT5-xxl encoder


def count(name: str) -> tuple[int, int]:
    """Returns (parameters of a published model's transformer, parameters of one block)."""
    network = on_meta(name)
    return sum(p.numel() for p in network.parameters()), sum(p.numel() for p in network.blocks[0].parameters())


@cache
def on_meta(name: str):
    """Returns the transformer of a published model, without its values."""
    import torch

    from wan.family import find_published, get_family

    spec = find_published(name).transformer
    with torch.device("meta"):
        return get_family(spec).network(spec)


def block_inputs(tokens: int, sizes) -> dict:
    """Returns what checkpointed blocks keep for backward."""
    size = tokens * sizes.dim * BF16 * sizes.num_layers
    terms = f"{tokens} tokens x {sizes.dim} x {BF16} x {sizes.num_layers}"
    return part("inputs of checkpointed blocks", size, terms)


def inside_block(what: str, tokens: int, sizes, note: str = "") -> dict:
    """Returns what lives inside a block: some fourteen tensors of its width, two of its feed-forward."""
    size = tokens * (14 * sizes.dim + 2 * sizes.ffn_dim) * BF16
    return part(what, size, f"{tokens} tokens x (14 x {sizes.dim} + 2 x {sizes.ffn_dim}) x {BF16}{note}")


def part(what: str, size: float, arithmetic: str) -> dict:
    """Returns one line of a sum; size: in bytes."""
    return {"what": what, "sum": arithmetic, "GB": round(size / GIGA, 3)}
