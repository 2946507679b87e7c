"""Kind K: the bidirectional S2V transformer, with and without motion frames."""

from __future__ import annotations

import torch

from tests.parity import build
from tests.parity.case import Case
from wan.condition import Condition
from wan.context import Full
from wan.denoiser import Denoiser

ZEROED = {0: 3, 1: 1, 2: 0}  # newest motion latents, by the ancestor's `add_last_motion`


def run(case: Case) -> dict[str, torch.Tensor]:
    """One forward for each of the recorded calls."""
    inputs, outputs = case.inputs, {}
    model = build.s2v_transformer(case.config["config"], case.weights)
    x = build.frames(inputs["x"])
    whole = Condition(
        build.padded(inputs["context"], model.spec.text_len)[None],
        reference=build.frames(inputs["ref_latent"]),
        motion=build.frames(inputs["motion_latent"]),
        audio=build.features(inputs["audio_input"]),
        pose=build.frames(inputs["cond_state"]),
    )
    with torch.no_grad():
        tokens, spoken = model.casual_audio_encoder(whole.hear(range(x.shape[1])))
        outputs |= {"audio_tokens": tokens[:, 0], "audio_global": spoken[:, 0, :, None]}
        for number, call in enumerate(case.config["call_variants"]):
            condition = variant(whole, call)
            velocity = Denoiser(model)(x, float(inputs["t"]) / 1000, condition, Full())
            outputs[f"out_{number}"] = velocity[0].transpose(0, 1)
    return outputs


def variant(whole: Condition, call: dict) -> Condition:
    """The condition as one call sees it: without motion, or with its newest latents zeroed."""
    values = {name: getattr(whole, name) for name in ("text", "reference", "audio", "pose")}
    if call["drop_motion_frames"]:
        return Condition(**values)
    motion = whole.motion.clone()
    motion[:, motion.shape[1] - ZEROED[int(call["add_last_motion"])] :] = 0
    return Condition(**values, motion=motion)
