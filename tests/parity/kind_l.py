"""Kind L: Video-BLADE's token order, its adaptive block-sparse attention with gradients, and its TDM (`kind_l_tdm`).

Not targets: the two branches and their merge, whose backward drops the gradient of the log-sum-exp; ours is one softmax
over kept and pooled keys, compared with the exact gradient.
"""

from __future__ import annotations

import torch

from tests.parity import kind_l_tdm
from tests.parity.case import Case
from wan.attention import sparse
from wan.attention.call import AttentionCall
from wan.attention.config import AsaConfig, AttentionConfig
from wan.attention.dispatch import attend
from wan.attention.token_order import curve_order

NOT_TARGETS = ("newer_flow_", "grad_q", "grad_k", "grad_v", "sparse_branch_", "pooled_branch_", "lse_")


def run(case: Case) -> dict[str, torch.Tensor]:
    """Returns the orders of all grids, or one attention as the original computed it."""
    if "grids_width_height_depth" in case.config:
        grids = case.config["grids_width_height_depth"]
        return {f"order_{w}x{h}x{d}": torch.tensor(curve_order(w, h, d)) for w, h, d in grids}
    if "rand_q" in case.inputs:
        return attention(case)
    return kind_l_tdm.run(case)


def attention(case: Case) -> dict[str, torch.Tensor]:
    """One self-attention over [text | video] in raster order: reordered, probed, selected, read, put back."""
    config, inputs = case.config["config"], case.inputs
    block, text, pool = config["block"], config["text_tokens_first"], config["pool_gap"]
    curve = torch.tensor(curve_order(*config["grid_width_height_depth"]))
    order = torch.cat((text + curve, torch.arange(text)))
    q, k, v = (inputs[name].requires_grad_(True) for name in "qkv")  # [B, N, L, E]
    ordered = [x.transpose(1, 2)[:, order] for x in (q, k, v)]
    samples = config["samples_per_block"]
    positions = [inputs[f"rand_{name}"][:, :, 0].topk(samples, -1).indices for name in "qk"]
    knobs = AsaConfig(
        block=block, threshold=config["energy_threshold"], min=config["min_retain_ratio"], count="below", pool=pool
    )
    count = -(-len(order) // block)
    rules = sparse.block_rules([[sparse.CHOSEN] * count] * count, (knobs.min, config["max_retain_ratio"]), "cpu")
    with torch.no_grad():
        scores = sparse.sampled_scores(*ordered[:2], block, positions)
        kept = sparse.choose(scores, rules.least, rules.most, knobs)
    if text:  # the original forces the last two blocks, however long the text is
        kept[..., -2:, :] = True
        kept[..., -2:] = True
    limits = (count,) * count if text else rules.limits
    selection = sparse.Selection(kept, block, limits, False, None, pool)
    call = AttentionCall(*ordered, selection=selection)
    made = attend(call, AttentionConfig("gather"))
    out = torch.empty_like(made).index_copy(1, order, made).transpose(1, 2)
    loss = (out * inputs["loss_weight_R"]).sum() / 100
    grads = dict(
        zip(("exact_grad_q", "exact_grad_k", "exact_grad_v"), torch.autograd.grad(loss, (q, k, v)), strict=True)
    )
    pooled = {f"pooled_{name}": selection.pooled(x).transpose(1, 2) for name, x in zip("kv", ordered[1:], strict=True)}
    return {
        **{f"sampled_token_indices_{name}": places for name, places in zip("qk", positions, strict=True)},
        "pooled_attention_map": scores,
        "block_mask": kept,
        "sparsity": 1 - kept.to(out.dtype).mean() - 1 / pool,
        "out": out,
        "loss": loss,
        **pooled,
        **grads,
    }
