"""Kind H, objectives on data: CausVid, ODE regression, diffusion and teacher forcing."""

from __future__ import annotations

import torch

from model.base import Sample
from model.config import DiscriminatorConfig, DmdConfig, FlowConfig, GanConfig, OdeConfig
from model.discriminator import Discriminator
from model.noised import generate_from_data
from tests.parity.case import Case
from tests.parity.kind_h import arguments, critic, generator, make_condition, rollout_sample, score_config
from tests.parity.kind_i import gradients
from utils.rng import Recording
from wan.generation import GenerationConfig, StepsConfig
from wan.geometry import chunks
from wan.ledger import CacheConfig
from wan.schedule import NUM_TRAIN_TIMESTEPS, Schedule, shift_sigma, step_sigmas


def get_knobs(roles, num_frames: int):
    """Returns (spans, schedule, cache, sigmas with a 0 where the recorded list has one)."""
    knobs = roles.knobs
    shift = knobs["model_kwargs"]["timestep_shift"]
    spans = chunks(num_frames, knobs["num_frame_per_block"], 1 if knobs["independent_first_frame"] else None)
    steps = knobs["denoising_step_list"]
    sigmas = [*step_sigmas([s for s in steps if s], shift, knobs["warp_denoising_step"]), *[0.0] * steps.count(0)]
    cache = CacheConfig(knobs["model_kwargs"].get("local_attn_size", -1))
    return spans, Schedule(shift, "table"), cache, torch.tensor(sigmas)


def per_chunk(index: torch.Tensor, spans) -> torch.Tensor:
    """Their draw per frame, of which the first frame of each chunk counts: one draw per chunk."""
    return index[:, [s.start for s in spans]]


def causvid_sample(case: Case, roles, with_grad: bool) -> tuple[Sample, Recording]:
    """The noised-data generation with the recorded draws."""
    clean, draws = case.inputs["clean_latent"], case.draws()
    spans, schedule, cache, sigmas = get_knobs(roles, clean.shape[1])
    count = len(sigmas)  # one draw an entry, of which a 0 needs none
    index = per_chunk(draws[count], spans).repeat_interleave(torch.tensor([len(s) for s in spans]), 1)
    where = index[None, :, :, None, None, None].expand(1, *clean.shape)
    noise = torch.stack(draws[:count]).gather(0, where)[0]
    roles.generator.transformer.requires_grad_(with_grad)
    tf = roles.knobs.get("teacher_forcing", False)
    condition = make_condition(case)
    with torch.set_grad_enabled(with_grad):
        x0 = generate_from_data(roles.generator, clean, noise, sigmas[index], condition, spans, schedule, cache, tf)
    return Sample(0, x0, condition, range(len(x0)), spans), Recording(draws[count + 1 :])


def causvid_generator(case: Case) -> dict[str, torch.Tensor]:
    roles = arguments(case)
    sample, recording = causvid_sample(case, roles, with_grad=True)
    return generator(case, DmdConfig(score_config(roles.knobs)).build(), sample, recording, roles)


def causvid_critic(case: Case) -> dict[str, torch.Tensor]:
    roles = arguments(case)
    sample, recording = causvid_sample(case, roles, with_grad=False)
    return critic(case, DmdConfig(score_config(roles.knobs)).build(), sample, recording, roles)


def ode(case: Case) -> dict[str, torch.Tensor]:
    roles, trajectory = arguments(case), case.inputs["ode_latent"]
    spans, schedule, cache, _ = get_knobs(roles, trajectory.shape[2])
    steps = tuple(s for s in roles.knobs["denoising_step_list"] if s)
    steps = StepsConfig(steps, schedule.shift, roles.knobs["warp_denoising_step"], "table")
    loss = OdeConfig().build(GenerationConfig(steps=steps, cache=cache))
    index = per_chunk(case.draws()[0], spans)
    sample = Sample(0, None, make_condition(case), range(len(trajectory)), spans, trajectory=trajectory)
    roles.generator.transformer.requires_grad_(True)
    value, _ = loss(sample, roles, Recording([index]))
    value.backward()
    with torch.no_grad():
        x, sigma = loss.noisy(sample, Recording([index]))
        x0 = loss.predict(x, sigma, sample, roles)
    return {
        "loss": value.detach(),
        "noisy_input": x,
        "pred_x0": x0,
        "log_unnormalized_loss": (x0 - trajectory[:, -1]).square().mean((1, 2, 3, 4)),
        "log_timestep": (sigma * NUM_TRAIN_TIMESTEPS).mean(1),
        **gradients(case, roles.generator.transformer, "generator"),
    }


def diffusion(case: Case) -> dict[str, torch.Tensor]:
    roles, clean = arguments(case), case.inputs["clean_latent"]
    knobs, draws = roles.knobs, case.draws()
    spans, schedule, cache, _ = get_knobs(roles, clean.shape[1])
    mode = "teacher_forcing" if knobs.get("teacher_forcing") else "diffusion_forcing"
    steps = StepsConfig(shift=schedule.shift, rounding="table")
    entries = knobs.get("noise_augmentation_max_timestep", 0)  # of their table, from its noisiest on
    augmented = (shift_sigma(1 - entries / NUM_TRAIN_TIMESTEPS, schedule.shift), 1.0) if entries else ()
    config = FlowConfig(mode, "bell", context_range=augmented if mode == "teacher_forcing" else ())
    loss = config.build(GenerationConfig(steps=steps, cache=cache))
    uniform = [per_chunk(draws[1], spans).to(clean.dtype) / NUM_TRAIN_TIMESTEPS]
    uniform += [per_chunk(draws[2], spans).to(clean.dtype) / entries] if config.context_range else []
    sample = Sample(0, clean, make_condition(case), range(len(clean)), spans)
    roles.generator.transformer.requires_grad_(True)
    recording = Recording([draws[0], *uniform])
    value, _ = loss(sample, roles, recording)
    recording.finish()
    value.backward()
    with torch.no_grad():
        recording = Recording(uniform)
        sigma = loss.draw_sigma(sample, recording)
        x, shown = schedule.diffuse(clean, draws[0], sigma), loss.clean_half(sample, recording, draws[0])
        velocity = roles.generator(x, sigma, sample.condition, loss.context(sample), shown)
    return {
        "loss": value.detach(),
        "pred_x0": schedule.velocity_to_x0(x, velocity, sigma),
        **gradients(case, roles.generator.transformer, "generator"),
    }


GAN_NAMES = {
    "_register_tokens.register_tokens": "registers",
    "_register_tokens.rms_norm.": "register_norm.",
    "_cls_pred_branch.": "classify.",
    "_gan_ca_blocks.": "readers.",
    ".cross_attn.": ".",
}


def ours(name: str) -> str:
    """Our name of a weight of their GAN head."""
    for theirs, new in GAN_NAMES.items():
        name = name.replace(theirs, new)
    return name


def gan_parts(case: Case, with_grad: bool):
    """Returns (roles with discriminator, sample with real latents, draws, objective)."""
    roles = arguments(case)
    knobs, head = roles.knobs, case.weights["gan_head"]
    layers = tuple(range(sum(n.endswith("norm3.bias") for n in head)))
    hidden, ffn_dim = head["_cls_pred_branch.1.weight"], head["_gan_ca_blocks.0.ffn.0.weight"].shape[0]
    num_class, concat = head["_cls_pred_branch.3.weight"].shape[0], hidden.shape[1] > len(layers) * hidden.shape[0]
    shape = DiscriminatorConfig(layers, ffn_dim, num_class, time_embedding=concat)
    roles.discriminator = Discriminator(roles.critic.spec, shape).to(case.dtype)
    roles.discriminator.load_state_dict({ours(n): w for n, w in head.items()})
    score = score_config({**knobs, "timestep_shift": knobs.get("critic_timestep_shift", knobs["timestep_shift"])})
    config = GanConfig(
        knobs.get("gan_g_weight", 1e-2),
        knobs.get("gan_d_weight", 1e-2),
        knobs.get("relativistic_discriminator", False),
        knobs.get("r1_weight", 0.0),
        knobs.get("r2_weight", 0.0),
        knobs.get("r1_sigma", 0.01),
        knobs.get("r2_sigma", 0.01),
        shape,
        score,
    )
    sample, recording = rollout_sample(case, roles, with_grad)
    sample.real = case.inputs["clean_latent"]
    return roles, sample, recording, config.build()


def gan_generator(case: Case) -> dict[str, torch.Tensor]:
    roles, sample, recording, loss = gan_parts(case, with_grad=True)
    roles.discriminator.requires_grad_(False)
    return generator(case, loss, sample, recording, roles)


def gan_critic(case: Case) -> dict[str, torch.Tensor]:
    roles, sample, recording, loss = gan_parts(case, with_grad=False)
    caught, judge, logits = {}, loss.critic, []

    def kept(*given):
        value, caught["metrics"] = judge(*given)
        return value, caught["metrics"]

    loss.critic = kept
    roles.discriminator.register_forward_hook(lambda module, given, out: logits.append(out.detach()))
    outputs, metrics = critic(case, loss, sample, recording, roles), caught["metrics"]
    outputs |= {"gan_D_loss": metrics["gan"], "r1_loss": metrics["r1"], "r2_loss": metrics["r2"]}
    outputs["noisy_fake_logit"], outputs["noisy_real_logit"] = logits[0].chunk(2)  # the penalties' come later
    grads = {n: p.grad for n, p in roles.discriminator.named_parameters()}
    prefix = "grad_fake_score_head."
    named = {n: grads[ours(n.removeprefix(prefix))] for n in case.outputs() if n.startswith(prefix)}
    return outputs | named


OBJECTIVES = {
    ("GAN", "generator_loss"): gan_generator,
    ("GAN", "critic_loss"): gan_critic,
    ("CausVid", "generator_loss"): causvid_generator,
    ("CausVid", "critic_loss"): causvid_critic,
    ("ODERegression", "generator_loss"): ode,
    ("CausalDiffusion", "generator_loss"): diffusion,
}
