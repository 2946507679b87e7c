"""8-bit weights with a scale next to each become weights; types that no weight can have are refused.

Repackaged files hold `X.weight` in float8 (or int8) and its scale as `X.scale_weight` or `X.weight_scale`: one number,
or one for each row. The weight is their product. `X.scale_input` and its kin are for 8-bit arithmetic and left out.
"""

from __future__ import annotations

from collections import Counter

import torch

from wan.checkpoint.foreign import name_quantisation
from wan.checkpoint.key_maps import State

SCALES = (".scale_weight", ".weight_scale")
OF_ARITHMETIC = (".scale_input", ".input_scale")
MARKS = ("scaled_fp8", "spiece_model")  # tensors that say something of the file; the second is a tokenizer's bytes
DESCRIPTION = ".comfy_quant"  # a text about one layer, as bytes
EIGHT_BITS = tuple(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "int8", "uint8")
    if hasattr(torch, name)
)
INTEGERS = (torch.int8, torch.uint8)


def apply_scales(state: State, what: str) -> State:
    """Returns the state dict with each scaled weight multiplied out, in the type of most other tensors (or bf16).

    what: names the file in errors. Errors: ValueError for scales without weight, weights that need a scale and have
    none, quantisations that are not read, and types that no weight can have.
    """
    if name := name_quantisation(state):
        raise ValueError(
            f"{what} holds weights quantised by {name}, which are not read; take bf16, fp16 or fp8 weights"
        )
    scales = {name: name.removesuffix(end) + ".weight" for end in SCALES for name in state if name.endswith(end)}
    if lost := [name for name, weight in scales.items() if weight not in state]:
        raise ValueError(f"{what} holds scales without a weight: {', '.join(lost[:5])}; the file is not whole")
    if "scaled_fp8" in state and not scales:
        raise ValueError(f"{what} is marked as scaled 8-bit weights and holds no scale; the file is not whole")
    dtype = _common(state)
    out = {name: tensor for name, tensor in state.items() if not _is_note(name) and name not in scales}
    for name, weight in scales.items():
        out[weight] = _product(out[weight], state[name], f"{what}: {name}").to(dtype)
    check_types(out, what)
    return out


def check_types(state: State, what: str) -> None:
    """Raises ValueError naming the tensors of a type that no weight can have."""
    wrong = {name: t.dtype for name, t in state.items() if not t.is_floating_point()}
    if wrong:
        listed = ", ".join(f"{name} ({str(dtype).removeprefix('torch.')})" for name, dtype in list(wrong.items())[:5])
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{what} holds tensors that cannot be weights: {listed}{more}; take bf16, fp16 or fp32 weights"
        )


def check_finite(state: State, what: str) -> None:
    """Raises ValueError naming the tensors that hold NaN or infinity."""
    wrong = [name for name, tensor in state.items() if not tensor.float().isfinite().all()]
    if wrong:
        raise ValueError(f"{what} holds values that are not finite: {', '.join(wrong[:5])}; the file is damaged")


def _is_note(name: str) -> bool:
    return name in MARKS or name.endswith((*OF_ARITHMETIC, DESCRIPTION))


def _common(state: State) -> torch.dtype:
    """Returns the type that most weights of a file have that are not 8-bit."""
    scales = (*SCALES, *OF_ARITHMETIC)
    types = (t.dtype for name, t in state.items() if t.is_floating_point() and not name.endswith(scales))
    counts = Counter(dtype for dtype in types if dtype not in EIGHT_BITS)
    return counts.most_common(1)[0][0] if counts else torch.bfloat16


def _product(weight: torch.Tensor, scale: torch.Tensor, where: str) -> torch.Tensor:
    if weight.dtype not in EIGHT_BITS:
        raise ValueError(f"{where} scales a weight of type {weight.dtype}; scales belong to 8-bit weights")
    rows = weight.shape[0] if weight.ndim else 1
    if scale.numel() not in (1, rows):
        raise ValueError(
            f"{where} has the shape {list(scale.shape)}; one number, or one for each of {rows} rows, is read"
        )
    factors = scale.float().reshape(-1, *[1] * (weight.ndim - 1)) if scale.numel() > 1 else scale.float().reshape(())
    return weight.float() * factors
