"""`torch.compile` of a finished transformer: the tensor code of its blocks and adapters, region by region.

A block or an adapter names its regions (`wan/blocks.py`): methods without caches, masks or layer numbers between
which the attentions run as they are. One graph of each serves all layers and all chunks of a size.
"""

from __future__ import annotations

import types

import torch
from torch import nn

RECOMPILE_LIMIT = 64  # graphs of one region of one network: grad modes x frozen or trained x kinds of sizes


def compile_blocks(transformer: nn.Module, **options) -> nn.Module:
    """Compiles the regions of every block and adapter; returns the transformer, changed in place.

    After LoRA and adapters, before sharding. Names of weights, copies and hooks stay as they are. Nothing is
    compiled until the first forward, and anew for another grad mode or dtype, and for sizes: of 1, and the second
    time one changes, after which it is variable. options: those of `torch.compile` (backend, mode, dynamic ...); a
    region must be one graph.
    Errors: ValueError if the blocks are compiled already.
    """
    # torch's own limit of 8 is near for a generator that makes chunks of two sizes, and reaching it ends the run.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    made: dict[type, type] = {}
    adapters = [adapter for adapter in transformer.adapters if hasattr(adapter, "regions")]
    for part in (*transformer.blocks, *adapters):
        kind = type(part)
        if hasattr(kind, "compiled"):
            raise ValueError("the blocks are compiled already; compile a transformer once, before it is sharded")
        if kind not in made:
            made[kind] = _compiled_kind(kind, options)
        part.__class__ = made[kind]  # as FSDP does: a compiled method in the instance would not survive a copy
    return transformer


def _compiled_kind(kind: type, options: dict) -> type:
    """Returns a subclass whose regions are compiled, of a block or of an adapter (which has `after_block`)."""

    def forward(self, x: torch.Tensor, *rest) -> torch.Tensor:
        # The first block gets a view of the patches, in another memory order: without this, two graphs of each.
        if x._is_view() or not x.is_contiguous():
            x = x.clone(memory_format=torch.contiguous_format)
        return kind.forward(self, x, *rest)

    members = {name: _compiled(getattr(kind, name), options) for name in kind.regions}
    if not hasattr(kind, "after_block"):
        members["forward"] = forward
    return type(f"Compiled{kind.__name__}", (kind,), {**members, "compiled": True})


def _compiled(method: types.FunctionType, options: dict):
    """Returns the method compiled, with code of its own: graphs are kept, and their number limited, by code object,
    and generator, teacher and critic must not take each other's places."""
    own = types.FunctionType(
        method.__code__.replace(), method.__globals__, method.__name__, method.__defaults__, method.__closure__
    )
    return torch.compile(own, fullgraph=True, **options)
