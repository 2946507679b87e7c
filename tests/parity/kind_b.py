"""Kind B: one bidirectional forward per sample."""

from __future__ import annotations

import functools

import torch

from tests.parity import build
from tests.parity.case import Case
from wan.condition import Condition
from wan.context import Full
from wan.denoiser import Denoiser

UPSTREAM_TEXT_TOKENS = 512  # upstream cuts the joined [image | text] sequence here, whatever text_len is


def run(case: Case) -> dict[str, torch.Tensor]:
    """Runs each sample alone: padding plus key mask gives the same numbers."""
    denoiser = Denoiser(build.transformer(case.config["config"], case.weights))
    if "clip_fea" in case.inputs:
        for block in denoiser.transformer.blocks:
            block.cross_attn.project = functools.partial(_project_as_recorded, block.cross_attn.project)
    outputs = {}
    for i in range(sum(k.startswith("x_") for k in case.inputs)):
        x = case.inputs[f"x_{i}"].transpose(0, 1)[None]
        sigma = case.inputs["t"][i : i + 1] / 1000
        if sigma.ndim == 2:  # one time per token, constant within a frame
            per_frame = x.shape[3] * x.shape[4] // 4
            sigma = sigma[:, : per_frame * x.shape[1]].reshape(1, x.shape[1], per_frame)[..., 0]
        y, clip = case.inputs.get(f"y_{i}"), case.inputs.get("clip_fea")
        condition = Condition(
            case.inputs[f"context_{i}"][None],
            image=None if clip is None else clip[i : i + 1],
            channels=None if y is None else y.transpose(0, 1)[None],
        )
        with torch.no_grad():
            outputs[f"out_{i}"] = denoiser(x, sigma, condition, Full())[0].transpose(0, 1)
    return outputs


def _project_as_recorded(project, text_BTD, image_BTD):
    """With text_len 512 the cut falls between image and text; at these sizes it falls inside the image."""
    joined = torch.cat((image_BTD, text_BTD), 1)
    cut = joined.shape[1] - UPSTREAM_TEXT_TOKENS  # negative here: counted from the end
    return project(joined[:, cut:], joined[:, :cut])
