"""Kind O: CogVideoX behind the velocity by sigma: tables, forwards, both samplers, the VAE."""

from __future__ import annotations

import torch

from cogvideox.denoiser import CogVideoXDenoiser
from cogvideox.spec import CogVideoXSpec
from cogvideox.transformer import CogVideoXTransformer, rotary_table
from pipeline.rollout import guided
from pipeline.sampler import MultiStep, sample
from pipeline.solver import Solver
from tests.parity.case import Case, NotBuilt
from wan.checkpoint.weights import load_strict
from wan.condition import Condition
from wan.context import Full
from wan.schedule import vp_sigmas, vp_trailing

NOT_TARGETS = ("latent_logvar",)


def run(case: Case) -> dict[str, torch.Tensor]:
    """Returns what the original computed, by what the case holds."""
    if "video" in case.inputs:
        return vae(case)
    if "x" not in case.inputs:
        return tables(case.outputs())
    if case.config["config"].get("patch_size_t"):
        raise NotBuilt("version 1.5, whose patches hold two frames")
    return forwards(case)


def shares(snr_shift: float) -> torch.Tensor:
    """Returns the share of signal in the variance, by time."""
    sigma = vp_sigmas(snr_shift)
    return (1 - sigma).square() / ((1 - sigma).square() + sigma.square())


def tables(wanted: dict) -> dict[str, torch.Tensor]:
    """Returns the tables that are asked for, by their names."""
    found = {}
    for name in wanted:
        stem, _, value = name.rpartition("_")
        if stem == "trailing_timesteps":
            found[name] = torch.tensor(vp_trailing(int(value)))
        else:
            shift = float(value.removeprefix("snr"))
            found[name] = vp_sigmas(shift) if stem == "flow_sigma" else shares(shift)
    return found


def forwards(case: Case) -> dict[str, torch.Tensor]:
    """One forward with its face, and guided runs of the deterministic and of the stochastic sampler."""
    model, inputs, shift = case.config["config"], case.inputs, case.config["snr_shift_scale"]
    network = CogVideoXTransformer(spec_of(model, shift)).to(case.dtype).eval()
    load_strict(network, case.weights, case.name)
    denoiser = CogVideoXDenoiser(network)
    condition = Condition(inputs["text"], inputs["text_uncond"])
    x, sigma = inputs["x"], vp_sigmas(shift)[int(inputs["t"][0])].to(case.dtype)
    size = ((1 - sigma) ** 2 + sigma**2) ** -0.5
    signal, spread = (1 - sigma) * size, sigma * size
    with torch.no_grad():
        velocity = denoiser(x / size, float(sigma), condition, Full())
        v = (velocity - (spread**2 - signal**2) * x / size) / size
        found = {"v": v, "x0": signal * x - spread * v, "eps": spread * x + signal * v}
        found |= {"flow_sigma": sigma, "flow_x": x / size, "flow_velocity": velocity}
        for name, solver in (("ddim", "euler"), ("dpm", "dpm_sde")):
            found |= walk(case, denoiser, condition, name, solver)
    if network.spec.rotary:
        grid = tuple(n // model["patch_size"] for n in x.shape[-2:])
        sizes = (model["patch_size"], network.spec.sample_rows, network.spec.sample_columns)
        cos, sin = rotary_table(x.shape[1], grid, network.spec.head_dim, *sizes)
        found |= {"rotary_cos": cos, "rotary_sin": sin}
    return found


def spec_of(model: dict, snr_shift: float) -> CogVideoXSpec:
    """Returns the sizes of a recorded configuration, in our words."""
    width, patch = model["num_attention_heads"] * model["attention_head_dim"], model["patch_size"]
    return CogVideoXSpec(
        dim=width,
        ffn_dim=4 * width,
        freq_dim=width,
        in_dim=model["in_channels"],
        out_dim=model["out_channels"],
        num_heads=model["num_attention_heads"],
        num_layers=model["num_layers"],
        text_dim=model["text_embed_dim"],
        text_len=model["max_text_seq_length"],
        patch_size=(1, patch, patch),
        time_dim=model["time_embed_dim"],
        rotary=model["use_rotary_positional_embeddings"],
        sample_rows=model["sample_height"],
        sample_columns=model["sample_width"],
        sample_frames=model["sample_frames"],
        snr_shift=snr_shift,
    )


def walk(case: Case, denoiser, condition, name: str, solver: str) -> dict[str, torch.Tensor]:
    """Returns the latents after each step, of variance 1 as recorded."""
    steps, shift = case.config["steps"], case.config["snr_shift_scale"]
    sampler = MultiStep(Solver(solver, steps, shift, "trailing"), case.config["guidance_scale"])
    state, x, draws, kept = sampler.start(), case.inputs["x_T"], case.draws(), []
    predict = guided(denoiser, condition, [Full(), Full()], sampler.guidance)

    def noise(number: int) -> torch.Tensor:
        """Returns the draw of a step: of two in a middle one the original uses the second."""
        return draws[0] if number == 1 else draws[2 * number - 2]

    for k in range(steps):
        x = sampler.step(k, x, predict, noise, state)
        after = float(state.sigmas[k + 1])
        kept.append(x * ((1 - after) ** 2 + after**2) ** -0.5)
    assert torch.equal(x, sample(sampler, case.inputs["x_T"], predict, noise))
    return {f"{name}_x_after_{k}": x for k, x in enumerate(kept)}


def vae(case: Case) -> dict[str, torch.Tensor]:
    """A clip through the VAE's face and back."""
    from cogvideox.vae import CogVideoXVAE, build_vae

    model = build_vae(case.config["config"]).to(case.dtype)
    load_strict(model, case.weights, case.name)
    codec, scale = CogVideoXVAE(model.eval()), case.config["config"]["scaling_factor"]
    with torch.no_grad():
        latents = codec.encode(case.inputs["video"].transpose(1, 2))
        pixels = codec.decode(latents)
    return {"latent_mean": latents.transpose(1, 2) / scale, "decoded": pixels.transpose(1, 2)}
