"""Kind H: the objectives, from recorded rollouts and draws to losses and gradients."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from model.base import Sample
from model.config import DmdConfig, ScoreConfig, SidConfig
from pipeline.executor import PlainExecutor
from pipeline.track import Fixed
from tests.parity import build
from tests.parity.case import Case, NotBuilt
from tests.parity.kind_i import TrainingDraws, exits, get_cache, graded_frames, gradients, make_rollout
from trainer.sources.window import loss_window
from utils.rng import Recording
from wan.condition import Condition
from wan.denoiser import Denoiser
from wan.geometry import Geometry, chunks
from wan.schedule import NUM_TRAIN_TIMESTEPS

SCORE_SHIFT = 8.0  # their score networks keep the default table


class StubVae:
    """The VAE of the recordings: 3 latent channels are the picture."""

    def decode(self, latents):
        return latents[:, :, :3].clamp(-1, 1)

    def last_frame(self, latents):
        return self.decode(latents)[:, -1:]

    def encode(self, pixels):
        return pixels.repeat(1, 1, 6, 1, 1)[:, :, :16]


def run(case: Case) -> dict[str, torch.Tensor]:
    """The objective by the recorded class and method."""
    what, method = case.config["reference"].split()[2].split(".")[:2]
    from tests.parity import kind_h_data

    objectives = OBJECTIVES | kind_h_data.OBJECTIVES
    if (what, method) not in objectives:
        raise NotBuilt(f"objective {what}.{method}")
    return objectives[what, method](case)


def arguments(case: Case) -> SimpleNamespace:
    """The recorded arguments and networks."""
    config = next(v for k, v in case.config["config"].items() if k.startswith("model"))
    networks = {
        name: Denoiser(build.transformer(config, case.weights[role]))
        for name, role in (("generator", "generator"), ("teacher", "real_score"), ("critic", "fake_score"))
        if role in case.weights
    }
    return SimpleNamespace(knobs=case.config["config"]["args"], **networks)


def make_condition(case: Case) -> Condition:
    """The recorded embeddings."""
    return Condition(case.inputs["prompt_embeds_cond"], case.inputs["prompt_embeds_uncond"])


def score_config(knobs: dict) -> ScoreConfig:
    """Their knobs in our convention: `cond + s (cond - uncond)` is our w = s + 1."""
    real = knobs.get("real_guidance_scale", knobs["guidance_scale"])
    return ScoreConfig(
        real_guidance=1 + real,
        fake_guidance=1 + knobs.get("fake_guidance_scale", 0.0),
        shift=knobs["timestep_shift"],
        first=knobs.get("min_score_timestep", 0),
        from_exit=knobs.get("ts_schedule", True),
        to_exit=knobs.get("ts_schedule_max", False),
        rounding="table",
        noise_shift=knobs["model_kwargs"]["timestep_shift"],
        score_shift=SCORE_SHIFT,
    )


def rollout_sample(case: Case, roles, with_grad: bool) -> tuple[Sample, Recording]:
    """Runs the recorded rollout; returns the scored sample and the draws that are left."""
    knobs, draws = roles.knobs, case.draws()
    start, size, spans = draws[1], knobs["num_frame_per_block"], None
    roles.generator.transformer.requires_grad_(with_grad).checkpointing = True
    spans = chunks(start.shape[1], size, 1 if knobs["independent_first_frame"] else None)
    steps = [s for s in knobs["denoising_step_list"] if s]
    exit_step = exits(draws[2], spans, len(steps), knobs["same_step_across_blocks"], knobs["last_step_only"])
    kwargs, graded = knobs["model_kwargs"], graded_frames(knobs)
    rollout = make_rollout(
        roles.generator,
        steps,
        knobs["warp_denoising_step"],
        kwargs["timestep_shift"],
        Geometry(start.shape[3] * 8, start.shape[4] * 8),
        get_cache(kwargs),
        exit_step,
        start.shape[1],
        start.dtype,
        knobs.get("context_noise", 0),
        graded,
    )
    recording = Recording(draws[3:], reshape=True)
    noise, condition = TrainingDraws(start, 0, recording), make_condition(case)
    with torch.set_grad_enabled(with_grad):
        state = rollout.start(start.shape[0], max(map(len, spans)), spans[-1].stop)
        made = [c.latents for c in PlainExecutor(rollout).run(state, Fixed(condition), spans, noise)]
    latents, mask = loss_window(torch.cat(made, 1), graded, StubVae(), len(spans[0]))
    exit_range = None
    if knobs["same_step_across_blocks"]:
        last = exit_step(spans[0])
        exit_range = (int(steps[last]), int(steps[last + 1]) if last + 1 < len(steps) else 0)
    return Sample(0, latents, condition, range(len(latents)), spans, (), mask, exit_range), recording


def generator(case: Case, loss, sample: Sample, recording, roles, gradient_of="generator") -> dict[str, torch.Tensor]:
    """Loss and gradients of the generator."""
    caught, draw = {}, loss.score.draw_sigma

    def drawn(*given):
        caught["sigma"] = draw(*given)
        return caught["sigma"]

    loss.score.draw_sigma = drawn
    if hasattr(loss, "direction"):
        direction = loss.direction

        def kept(*given):
            caught["direction"] = direction(*given)
            return caught["direction"]

        loss.direction = kept
    value, metrics = loss(sample, roles, recording)
    value.backward()
    recording.finish()
    outputs = {
        "loss": value.detach(),
        "pred_latent": sample.latents.detach(),
        "log_timestep": caught["sigma"] * NUM_TRAIN_TIMESTEPS,
        **gradients(case, roles.generator.transformer, "generator"),
    }
    if "direction" in caught:
        outputs["kl_grad"] = caught["direction"][0]
        outputs["log_dmdtrain_gradient_norm"] = metrics["dmd_gradient"]
    else:
        outputs["log_dmdtrain_gradient_norm"] = torch.zeros(())
    if sample.frame_mask is not None:
        outputs["gradient_mask"] = sample.frame_mask[None, :, None, None, None].expand_as(sample.latents)
    return outputs


def critic(case: Case, loss, sample: Sample, recording, roles) -> dict[str, torch.Tensor]:
    """Loss and gradients of the critic."""
    roles.critic.transformer.requires_grad_(True)
    caught, draw = {}, loss.score.draw_sigma

    def drawn(*given):
        caught["sigma"] = draw(*given)
        return caught["sigma"]

    loss.score.draw_sigma = drawn
    value, _ = loss.critic(sample, roles, recording)
    value.backward()
    recording.finish()
    return {
        "loss": value.detach(),
        "pred_latent": sample.latents,
        "log_critic_timestep": caught["sigma"] * NUM_TRAIN_TIMESTEPS,
        **gradients(case, roles.critic.transformer, "fake_score"),
    }


def dmd_generator(case: Case) -> dict[str, torch.Tensor]:
    roles = arguments(case)
    sample, recording = rollout_sample(case, roles, with_grad=True)
    return generator(case, DmdConfig(score_config(roles.knobs)).build(), sample, recording, roles)


def sid_generator(case: Case) -> dict[str, torch.Tensor]:
    roles = arguments(case)
    sample, recording = rollout_sample(case, roles, with_grad=True)
    loss = SidConfig(roles.knobs.get("sid_alpha", 1.0), score_config(roles.knobs)).build()
    return generator(case, loss, sample, recording, roles)


def score_critic(case: Case) -> dict[str, torch.Tensor]:
    roles = arguments(case)
    sample, recording = rollout_sample(case, roles, with_grad=False)
    return critic(case, DmdConfig(score_config(roles.knobs)).build(), sample, recording, roles)


OBJECTIVES = {
    ("DMD", "generator_loss"): dmd_generator,
    ("DMD", "critic_loss"): score_critic,
    ("SiD", "generator_loss"): sid_generator,
    ("SiD", "critic_loss"): score_critic,
}
