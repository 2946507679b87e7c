"""Kind L, trajectory distribution matching: grids, one path and the updates of critic and generator on it.

Both families run through `model.tdm` in flow coordinates; latents of the VP family are recorded A + S times as large.
The originals look a time up in their scheduler's table: one that is absent there finds its last entry, one that occurs
twice the second. Their path leads to the next start, their losses to the interval's end, one index further.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch

from model.base import Interval, Sample
from model.config import TdmConfig
from model.score import guided_x0, per_sample_scale
from model.tdm import LARGEST_SCALE, TdmLoss
from pipeline.sampler import FewStep, KeptSteps, sample
from tests.parity import build
from tests.parity.case import Case, NotATarget
from tests.parity.kind_i import gradients
from utils.rng import Recording
from wan.condition import Condition
from wan.context import Full
from wan.denoiser import Denoiser
from wan.generation import GenerationConfig, StepsConfig
from wan.schedule import NUM_TRAIN_TIMESTEPS as TOP
from wan.schedule import Schedule, shift_sigma

ROLES = {"student": "generator", "real": "teacher", "fake": "critic"}


def run(case: Case) -> dict[str, torch.Tensor]:
    """Returns the tables, or the path, both losses and their gradients."""
    return tables(case.config["config"]) if isinstance(case.config["config"]["K"], list) else updates(case)


def start_times(count: int) -> np.ndarray:
    """The times of a student's steps, ascending; each ends where the one below it starts, one index further."""
    return np.arange(1, count + 1) * (TOP // count) - 1


def flow_table(shift: float, count: int = TOP) -> tuple[np.ndarray, np.ndarray]:
    """(times, sigmas and a last 0) of the flow scheduler set to so many steps, as of diffusers 0.34."""
    sigmas = np.flip(shift_sigma(1 - np.linspace(1, 1 / TOP, count + 1), shift))[:-1]
    return (sigmas * TOP).astype(np.int64), np.append(sigmas, 0).astype(np.float32)


def look_up(times: np.ndarray, wanted) -> np.ndarray:
    """Index of the second entry of a time, of the only one, or of the last entry of all where there is none."""
    found = [np.nonzero(times == time)[0] for time in np.asarray(wanted)]
    return np.array([len(times) - 1 if not len(f) else f[min(1, len(f) - 1)] for f in found])


def alphas_cumprod(snr_shift: float) -> torch.Tensor:
    """The VP family's cumulative alphas: scaled-linear betas, shifted, of zero terminal signal; float64 [1000]."""
    from diffusers import CogVideoXDPMScheduler

    knobs = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    knobs |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "snr_shift_scale": snr_shift}
    return CogVideoXDPMScheduler(**knobs).alphas_cumprod.double()


def tables(config: dict) -> dict[str, torch.Tensor]:
    """Times, tables and the grids of generation."""
    times, sigmas = flow_table(config["flow_shift"])
    index, count = look_up(times, range(-1, TOP)), config["inference_steps"]
    found = {"flow_table_timesteps": times, "flow_table_sigmas": sigmas}
    found |= {"flow_lookup_index_for_t_minus1_to_999": index, "flow_lookup_sigma_for_t_minus1_to_999": sigmas[index]}
    few_times, few_sigmas = flow_table(config["flow_shift"], count)
    found |= {"flow_inference_timesteps": few_times, "flow_inference_sigmas": few_sigmas}
    found |= {"vp_inference_timesteps": np.round(np.arange(TOP, 0, -TOP / count)) - 1}
    for number in config["K"]:
        found[f"K{number}_start_times"] = start_times(number)
        found[f"K{number}_end_times"] = start_times(number) - TOP // number + 1
    return {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in found.items()} | {
        "vp_alphas_cumprod": alphas_cumprod(config["snr_shift_scale"])
    }


@dataclass
class Family:
    """What is a family's own: sigma and size of latents at integer times, networks, the losses' knobs."""

    sigma: torch.Tensor  # [1000], of our clock
    size: torch.Tensor  # [1000], of the recorded latents in ours
    networks: SimpleNamespace
    frames_first: bool
    knobs: dict
    floor: float = 0.0

    def ours(self, x: torch.Tensor) -> torch.Tensor:
        """Returns recorded latents, or draws, with frames before channels."""
        return x if self.frames_first else x.transpose(1, 2)

    def recorded(self, x: torch.Tensor, times: torch.Tensor | None = None) -> torch.Tensor:
        """Returns ours as recorded: of the family's size at these times (clean, or pure noise: 1), in its layout."""
        x = x if times is None else x * self.size[times][:, None, None, None, None]
        return self.ours(x)


class Told:
    """A network that is told integer times, which a looked-up sigma does not say: `at(times)` before each call."""

    def __init__(self, module, forward):
        self.module, self.forward, self.times = module, forward, None

    def at(self, times) -> Told:
        self.times = times
        return self

    def __call__(self, x, sigma, condition, context):
        return self.forward(self.module, x, sigma, condition, self.times)


def wan(case: Case) -> Family:
    """Wan, its sigmas looked up."""
    config = case.config["config"]
    times, sigmas = flow_table(config["flow_shift"])
    sigma = torch.from_numpy(sigmas[look_up(times, range(TOP))]).to(case.dtype)

    def forward(module, x, sigma, condition, times):
        return Denoiser(module)(x, times.to(x) / TOP, condition, Full())

    networks = {ROLES[role]: Told(build.transformer(config["model"], w), forward) for role, w in case.weights.items()}
    return Family(sigma, torch.ones_like(sigma), SimpleNamespace(**networks), False, {}, floor=1e-8)


def cogvideox(case: Case) -> Family:
    """CogVideoX by the library's class, turned into a velocity field in flow coordinates."""
    from diffusers import CogVideoXTransformer3DModel

    config = case.config["config"]
    alphas = alphas_cumprod(config["snr_shift_scale"]).to(case.dtype)
    signal, spread = alphas.sqrt(), (1 - alphas).sqrt()
    size = signal + spread
    sigma = spread / size

    def forward(module, x, sigma, condition, times):
        a, s, whole = (t[times][:, None, None, None, None] for t in (signal, spread, size))
        model, seen = module.config, x * whole
        grid = [x.shape[1], *(n // model.patch_size for n in x.shape[-2:])]
        rotary = rotary_tables(grid, model.attention_head_dim, x.dtype)
        (v,) = module(seen, condition.text, times.to(x), image_rotary_emb=rotary, return_dict=False)
        return (x - (a * seen - s * v)) / (s / whole)

    def load(weights):
        module = torch.nn.Module.to(CogVideoXTransformer3DModel(**config["model"]), case.dtype)
        module.load_state_dict(weights)
        return module.eval().requires_grad_(False)

    networks = {ROLES[role]: Told(load(weights), forward) for role, weights in case.weights.items()}
    elements = case.config["config"]["latent_shape"][1:]
    huber = case.config["measured"]["huber_c"] / float(np.prod(elements)) ** 0.5
    knobs = {"critic_weight": "vp", "normalise": True, "huber": huber}
    return Family(sigma, size, SimpleNamespace(**networks), True, knobs)


def rotary_tables(grid, width: int, dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin) [tokens, width] of frames, rows and columns at integer positions, in neighbouring pairs; in fp32."""
    sides = [width // 4, width // 8 * 3, width // 8 * 3]
    angles = []
    for positions, side in zip(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), sides, strict=True):
        frequencies = 1 / 10000 ** (torch.arange(0, side, 2, dtype=torch.float32) / side)
        angles.append((positions.flatten()[:, None] * frequencies).repeat_interleave(2, 1))
    whole = torch.cat(angles, 1)
    return whole.cos().to(dtype), whole.sin().to(dtype)


class RecordedTdm(TdmLoss):
    """The losses at recorded times, which their networks are told."""

    def bind(self, family: Family, times: torch.Tensor) -> RecordedTdm:
        """Takes the times of this update."""
        self.floor, self.family, self.times = family.floor, family, times
        for network in (family.networks.teacher, family.networks.critic):
            network.at(times)
        return self

    def draw_sigma(self, sample, rng, name):
        return self.family.sigma[self.times]


def updates(case: Case) -> dict[str, torch.Tensor]:
    """The path of the student, the critic's update and the generator's."""
    if case.config["measured"]["skipped_fake_backward"]:
        raise NotATarget("a critic's loss above 2 is skipped, by one rank alone; ours is never")
    config = case.config["config"]
    family = (wan if "flow_shift" in config else cogvideox)(case)
    starts = torch.from_numpy(start_times(config["K"]))
    condition = Condition(*(padded(case, name) for name in ("prompt_embeds", "uncond_prompt_embeds")))
    draws = {name: case.draws()[slice(*place)] for name, place in case.config["measured"]["draws"].items()}
    path, final = walk(family, config, starts, condition, [family.ours(d) for d in draws["rollout"] if d.ndim == 5])
    found = {
        "rollout_x_at_start_time": torch.stack(
            [family.recorded(x, t.expand(len(x))) for (x, _), t in zip(path, starts, strict=True)]
        ),
        "rollout_final_x0": family.recorded(final),
    }
    steps = StepsConfig(tuple(range(config["K"], 0, -1)), eta=config["eta"])
    knobs = TdmConfig(guidance=config["cfg"], regulariser=config["lambda_reg"], **family.knobs)
    for phase, update in (("fake", critic), ("generator", generator)):
        interval, *times = [d for d in draws[phase] if d.ndim == 1]
        *_, mix, noise = [family.ours(d) for d in draws[phase] if d.ndim == 5 and d[0].numel() > 1]
        loss = RecordedTdm(knobs, GenerationConfig(steps=steps)).bind(family, torch.cat(times))
        x, x0 = (torch.stack([path[k - 1][part][row] for row, k in enumerate(interval)]) for part in (0, 1))
        start, end = starts[interval - 1], starts[interval - 1] - TOP // config["K"] + 1
        step = Interval(x, family.sigma[start], family.sigma[end])
        taken = Sample(0, x0, condition, range(len(x)), interval=step)
        found |= update(case, family, loss, taken, [mix, noise], start, end)
        name = phase if phase == "fake" else "gen"
        found |= {f"{name}_interval": interval, f"{name}_t": loss.times}
    return found


def padded(case: Case, name: str) -> torch.Tensor:
    """Returns recorded embeddings, padded with zeros to the text length of a model that asks for it."""
    text = case.inputs[name]
    room = case.config["config"]["model"].get("text_len", text.shape[1])
    return torch.nn.functional.pad(text, (0, 0, 0, room - text.shape[1]))


def walk(family: Family, config: dict, starts, condition: Condition, draws) -> tuple[list, torch.Tensor]:
    """Returns (x and x0 of each step, ascending in time; the last x0) of the student's path."""
    few = FewStep(family.sigma[starts].flip(0).tolist(), Schedule(), eta=config["eta"])
    kept, times = KeptSteps(few), iter(starts.flip(0))

    dtype = draws[0].dtype

    def predict(x, sigma):
        told, narrow = family.networks.generator.at(next(times).expand(len(x))), x.to(dtype)
        return told(narrow, torch.full((len(x),), sigma, dtype=dtype), condition, Full()).double()

    with (
        torch.no_grad()
    ):  # steps in float64: at the sigma of an absent time, .003, noise of x0 is 300 times its rounding
        final = sample(kept, draws[0].double(), predict, lambda k: draws[k].double())
    path = [kept.kept(k) for k in reversed(range(config["K"]))]
    return [(x.to(dtype), x0.to(dtype)) for x, x0 in path], final.to(dtype)


def critic(case: Case, family: Family, loss: RecordedTdm, taken: Sample, draws, start, end) -> dict[str, torch.Tensor]:
    """The critic's update, with what it saw."""
    weights, networks = loss.config, family.networks
    networks.critic.module.requires_grad_(True)
    recording = Recording(draws)
    value, _ = loss.critic(taken, networks, recording)
    recording.finish()
    value.backward()
    clock, step = loss.clock, taken.interval
    noise = clock.noise_of(step.x, taken.latents, step.start, 1.0, None)
    mixed = clock.noise_of(step.x, taken.latents, step.start, loss.steps.eta, lambda: draws[0])
    found = {
        "fake_student_x0": family.recorded(taken.latents),
        "fake_student_eps": family.recorded(noise),
        "fake_x_end": family.recorded(clock.diffuse(taken.latents, mixed, step.end), end),
    }
    with torch.no_grad():
        x_t, t = loss.noised(taken, Recording(draws), "critic")
        fake = guided_x0(clock, networks.critic, x_t, t, taken.condition)
        real = guided_x0(clock, networks.teacher, x_t, t, taken.condition)
    found |= {"fake_x_t": family.recorded(x_t, loss.times), "fake_pred_x0": family.recorded(fake)}
    weight = (1 if weights.critic_weight == "flow" else (1 - t) ** 2 + t**2) / t**2
    apart = (weight * (fake - real).square().mean((1, 2, 3, 4))).mean()
    found |= {"loss_fake": value.detach() - weights.regulariser * apart, "loss_fake_reg": apart}
    return found | gradients(case, networks.critic.module, "fake")


def generator(case: Case, family: Family, loss: RecordedTdm, taken, draws, start, end) -> dict[str, torch.Tensor]:
    """The generator's update: one call of the student with gradient at the recorded state."""
    networks, step = family.networks, taken.interval
    networks.generator.module.requires_grad_(True)
    velocity = networks.generator.at(start)(step.x, step.start, taken.condition, Full())
    x0 = loss.clock.velocity_to_x0(step.x, velocity, step.start)
    recording = Recording(draws)
    value, _ = loss(replace(taken, latents=x0), networks, recording)
    recording.finish()
    value.backward()
    with torch.no_grad():
        x_t, t = loss.noised(replace(taken, latents=x0.detach()), Recording(draws), "generator")
        real = guided_x0(loss.clock, networks.teacher, x_t, t, taken.condition, loss.config.guidance)
        fake = guided_x0(loss.clock, networks.critic, x_t, t, taken.condition)
    scale = per_sample_scale(x0.detach() - real).clamp(max=LARGEST_SCALE)
    return {
        "gen_student_x0": family.recorded(x0.detach()),
        "gen_x_t": family.recorded(x_t, loss.times),
        "gen_real_x0": family.recorded(real),
        "gen_fake_x0": family.recorded(fake),
        "gen_weighting_factor": scale.flatten(),
        "loss_generator": value.detach(),
        **gradients(case, networks.generator.module, "student"),
    }
