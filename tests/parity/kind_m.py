"""Kind M: Live-Avatar's causal S2V: its steps, motion packing, audio encoder, streaming, clip loop and LoRA."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.executor import PlainExecutor
from pipeline.rollout import Rollout
from pipeline.sampler import MultiStep
from pipeline.solver import Solver
from pipeline.track import Track
from tests.parity import build
from tests.parity.case import Case
from tests.parity.kind_m_clips import run_generate
from wan.audio.encoder import AudioEncoder
from wan.audio.motion import FramePacker, buckets, last_motion, motion_runs
from wan.checkpoint.lora import merge_lora, read_lora
from wan.condition import Condition
from wan.denoiser import Denoiser
from wan.geometry import Geometry, Span
from wan.ledger import CacheConfig
from wan.rope import RotaryTable
from wan.spec import S2VSpec
from wan.tokens import TokenLayout
from wan.transformer import WanTransformer

ZEROED = {0: 3, 1: 1, 2: 0}  # newest motion latents, by the ancestor's `add_last_motion`


def run(case: Case) -> dict[str, torch.Tensor]:
    """By what the recording has: each part of the system was recorded on its own."""
    if "x" in case.inputs and not case.weights:
        return run_euler(case)
    if "variants_dropmode_addlastmotion_shift" in case.config:
        return run_framepack(case)
    if "wav2vec_hidden_states_50hz" in case.inputs:
        return run_audio(case)
    if "lora_rank" in case.config["config"]:
        return run_lora(case)
    if "ref_image" in case.inputs:
        return run_generate(case, rollout)
    return run_stream(case)


def run_euler(case: Case) -> dict[str, torch.Tensor]:
    """Sigmas, times and one step for each number of steps that the recording holds."""
    outputs = {}
    for name in [name for name in case.outputs() if name.startswith("sigmas_")]:
        steps = int(name.split("_")[1])
        state = Solver("euler", steps, 3.0, "table").start()
        outputs[name] = state.sigmas
        outputs[f"timesteps_{steps}"] = torch.tensor(state.model_sigmas, dtype=torch.float64) * 1000
        outputs[f"step0_{steps}"] = state.step(case.inputs["v"], 0, case.inputs["x"])
    return outputs


def run_framepack(case: Case) -> dict[str, torch.Tensor]:
    """Tokens of motion latents and their rotary factors, with the recorded options."""
    config, outputs = case.config["config"], {}
    spec = S2VSpec(dim=config["dim"], num_heads=config["num_heads"], num_layers=1, audio_inject_layers=(0,))
    packer = FramePacker(spec).to(case.dtype)
    packer.load_state_dict(case.weights)
    embed, rotary = WanTransformer.embed_by, RotaryTable(spec.head_dim)
    for number, (mode, last, shift) in enumerate(case.config["variants_dropmode_addlastmotion_shift"]):
        held = slice(0, 3) if mode == "padd" else slice({2: 0, 1: 1, 0: 2}[last], 3)  # the older groups stay
        for name, motion in sorted(case.inputs.items()):
            latents = last_motion(build.frames(motion)).clone()
            latents[:, latents.shape[1] - ZEROED[last] :] = 0
            parts, dtyped = buckets(latents)[held], _Dtype(case.dtype)
            convs = (packer.proj, packer.proj_2x, packer.proj_4x)[held]
            tokens = [embed(dtyped, conv, part) for conv, part in zip(convs, parts, strict=True)]
            outputs[f"tokens_v{number}_m{name.split('_')[1]}"] = torch.cat(tokens, 1).detach()
        grid = tuple(side // 2 for side in motion.shape[-2:])
        runs = motion_runs(grid)[held]
        moved = [r if n > 1 else replace(r, times=tuple(t + shift for t in r.times)) for n, r in enumerate(runs)]
        cos, sin = rotary.angles(TokenLayout(tuple(moved)), "cpu", case.dtype)
        outputs |= {f"rope_cos_v{number}": cos, f"rope_sin_v{number}": sin}
    return outputs


class _Dtype:
    """What `embed_by` asks of a network."""

    def __init__(self, dtype):
        self.dtype = dtype


def run_audio(case: Case) -> dict[str, torch.Tensor]:
    """From hidden states to features at the video's rate, and to tokens: of the first clip, and of one block alone."""
    from wan.audio.features import align, to_30hz

    config = case.config["config"]
    hidden = case.inputs["wav2vec_hidden_states_50hz"]
    video = align(hidden, config["infer_frames"] * case.config["measured"]["clips"], config["fps"])
    spec = S2VSpec(
        dim=config["model_dim"],
        num_heads=1,
        num_layers=1,
        audio_dim=config["audio_dim"],
        audio_layers=config["layers"],
        num_audio_token=config["num_audio_token"],
        audio_inject_layers=(0,),
    )
    encoder = AudioEncoder(spec).to(case.dtype)
    encoder.load_state_dict({name.split(".", 1)[1]: t for name, t in case.weights.items()})
    outputs = {"features_30hz": to_30hz(hidden), "features_video_rate": video.permute(1, 2, 0)[None]}
    clip = Condition(torch.zeros(1), audio=video[None, None])
    for name, frames in (("clip0", Span(0, config["infer_frames"] // 4)), ("block1", Span(3, 6))):
        chunked = replace(clip, audio_chunk=len(frames))
        tokens, whole = encoder(chunked.hear(range(frames.start, frames.stop)))
        outputs[f"{name}_local_tokens"], outputs[f"{name}_global_token"] = tokens[:, 0], whole[:, 0, :, None]
    return outputs


def run_lora(case: Case) -> dict[str, torch.Tensor]:
    """A LoRA file of Live-Avatar merged by our reader, its strength given as the recipe gives it."""
    config = case.config["config"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        save_file(case.inputs, path)
        update = read_lora(path, alpha=config["lora_alpha"]).fit(case.weights, S2VSpec.from_config(config))
    changed = set(update.pairs)
    assert {f"{module}.weight" for module in changed} == set(case.config["changed_tensors"])
    return {f"merged.{name}": tensor for name, tensor in merge_lora(case.weights, update.pairs).items()}


class Recorder(Denoiser):
    """Notes the velocities of its passes over the video."""

    def __init__(self, transformer):
        super().__init__(transformer)
        self.velocities: list[torch.Tensor] = []

    def forward(self, *arguments, **options):
        velocity = super().forward(*arguments, **options)
        self.velocities.append(velocity)
        return velocity


class Refresh(Track):
    """The portrait changes before one block."""

    def __init__(self, condition: Condition, at: int | None, later: dict[str, torch.Tensor]):
        self.condition, self.begin = condition, at
        self.other = replace(condition, portrait_key="refreshed", **later)

    def at(self, span: Span) -> Condition:
        return self.condition if self.begin is None or span.start < self.begin else self.other


class Watching(PlainExecutor):
    """Keeps the keys in sight of the last chunk, before it is committed, in the ancestor's slots."""

    def commit(self, state, condition, span, chunk, noise):
        ring = state.caches[0][0].ledger.num_slots + len(span)
        self.__dict__["seen"] = [self._slots(branches[0], span, ring) for branches in state.caches]
        super().commit(state, condition, span, chunk, noise)

    def _slots(self, cache, span: Span, ring: int) -> torch.Tensor:
        unit, slots = cache.shape.frame_tokens, {f % ring: cache.frame(1, f)[0] for f in cache.ledger.slot_of}
        for number, frame in enumerate(range(span.start, span.stop)):
            slots[frame % ring] = cache.keys[1][:, number * unit : (number + 1) * unit]
        empty = torch.zeros_like(next(iter(slots.values())))
        return torch.cat([slots.get(slot, empty) for slot in range(ring)], 1)


def rollout(denoiser, setup: dict, draws: torch.Tensor, size: tuple[int, int], window: int) -> Rollout:
    """Same-step caches, the published steps, the recorded distances."""
    chunk, steps = setup["frames_per_block"], setup["steps"]
    return Rollout(
        denoiser,
        MultiStep(Solver("euler", steps, 3.0, "table"), 1.0),
        Geometry(*size),
        CacheConfig(window, content="same_step"),
        distance=lambda span, k: int(draws[span.start // chunk * steps + k]),
    )


def run_stream(case: Case) -> dict[str, torch.Tensor]:
    """Block by block; once with exact rotary factors, once with factors rounded to half precision."""
    outputs = stream(case, build.s2v_transformer(case.config["config"], case.weights))
    rounded = build.s2v_transformer(case.config["config"], case.weights)
    angles = rounded.rotary.angles
    rounded.rotary.angles = lambda *a: tuple(half.half().to(half.dtype) for half in angles(*a))
    last = case.config["setup"]["blocks"] - 1
    for name, tensor in stream(case, rounded).items():
        if name.startswith(f"velocity_block{last}"):
            outputs[f"halfrope_{name}"] = tensor
    return outputs


@torch.no_grad()
def stream(case: Case, model) -> dict[str, torch.Tensor]:
    """Blocks of three frames through the rollout that generates."""
    setup, inputs, outputs = case.config["setup"], case.inputs, {}
    chunk, blocks, refresh = setup["frames_per_block"], setup["blocks"], setup["sink_refresh_before_block"]
    denoiser, size = Recorder(model), tuple(side * 8 for side in setup["latent_hw"])
    executor = Watching(rollout(denoiser, setup, inputs["d_draws"], size, setup["infer_frames"] // 4))
    track = Refresh(
        whole_condition(case, blocks),
        None if refresh is None else refresh * chunk,
        {name: build.frames(inputs[f"{key}_2"]) for name, key in PORTRAIT if f"{key}_2" in inputs},
    )
    noise = build.frames(inputs["noise"])
    state = executor.rollout.start(1, chunk, None)
    for block in range(blocks):
        span = Span(block * chunk, (block + 1) * chunk)
        denoiser.velocities.clear()
        condition, pinned = track.at(span), state.portrait_key
        made = executor.generate_chunk(state, track, span, lambda span, k: noise[:, span.start : span.stop])
        for step, velocity in enumerate(denoiser.velocities):
            outputs[f"velocity_block{block}_step{step}"] = velocity[0].transpose(0, 1)
        outputs[f"latent_block{block}"] = made.latents[0].transpose(0, 1)
        tokens, whole = model.casual_audio_encoder(condition.cut(span).heard)
        outputs |= {f"audio_tokens_block{block}": tokens[0], f"audio_global_block{block}": whole[0, :, :, None]}
        if state.portrait_key != pinned:
            stem = "prefill" if pinned is None else "prefill2"
            for layer in (0, model.spec.num_layers - 1):
                k, v = state.caches[0][0].pinned(layer)
                outputs |= {f"{stem}_cond_k_layer{layer}": k.clone(), f"{stem}_cond_v_layer{layer}": v.clone()}
    for step in (0, setup["steps"] - 1):
        outputs[f"ring_k_layer1_step{step}"] = executor.seen[step]
    return outputs


PORTRAIT = (("reference", "ref_latent"), ("motion", "motion_latent"))


def whole_condition(case: Case, blocks: int) -> Condition:
    """What the recording is conditioned on; its pose is the same in every block."""
    inputs, masks = case.inputs, case.inputs.get("actor_mask")
    return Condition(
        build.padded(inputs["context"], case.config["config"]["text_len"])[None],
        audio=build.features(inputs["audio"]),
        speakers=None if masks is None else masks[None, ..., 0].repeat(1, 1, blocks, 1, 1).to(case.dtype),
        pose=build.frames(inputs["cond_latent"]).repeat(1, blocks, 1, 1, 1),
        audio_chunk=case.config["setup"]["frames_per_block"],
        **{name: build.frames(inputs[key]) for name, key in PORTRAIT},
    )
