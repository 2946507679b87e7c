"""Kind G: samplers end to end on fixed noise and recorded draws."""

from __future__ import annotations

import torch

from pipeline.config import FewStepConfig, MultiStepConfig
from pipeline.executor import PlainExecutor
from pipeline.rollout import Chunk, Rollout, guided
from pipeline.sampler import sample
from pipeline.track import Fixed, PromptSchedule, Track
from tests.parity import build
from tests.parity.case import Case, NotATarget
from tests.parity.kind_c import in_time_order
from utils.rng import Recording
from wan.condition import Condition
from wan.context import Full
from wan.denoiser import Denoiser
from wan.generation import ContextConfig, StepsConfig
from wan.geometry import Geometry, Span, chunks
from wan.ledger import CacheConfig
from wan.schedule import NUM_TRAIN_TIMESTEPS

BIDIRECTIONAL_SHIFT = 8.0  # their bidirectional sampler has it as a literal, whatever its config says


def run(case: Case) -> dict[str, torch.Tensor]:
    """Bidirectional or causal by the class that was recorded."""
    if "SwitchCausal" in case.config["reference"] and not case.config["config"]["pipeline_args"]["global_sink"]:
        raise NotATarget("its sink is all zeros after the switch and still attended to; ours is made anew")
    model = build.transformer(case.config["config"]["model"], case.weights)
    with torch.no_grad():
        if "idirectional" in case.config["reference"].split("/")[-1]:
            return bidirectional(case, Denoiser(model))
        return causal(case, Denoiser(model))


def make_sampler(case: Case, bidirectional: bool = False):
    """The sampler that a case's arguments describe."""
    knobs, config = case.config["config"]["pipeline_args"], case.config["config"]
    shift = knobs["model_kwargs"]["timestep_shift"]
    if "denoising_step_list" in knobs:
        steps = [s for s in knobs["denoising_step_list"] if s]
        if bidirectional:
            steps = steps[:-1]  # the recording never ran the last step of its list
        return FewStepConfig().build(StepsConfig(tuple(steps), shift, knobs["warp_denoising_step"], "table"))
    shift = BIDIRECTIONAL_SHIFT if bidirectional else knobs["timestep_shift"]
    solver = config["solver"] or "unipc"
    return MultiStepConfig(solver, config["sampling_steps"], shift, knobs["guidance_scale"]).build(StepsConfig())


def make_condition(case: Case) -> Condition:
    """Text and negative text of the whole batch."""
    names = sorted(k for k in case.inputs if k.startswith("prompt_embeds"))
    text = torch.stack([case.inputs[n] for n in names])
    null = case.inputs.get("negative_prompt_embeds")
    return Condition(text, None if null is None else null.expand(len(text), *null.shape[-2:]))


def make_track(case: Case) -> Track:
    """The video's text, or that of each segment between prompt switches."""
    switches = case.config["config"].get("switch_frame_indices")
    if not switches:
        return Fixed(make_condition(case))
    batch = range(case.inputs["noise"].shape[0])
    stem = "prompt_embeds_segment"
    texts = [torch.stack([case.inputs[f"{stem}{n}_{i}"] for i in batch]) for n in range(len(switches) + 1)]
    return PromptSchedule([(frame, Condition(text)) for frame, text in zip([0, *switches], texts, strict=True)])


class Draws:
    """noise(span, k): the stored start noise, then the recorded draws in call order."""

    def __init__(self, case: Case, first: int):
        self.start, self.first = case.inputs["noise"], first
        self.recording = Recording(case.draws(), reshape=True)

    def __call__(self, span: Span, k: int) -> torch.Tensor:
        start = self.start[:, span.start - self.first : span.stop - self.first]
        return start if k == 0 else self.recording.normal(start.shape)


def causal(case: Case, denoiser: Denoiser) -> dict[str, torch.Tensor]:
    """The rollout; cache slots compared frame by frame."""
    knobs, inputs = case.config["config"]["pipeline_args"], case.inputs
    noise, kwargs = inputs["noise"], knobs["model_kwargs"]
    given, first = [], 0
    size = knobs["num_frame_per_block"]
    if "initial_latent" in inputs:
        initial = inputs["initial_latent"]
        first = initial.shape[1]
        head = 1 if knobs["independent_first_frame"] else size
        spans = [Span(0, head)] + ([] if first == head else chunks(first - head, size, start=head))
        given = [Chunk(s, initial[:, s.start : s.stop], given=True) for s in spans]
    head = 1 if knobs["independent_first_frame"] and not given else None
    spans = chunks(noise.shape[1], size, head, start=first)
    rope = "read" if kwargs.get("use_infinite_attention") else "write"
    rollout = Rollout(
        denoiser,
        make_sampler(case),
        Geometry(noise.shape[3] * 8, noise.shape[4] * 8),
        CacheConfig(
            kwargs.get("local_attn_size", -1),
            kwargs.get("sink_size", 0),
            rope,
            recache="bidirectional",
            keep_sink=knobs.get("global_sink", True),
        ),
        ContextConfig(knobs.get("context_noise", 0) / NUM_TRAIN_TIMESTEPS),
        dtype=noise.dtype,
    )
    draws, lengths = Draws(case, first), [len(span) for span in [*spans, *(chunk.span for chunk in given)]]
    state = rollout.start(noise.shape[0], max(lengths), spans[-1].stop)
    caught = _catch_last_plan(state.caches[0][0])
    latents = [c.latents for c in PlainExecutor(rollout).run(state, make_track(case), spans, draws, given)]
    draws.recording.finish()
    outputs, wanted = {"latents": torch.cat(latents, 1)}, case.outputs()
    for stem in ("k", "v"):
        name = f"final_cache_{stem}_layer0"
        if name in wanted:
            outputs[name] = caught[stem][:, : wanted[name].shape[1]]
    return outputs


def _catch_last_plan(cache) -> dict:
    """Keeps what the last committing pass saw in layer 0: the ancestor's final cache in time order."""
    caught, enter = {}, cache.commit

    def watched(plan):
        for stem, store in (("k", cache.keys), ("v", cache.values)) if not plan.recache else ():
            caught[stem] = in_time_order(cache, store, plan, 0).clone()
        enter(plan)

    cache.commit = watched
    return caught


def bidirectional(case: Case, denoiser: Denoiser) -> dict[str, torch.Tensor]:
    """All frames at once."""
    sampler, draws = make_sampler(case, bidirectional=True), Draws(case, 0)
    span = Span(0, case.inputs["noise"].shape[1])
    predict = guided(denoiser, make_condition(case), [Full(), Full()], sampler.guidance)
    latents = sample(sampler, draws(span, 0), predict, lambda k: draws(span, k))
    return {"latents": latents, "video01": latents[:, :, :3].clamp(-1, 1) * 0.5 + 0.5}
