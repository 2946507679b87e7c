"""Kind E: training forwards over whole clips under a mask, with gradients."""

from __future__ import annotations

import torch

from tests.parity import build
from tests.parity.case import Case
from wan.attention import masks
from wan.context import Masked
from wan.denoiser import Denoiser
from wan.geometry import chunks
from wan.transformer import RunInput


def run(case: Case) -> dict[str, torch.Tensor]:
    """One masked forward, loss = 10 mean(out R), gradients of the recorded parameters."""
    config, inputs = case.config["config"], case.inputs
    model = build.transformer(config, case.weights).requires_grad_(True)
    x = inputs["x"].transpose(1, 2)
    size = config["num_frame_per_block"]
    spans = chunks(x.shape[1], size, first=1 if config["independent_first_frame"] else None)
    clean = None
    if "clean_x" in inputs:
        sigma = inputs.get("aug_t", torch.zeros_like(inputs["t"])) / 1000
        clean = RunInput(inputs["clean_x"].transpose(1, 2), sigma, "clean")
        mask = masks.teacher_forcing(spans, config["local_attn_size"])
    else:
        mask = masks.causal(spans, config["local_attn_size"])
    out = Denoiser(model)(x, inputs["t"] / 1000, build.condition(case, x.shape[0]), Masked(mask), clean)
    out = out.transpose(1, 2)
    loss = 10 * (out * inputs["loss_weight_R"]).mean()
    loss.backward()
    grads = {f"grad.{name}": p.grad for name, p in model.named_parameters()}
    return {"out": out.detach(), "loss": loss.detach(), "frame_mask": mask.frames, **grads}
