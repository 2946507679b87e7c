"""Shards finished modules over the ranks (FSDP2) and back: weights, compute dtype, CPU offload, whole copies.

Applied from outside, after LoRA, checkpointing and compilation. Trained weights are fp32 masters; with
bf16 the forward sees bf16 copies and gradients are reduced in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from utils.parallel.layout import ParallelLayout


def cast(module: nn.Module, compute: torch.dtype) -> None:
    """Makes trained weights fp32 masters of their own and gives frozen ones the dtype `compute`, in place."""
    for parameter in module.parameters():
        if is_sharded(parameter):
            continue  # of an inner block that is sharded already
        trained = parameter.requires_grad
        parameter.data = parameter.data.to(torch.float32 if trained else compute, copy=trained)


def shard(
    module: nn.Module, blocks: Iterable[nn.Module], layout: ParallelLayout, compute: torch.dtype, offload: bool = False
) -> nn.Module:
    """Casts and shards `blocks` one by one, then the rest of `module`, in place; returns the module.

    compute: dtype of the copies that the forward sees. offload: the shards lie in CPU memory and come to the
    device when a block needs them. Inputs are never cast. Every rank must hold the same values before;
    weights that are mapped from a file are read, cast and moved block by block.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    pinned = layout.device_type == "cuda"
    options = {
        "mesh": layout.weights_mesh,
        "mp_policy": MixedPrecisionPolicy(compute, torch.float32, cast_forward_inputs=False),
        "offload_policy": CPUOffloadPolicy(pin_memory=pinned) if offload else OffloadPolicy(),
        "reshard_after_forward": not layout.config.keep_gathered,
    }
    for block in blocks:
        cast(block, compute)
        fully_shard(block, **options)
    cast(module, compute)
    return fully_shard(module, **options)


def keep_root(module: nn.Module) -> None:
    """Leaves the weights outside the blocks whole until the end of backward, if `module` is sharded.

    For a module whose features a loss reads and not its output: what gathers the root's weights for the
    backward hangs on the output.
    """
    if hasattr(module, "set_reshard_after_forward"):
        module.set_reshard_after_forward(False, recurse=False)


def is_sharded(tensor: torch.Tensor) -> bool:
    """True for a tensor of which this rank holds a part (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the whole of a tensor; for a sharded one all ranks must call this together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local_shard(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Returns this rank's part of `full`, sharded as `like` is; no communication: every rank has all of it."""
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def reshard(module: nn.Module) -> None:
    """Drops the whole copies that a forward may have left: they would hide what is written to the shards."""
    for part in module.modules():
        if hasattr(part, "reshard"):  # of a sharded module
            part.reshard()
