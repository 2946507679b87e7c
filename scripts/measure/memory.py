"""What sums of memory are made of: parameters counted on the meta device, and lines with their arithmetic."""

from __future__ import annotations

from functools import cache

GIGA = 1e9
BF16, FP32 = 2, 4
TEXT_ENCODER = 5.68e9  # parameters of the umT5-xxl encoder


@cache
def count(name: str) -> tuple[int, int]:
    """Returns (parameters of a published model's transformer, parameters of one block)."""
    network = on_meta(name)
    return sum(p.numel() for p in network.parameters()), sum(p.numel() for p in network.blocks[0].parameters())


def on_meta(name: str):
    """Returns the transformer of a published model, without its values."""
    import torch

    from wan.family import find_published, get_family

    spec = find_published(name).transformer
    with torch.device("meta"):
        return get_family(spec).network(spec)


def part(what: str, size: float, arithmetic: str) -> dict:
    """Returns one line of a sum; size: in bytes."""
    return {"what": what, "sum": arithmetic, "GB": round(size / GIGA, 3)}
