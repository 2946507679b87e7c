"""The clip loop of kind M: chunks by our rollout; decoding clip by clip, motion encoded again, as the ancestor does it.

That decoding is not ours (the product decodes a stream), so it is written here: it checks latents, portrait and refresh
by the recorded pixels.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline.executor import PlainExecutor
from pipeline.track import Fixed
from tests.parity import build
from tests.parity.case import Case
from wan.condition import Condition
from wan.denoiser import Denoiser
from wan.geometry import Span

STILL = 5  # frames that the reference is repeated to; its second latent is the reference latent
IN_LATENT = (0.1, 0.2, 0.3, 0.4)  # the stub's weights of the four frames of a latent
BETWEEN = (0.25, 0.5, 0.75, 1.0)


class StubVae:
    """The recording's stand-in for the VAE, on pictures of one pixel a cell: [1, C, T, h, w]."""

    def __init__(self, case: Case):
        self.into, self.out = case.inputs["vae_stub_encode_matrix"], case.inputs["vae_stub_decode_matrix"]

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        first, rest = video[:, :, :1], video[:, :, 1:].unflatten(2, (-1, len(IN_LATENT)))
        mixed = torch.einsum("bctghw,g->bcthw", rest, torch.tensor(IN_LATENT, dtype=video.dtype))
        return torch.einsum("dc,bcthw->bdthw", self.into, torch.cat((first, mixed), 2))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        seen = torch.tanh(torch.einsum("dc,bcthw->bdthw", self.out, latents))
        before, after = seen[:, :, :-1], seen[:, :, 1:]
        frames = torch.stack([before + w * (after - before) for w in BETWEEN], 3).flatten(2, 3)
        return torch.cat((seen[:, :, :1], frames), 2)


@torch.no_grad()
def run_generate(case: Case, rollout) -> dict[str, torch.Tensor]:
    """rollout: makes ours from (denoiser, setup, draws, size, window)."""
    setup, inputs, vae = case.config["setup"], case.inputs, StubVae(case)
    model = build.s2v_transformer(case.config["config"], case.weights)
    clip = setup["infer_frames"] // 4
    executor = PlainExecutor(rollout(Denoiser(model), setup, inputs["d_draws"], tuple(setup["pixel_hw"]), clip))
    still = inputs["ref_image"].repeat(1, 1, STILL, 1, 1)
    pixels = still.repeat(1, 1, setup["motion_frames"], 1, 1)  # what the ancestor takes the motion from
    reference, motion = vae.encode(still)[:, :, 1:2], vae.encode(pixels)
    outputs = {"ref_latents": reference, "motion_latents_last19": motion[:, :, -19:]}
    condition = Condition(
        build.padded(inputs["context"], model.spec.text_len)[None],
        audio=build.features(inputs["audio_emb"]),
        reference=build.frames(reference),
        motion=build.frames(motion),
        audio_chunk=setup["frames_per_block"],
    )
    state, videos = executor.rollout.start(1, setup["frames_per_block"], None), []
    for number in range(setup["clips"]):
        if setup["pose"]:
            pose = pose_latents(case, vae, number)
            outputs[f"pose_latent_clip{number}"] = pose
            earlier = build.frames(pose.new_zeros(*pose.shape[:2], number * clip, *pose.shape[3:]))
            condition = replace(condition, pose=torch.cat((earlier, build.frames(pose)), 1))
        noise, first = build.frames(inputs[f"clip_noise_{number}"]), number * clip
        made = []
        for start in range(first, first + clip, setup["frames_per_block"]):
            span = Span(start, start + setup["frames_per_block"])
            own = noise[:, start - first : start - first + len(span)]
            made.append(executor.generate_chunk(state, Fixed(condition), span, lambda span, k, own=own: own).latents)
        latents = torch.cat(made, 1)
        outputs[f"clip_latents_{number}"] = latents[0].transpose(0, 1)
        decoded = vae.decode(torch.cat((motion, latents.transpose(1, 2)), 2))[:, :, -setup["infer_frames"] :]
        frames = decoded if number else decoded[:, :, 3:]
        videos.append(frames)
        pixels = torch.cat((pixels, frames), 2)[:, :, frames.shape[2] :]
        motion = vae.encode(pixels)
        if number == 0 and setup["online_decode"]:
            outputs |= {"ref_latents_after_clip0": latents[:, :1].transpose(1, 2)}
            outputs |= {"motion_latents_after_clip0_last19": motion[:, :, -19:]}
            refreshed = {"reference": latents[:, :1], "motion": build.frames(motion)}
            condition = replace(condition, portrait_key="refreshed", **refreshed)
    return outputs | {"video_every_8th_pixel": torch.cat(videos, 2)[0]}


def pose_latents(case: Case, vae: StubVae, number: int) -> torch.Tensor:
    """The latents of one clip's pose, behind a copy of its first frame."""
    name = next(name for name in case.inputs if name.startswith("pose"))
    length = case.config["setup"]["infer_frames"]
    video = case.inputs[name][:, :, number * length : (number + 1) * length]
    return vae.encode(torch.cat((video[:, :, :1], video), 2)[:, :, : length + 1])[:, :, 1:]
