"""LoRA by peft, put into finished modules from outside; the module keeps its class and its attributes.

Pairs are module name -> (A [rank, in], B [out, rank]), names as in the module without adapters.
"""

from __future__ import annotations

import re

import torch
from torch import nn

ADAPTER = "default"
BLOCK_LINEARS = r"blocks\."  # every linear of every transformer block, none outside

LoraPairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def inject(
    module: nn.Module, rank: int, alpha: float | None = None, targets: str = BLOCK_LINEARS, dropout: float = 0.0
):
    """Puts trainable adapters next to the linears whose name `targets` (a regular expression) matches.

    alpha None means alpha = rank (scale 1). All other parameters are frozen. Adapters start as zero
    updates, in the dtype of the linear. Returns the module.
    Errors: ValueError if nothing matches, the rank is not positive, or adapters are there already.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if rank < 1:
        raise ValueError(f"lora.rank is {rank}; write 1 or more")
    if layers(module):
        raise ValueError("the module has LoRA adapters already; inject into a module without")
    names = match_linears(module, targets)
    alpha = rank if alpha is None else alpha
    # A regular expression, because peft reads a list as endings of names.
    exactly = "(?:" + "|".join(map(re.escape, names)) + ")"
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=exactly)
    inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    for layer in layers(module).values():
        for half in (layer.lora_A, layer.lora_B):
            half[ADAPTER].to(layer.get_base_layer().weight.dtype)
    return module


def match_linears(module: nn.Module, targets: str) -> list[str]:
    """Returns the names of the linears that `targets` matches. Errors: ValueError if none, or a wrong pattern."""
    try:
        names = [n for n, m in module.named_modules() if isinstance(m, nn.Linear) and re.match(targets, n)]
    except re.error as error:
        raise ValueError(f"{targets!r} is not a regular expression ({error})") from error
    if not names:
        raise ValueError(f"no linear layer has a name that {targets!r} matches")
    return names


def layers(module: nn.Module) -> dict[str, nn.Module]:
    """Returns name -> adapted linear."""
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in module.named_modules() if isinstance(m, LoraLayer)}


def load_pairs(module: nn.Module, pairs: LoraPairs):
    """Copies pairs into the injected adapters.

    Errors: ValueError with the first ten modules that lack a pair or an adapter, or differ in rank.
    """
    adapted = layers(module)
    missing, unexpected = [n for n in adapted if n not in pairs], [n for n in pairs if n not in adapted]
    halves = {n: (adapted[n].lora_A[ADAPTER].weight, adapted[n].lora_B[ADAPTER].weight) for n in adapted}
    shaped = [
        f"{n} ({_shapes(pairs[n])}, adapter {_shapes(own)})"
        for n, own in halves.items()
        if n in pairs and _shapes(pairs[n]) != _shapes(own)
    ]
    lists = (
        ("adapters without weights", missing),
        ("weights without adapter", unexpected),
        ("of another shape", shaped),
    )
    listed = [f"{len(names)} {kind}: {', '.join(names[:10])}" for kind, names in lists if names]
    if listed:
        raise ValueError("the LoRA does not fit. " + "; ".join(listed))
    with torch.no_grad():
        for name, own in halves.items():
            for tensor, parameter in zip(pairs[name], own, strict=True):
                parameter.copy_(tensor)


def _shapes(pair) -> str:
    return " and ".join(str(tuple(t.shape)) for t in pair)


def inject_pairs(module: nn.Module, pairs: LoraPairs, alpha: float | None = None):
    """Injects adapters exactly where `pairs` have weights, and loads them. Returns the module."""
    ranks = {a.shape[0] for a, _ in pairs.values()}
    if len(ranks) != 1:
        raise ValueError(f"the LoRA mixes ranks {sorted(ranks)}; merge it into the base instead of running it live")
    known = {n for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    if lost := [n for n in pairs if n not in known]:
        raise ValueError(
            f"the LoRA has weights for {len(lost)} layers that this model does not have: {', '.join(lost[:10])}"
        )
    exactly = "(?:" + "|".join(re.escape(n) for n in pairs) + ")$"
    inject(module, ranks.pop(), alpha, exactly)
    load_pairs(module, pairs)
    return module
