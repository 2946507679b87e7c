"""Dense attention kernels: torch's own, and flash-attention 2 and 3 where they are installed."""

from __future__ import annotations

import importlib.util

import torch
from torch.nn import functional

from wan.attention.call import AttentionCall


class Sdpa:
    """torch's scaled_dot_product_attention (cuDNN, flash or math); takes everything."""

    def usable(self, call: AttentionCall) -> str | None:
        """Returns None: this one always works."""
        return None

    def run(self, call: AttentionCall) -> torch.Tensor:
        """[B, L, N, E] in and out."""
        k, v, selection = call.k, call.v, call.selection
        dense = None if call.mask is None else call.mask.dense(call.queries, call.keys, call.q.device)
        if selection is not None:
            sizes = (call.q.shape[1], k.shape[1])
            dense = selection.bias(*sizes, call.q.dtype) if selection.pool else selection.visible(*sizes)
            if selection.pool:
                k, v = (torch.cat((x, selection.pooled(x)), 1) for x in (k, v))
        q, k, v = (x.transpose(1, 2) for x in (call.q, k, v))
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=dense).transpose(1, 2)


class Flash2:
    """flash-attention 2: half precision, Ampere and later, no mask."""

    package, capability = "flash_attn", (8, 0)

    def usable(self, call: AttentionCall) -> str | None:
        """Returns why it cannot run, or None."""
        q = call.q
        if q.device.type != "cuda":
            return "it needs a CUDA device"
        if q.dtype not in (torch.float16, torch.bfloat16):
            return f"it needs fp16 or bf16, not {q.dtype}"
        if call.mask is not None or call.selection is not None:
            return "it takes no frame mask and no selection of blocks"
        if torch.cuda.get_device_capability(q.device) < self.capability:
            return f"it needs compute capability {self.capability}"
        if importlib.util.find_spec(self.package) is None:
            return f"the package {self.package} is not installed (pip install longtake[flash])"
        return None

    def run(self, call: AttentionCall) -> torch.Tensor:
        """[B, L, N, E] in and out."""
        from flash_attn import flash_attn_func

        return flash_attn_func(call.q, call.k, call.v)


class Flash3(Flash2):
    """flash-attention 3: Hopper only."""

    package, capability = "flash_attn_interface", (9, 0)

    def usable(self, call: AttentionCall) -> str | None:
        """Returns why it cannot run, or None."""
        reason = super().usable(call)
        if reason is None and torch.cuda.get_device_capability(call.q.device)[0] != 9:
            return "its kernels are built for Hopper (compute capability 9.x)"
        return reason

    def run(self, call: AttentionCall) -> torch.Tensor:
        """[B, L, N, E] in and out."""
        from flash_attn_interface import flash_attn_func

        out = flash_attn_func(call.q, call.k, call.v)
        return out[0] if isinstance(out, tuple) else out  # older builds also return the log-sum-exp
