"""8-bit floating-point linears, put into finished modules from outside.

Weights are rounded to e4m3 once and their wide form is freed; activations are rounded in every call. The product is
`torch._scaled_mm`, on a GPU and on the CPU. Scales are of the whole tensor, or of each row (output feature, token).
Source of the scale: Live-Avatar, fp8_gemm.py: 448 / max |x|, at most 448. Forward only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448
LEAST = 1e-12  # of the largest value of a tensor: one of zeros has no scale
MULTIPLE = 16  # of the sizes that the product takes


class Float8Linear(nn.Module):
    """A linear with an e4m3 weight [out, in]; x [..., in] in bf16 in, [..., out] in bf16 out.

    scale: fp32, what a stored weight is multiplied by, [] or [out, 1]. `to(dtype)` changes the bias alone.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear, rows: bool = False):
        super().__init__()
        self.in_features, self.out_features, self.rows = linear.in_features, linear.out_features, rows
        weight, scale = round_e4m3(linear.weight.detach(), rows)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, self.in_features)
        if not len(flat):
            return x.new_empty(*x.shape[:-1], self.out_features)
        narrow, scale = round_e4m3(flat, self.rows)
        weight_scale = self.scale.t() if self.rows else self.scale
        y = torch._scaled_mm(
            narrow,
            self.weight.t(),
            scale_a=scale,
            scale_b=weight_scale,
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return y.unflatten(0, x.shape[:-1])

    def wide(self) -> torch.Tensor:
        """Returns the weight [out, in] that the rounded one stands for, fp32."""
        return self.weight.float() * self.scale

    def _apply(self, fn, recurse=True):
        before = {name: getattr(self, name).dtype for name in ("weight", "scale")}
        super()._apply(fn, recurse)
        for name, dtype in before.items():  # a module's `to(dtype)` must not widen what was made narrow
            setattr(self, name, getattr(self, name).to(dtype))
        return self

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, e4m3 per {'row' if self.rows else 'tensor'}"


def round_e4m3(x: torch.Tensor, rows: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (x [R, C] in e4m3, the fp32 factor, [] or [R, 1], that takes it back)."""
    largest = x.abs().amax(1, keepdim=True) if rows else x.abs().amax()
    scale = (LARGEST / largest.float().clamp(min=LEAST)).clamp(max=LARGEST)
    return (x.float() * scale).clamp(-LARGEST, LARGEST).to(E4M3), scale.reciprocal()


def to_float8(module: nn.Module, kept: Sequence[str] = (), rows: bool = False) -> list[str]:
    """Puts `Float8Linear` in place of the linears of a module whose names hold none of `kept`; returns their names.

    The module runs in bf16. A merged LoRA is in the weights and is rounded with them.
    Errors: ValueError, before anything is changed, for a LoRA next to the weights, for weights that are not bf16, for
    sizes that are no multiples of 16, or where no linear is chosen.
    """
    chosen = {
        name: m for name, m in module.named_modules() if isinstance(m, nn.Linear) and not any(k in name for k in kept)
    }
    if adapted := [name for name in chosen if ".base_layer" in name]:
        raise ValueError(
            f"{adapted[0].partition('.base_layer')[0]} has a LoRA next to its weight, and 8-bit linears take it only "
            "in the weight; write model.lora_merge=true, or model.linears=weights"
        )
    if not chosen:
        raise ValueError("the module has no linear to run in 8 bits; write model.linears=weights")
    for name, linear in chosen.items():
        if linear.weight.dtype != torch.bfloat16:
            kind = str(linear.weight.dtype).removeprefix("torch.")
            raise ValueError(f"{name} is {kind} and 8-bit linears take bf16; write model.dtype=bf16")
        if linear.in_features % MULTIPLE or linear.out_features % MULTIPLE:
            sizes = f"{linear.in_features} x {linear.out_features}"
            raise ValueError(
                f"{name} is {sizes}; the 8-bit product takes multiples of {MULTIPLE}: model.linears=weights"
            )
    for name, linear in chosen.items():
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, Float8Linear(linear, rows))
    return list(chosen)


def check_float8(device: torch.device | str, rows: bool = False) -> None:
    """Runs the product on a device. Errors: ValueError with the device's own words if it has none."""
    probe = torch.ones(MULTIPLE, MULTIPLE, dtype=torch.bfloat16, device=device)
    linear = nn.Linear(MULTIPLE, MULTIPLE, dtype=torch.bfloat16, device=device)
    try:
        Float8Linear(linear, rows)(probe)
    except (RuntimeError, ValueError, AttributeError) as error:  # torch names a missing product in all three ways
        kind = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else str(device)
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"{kind} has no 8-bit product ({first}); write model.linears=weights") from error


@torch.no_grad()
def relative_error(made: torch.Tensor, wanted: torch.Tensor) -> float:
    """Returns the root-mean-square difference of two tensors relative to the wanted one's size."""
    wide = wanted.double()
    return float((made.double() - wide).square().mean().sqrt() / wide.square().mean().sqrt())
