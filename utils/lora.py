"""LoRA by peft, put into finished modules from outside; the module keeps its class and its attributes.

Pairs are module name -> (A [rank, in], B [out, rank], scale) of the update scale * B A, names as in the module without
adapters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

ADAPTER = "default"
BLOCK_LINEARS = r"blocks\."  # every linear of every transformer block, none outside

LoraPairs = Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]


def inject(
    module: nn.Module,
    rank: int | dict[str, int],
    alpha: float | None = None,
    targets: str = BLOCK_LINEARS,
    dropout: float = 0.0,
):
    """Puts trainable adapters next to the linears whose name `targets` (a regular expression) matches.

    rank: of all, or of each linear by its name. alpha None means alpha = rank (scale 1). All other parameters are
    frozen. Adapters start as zero updates, in the dtype of the linear. Returns the module.
    Errors: ValueError if nothing matches, the rank is not positive, or adapters are there already.
    """
    from peft import LoraConfig, inject_adapter_in_model

    ranks = rank if isinstance(rank, dict) else {}
    rank = min(ranks.values(), default=0) if isinstance(rank, dict) else rank
    if rank < 1:
        raise ValueError(f"lora.rank is {rank}; write 1 or more")
    if layers(module):
        raise ValueError("the module has LoRA adapters already; inject into a module without")
    names = match_linears(module, targets)
    alpha = rank if alpha is None else alpha
    # A regular expression, because peft reads a list as endings of names.
    exactly = "(?:" + "|".join(map(re.escape, names)) + ")"
    # peft takes the first of these expressions that fits the end of a name: the longest names come first.
    longest = sorted(ranks, key=len, reverse=True) if set(ranks.values()) - {rank} else []
    own = {re.escape(name): ranks[name] for name in longest}
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=exactly, rank_pattern=own)
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
    """Copies pairs into the injected adapters; B is scaled so that each update keeps its strength.

    Errors: ValueError with the first ten modules that lack a pair or an adapter, or differ in rank.
    """
    adapted = layers(module)
    missing, unexpected = [n for n in adapted if n not in pairs], [n for n in pairs if n not in adapted]
    halves = {n: (adapted[n].lora_A[ADAPTER].weight, adapted[n].lora_B[ADAPTER].weight) for n in adapted}
    shaped = [
        f"{n} ({_shapes(pairs[n][:2])}, adapter {_shapes(own)})"
        for n, own in halves.items()
        if n in pairs and _shapes(pairs[n][:2]) != _shapes(own)
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
        for name, (own_a, own_b) in halves.items():
            a, b, scale = pairs[name]
            factor = scale / adapted[name].scaling[ADAPTER]
            own_a.copy_(a)
            own_b.copy_(b if factor == 1 else factor * b.to(torch.promote_types(own_b.dtype, torch.float32)))


def _shapes(pair) -> str:
    return " and ".join(str(tuple(t.shape)) for t in pair)


def inject_pairs(module: nn.Module, pairs: LoraPairs):
    """Injects adapters exactly where `pairs` have weights, each of its own rank and scale, and loads them.

    Returns the module. Errors: ValueError for pairs of layers that are no linears of the module.
    """
    known = {n for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    if lost := [n for n in pairs if n not in known]:
        raise ValueError(
            f"the LoRA has weights for {len(lost)} layers that this model does not have: {', '.join(lost[:10])}"
        )
    exactly = "(?:" + "|".join(re.escape(n) for n in pairs) + ")$"
    inject(module, {name: len(a) for name, (a, _, _) in pairs.items()}, targets=exactly)
    for name, layer in layers(module).items():
        layer.scaling[ADAPTER] = pairs[name][2]
    load_pairs(module, pairs)
    return module
