"""Kinds C and D: cached forwards call by call on one persistent cache, any window policy."""

from __future__ import annotations

import torch

from tests.parity import build
from tests.parity.case import Case
from wan.context import Cached
from wan.denoiser import Denoiser
from wan.geometry import Span
from wan.ledger import CacheConfig


def run(case: Case) -> dict[str, torch.Tensor]:
    """A chunk's last call is its committing pass."""
    config, calls = case.config["config"], case.config["calls"]
    model = build.transformer(config, case.weights)
    denoiser = Denoiser(model)
    batch = case.inputs["x_call_00"].shape[0]
    rope = "read" if "infinity" in case.config["reference"] else "write"
    knobs = CacheConfig(config.get("local_attn_size", -1), config.get("sink_size", 0), rope)
    chunk = max(c["num_frames"] for c in calls)
    cache = build.ring(
        model, knobs, chunk, batch, case.config["tokens_per_frame"], case.config["kv_cache_capacity_frames"]
    )
    condition, outputs = build.condition(case, batch), {}
    wanted = case.outputs()
    for number, call in enumerate(calls):
        span = Span(call["start_frame"], call["start_frame"] + call["num_frames"])
        context = Cached(cache, span)
        x = case.inputs[f"x_call_{number:02d}"].transpose(1, 2)
        sigma = case.inputs[f"t_call_{number:02d}"] / 1000
        with torch.no_grad():
            out = denoiser(x, sigma, condition, context)
            outputs[f"out_call_{number:02d}"] = out.transpose(1, 2)
            last = number + 1 == len(calls)
            for store, stem in ((cache.keys, "k"), (cache.values, "v")):
                names = (f"cache_{stem}_layer0_after_call_{number:02d}", f"final_cache_{stem}_layer0")
                for name in names:
                    if name in wanted and (name != names[1] or last):
                        outputs[name] = in_time_order(cache, store, context.plan, wanted[name].shape[1])
            if last or calls[number + 1]["start_frame"] != call["start_frame"]:
                context.commit()
    return outputs


def in_time_order(cache, store, plan, num_tokens: int) -> torch.Tensor:
    """Layer 0 of a pass's view as the ancestor's slots have it: kept frames, then its own, then zeros."""
    unit, chunk = cache.shape.frame_tokens, cache.ledger.chunk_frames
    kept = [store[0][:, (chunk + s) * unit : (chunk + s + 1) * unit] for s in plan.slots]
    own = store[0][:, (chunk - len(plan.span)) * unit : chunk * unit]
    seen = torch.cat([*kept, own], 1)
    padding = seen.new_zeros(seen.shape[0], max(0, num_tokens - seen.shape[1]), *seen.shape[2:])
    return torch.cat((seen, padding), 1)
