"""Kind I: training rollouts with a random exit step; gradients against those of a detached cache."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline.config import FewStepConfig
from pipeline.executor import PlainExecutor
from pipeline.rollout import Chunk, Rollout
from pipeline.sampler import RandomExit
from pipeline.track import Fixed
from tests.parity import build
from tests.parity.case import Case
from utils.rng import Recording
from wan.condition import Condition
from wan.denoiser import Denoiser
from wan.generation import ContextConfig, StepsConfig
from wan.geometry import Geometry, Span, chunks
from wan.ledger import CacheConfig
from wan.schedule import NUM_TRAIN_TIMESTEPS

GRADED_FRAMES = 21  # earlier frames of a longer rollout carry no gradient; LongLive's slice_last_frames


class TrainingDraws:
    """noise(span, k) of the ancestor's rollout: stored start noise, then draws in call order."""

    def __init__(self, start: torch.Tensor, first: int, recording: Recording):
        self.start, self.first, self.recording = start, first, recording

    def __call__(self, span: Span, k: int) -> torch.Tensor:
        start = self.start[:, span.start - self.first : span.stop - self.first]
        return start if k == 0 else self.recording.normal(start.shape)


def get_cache(kwargs: dict) -> CacheConfig:
    """The recorded cache policy of a generator's arguments."""
    rope = "read" if kwargs.get("use_infinite_attention") else "write"
    return CacheConfig(kwargs.get("local_attn_size", -1), kwargs.get("sink_size", 0), rope)


def graded_frames(*knobs: dict) -> int:
    """How many of the last frames carry gradient, by the first of these arguments that says so."""
    return next((n for k in knobs if (n := k.get("slice_last_frames")) is not None), GRADED_FRAMES)


def make_rollout(
    denoiser, steps, warp, shift, geometry, cache: CacheConfig, exit_step, total, dtype, noise, graded=GRADED_FRAMES
) -> Rollout:
    """Our rollout with the ancestor's training habits: table look-ups, context told `noise` (of 1000) and re-noised."""
    few = FewStepConfig().build(StepsConfig(tuple(s for s in steps if s), shift, warp, "table"))
    with_grad = lambda span: span.start >= total - graded  # noqa: E731
    context = ContextConfig(noise / NUM_TRAIN_TIMESTEPS, renoise=True, rounding="table", shift=shift)
    return Rollout(
        denoiser, RandomExit(few, exit_step, with_grad), geometry, cache, context, training=True, dtype=dtype
    )


def exits(indices: torch.Tensor, spans, num_steps: int, same: bool, last_only: bool):
    """Returns exit_of(span) by the recorded draw: one index for all, one per chunk, or always the last."""
    listed = indices.tolist()
    if last_only:
        listed = [num_steps - 1] * len(listed)
    table = {span: listed[0 if same else i] for i, span in enumerate(spans)}
    return table.__getitem__


def run(case: Case) -> dict[str, torch.Tensor]:
    """The rollout, loss = 10 mean(latents R), gradients."""
    config, inputs = case.config["config"], case.inputs
    knobs, kwargs = config["pipeline_kwargs"], config["wrapper_kwargs"]
    model = build.transformer(config["model"], case.weights).requires_grad_(True)
    model.checkpointing = True
    noise, size = inputs["noise"], knobs["num_frame_per_block"]
    given = inputs.get("initial_latent")
    first = 0 if given is None else given.shape[1]
    head = 1 if knobs["independent_first_frame"] and not first else None
    spans = chunks(noise.shape[1], size, head, start=first)
    draws = case.draws()
    steps = config["denoising_step_list_before_warp"]
    num_steps = len([s for s in steps if s])
    exit_step = exits(draws[0], spans, num_steps, knobs["same_step_across_blocks"], knobs["last_step_only"])
    rollout = make_rollout(
        Denoiser(model),
        steps,
        case.config.get("denoising_step_list_used", ())[:num_steps] != [s for s in steps if s],
        kwargs["timestep_shift"],
        Geometry(noise.shape[3] * 8, noise.shape[4] * 8),
        get_cache(kwargs),
        exit_step,
        first + noise.shape[1],
        noise.dtype,
        knobs.get("context_noise", 0),
        graded_frames(config, knobs),
    )
    source = TrainingDraws(noise, first, Recording(draws[1:], reshape=True))
    start = [] if given is None else [Chunk(Span(0, first), given, given=True)]
    lengths = [len(span) for span in [*spans, *(chunk.span for chunk in start)]]
    state, track = (
        rollout.start(noise.shape[0], max(lengths), spans[-1].stop),
        Fixed(Condition(inputs["prompt_embeds"])),
    )
    caught = CaughtCache(state.caches[0][0])
    clean = PlainExecutor(replace(rollout, context=ContextConfig()))  # a given frame is cached clean
    made = [chunk.latents for chunk in clean.run(state, track, (), source, start)]
    made += [chunk.latents for chunk in PlainExecutor(rollout).run(state, track, spans, source)]
    source.recording.finish()
    latents = torch.cat(made, 1)
    loss = 10 * (latents * inputs["loss_weight_R"]).mean()
    loss.backward()
    outputs = {"output_latent": latents.detach(), "loss": loss.detach(), **gradients(case, model)}
    final = caught.final(
        case.config["reference"].startswith("Self-Forcing"), config.get("kv_cache_frames"), kwargs.get("sink_size", 0)
    )
    return outputs | {f"final_cache_{stem}_layer0": tensor for stem, tensor in final.items()}


def gradients(case: Case, model, role: str = "") -> dict[str, torch.Tensor]:
    """Our gradients under the recorded names: `gradD*` where the case has it, the ancestor's leak is not a target."""
    wanted, found = case.outputs(), {}
    detached = any(name.startswith("gradD") for name in wanted)
    for stem in ("gradD", "grad"):
        prefix = f"{stem}_{role}." if role else f"{stem}."
        if stem == "grad" and detached:
            found |= {name: wanted[name] for name in wanted if name.startswith((prefix, prefix[:-1] + "_norm"))}
            continue
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
        found |= {prefix + name: grad for name, grad in grads.items()}
        found[prefix[:-1] + "_norm"] = sum(g.double().square().sum() for g in grads.values()).sqrt()
    return found


class CaughtCache:
    """Layer 0's keys and values: `committed` of each span, and `exits` of each span that carries gradient."""

    def __init__(self, cache):
        self.committed, self.exits = {}, {}
        self.watch(cache)

    def watch(self, cache) -> None:
        """Notes what the cache's committing and graded passes store in layer 0."""
        enter, frozen_view = cache.commit, cache.frozen_view

        def commit(plan):
            self.committed[plan.span] = cache._own[0]
            enter(plan)

        def frozen(plan):
            view = frozen_view(plan)
            if view is not cache:
                write = view.write

                def noting(layer, plan, k, v):
                    if layer == 0:
                        self.exits[plan.span] = (k.detach(), v.detach())
                    return write(layer, plan, k, v)

                view.write = noting
            return view

        cache.commit, cache.frozen_view = commit, frozen

    def final(self, recompute_writes: bool, room: int | None, sink: int) -> dict[str, torch.Tensor]:
        """The ancestor's cache of `room` frames after backward: the sink, then the latest. Where its recompute writes
        in place, the first graded chunk is the last one written: it holds that chunk's exit pass and ends behind it."""
        spans = sorted(self.committed, key=lambda s: s.start)
        kept = dict(self.committed)
        if recompute_writes:
            first = min(self.exits, key=lambda s: s.start)
            spans = [s for s in spans if s.start <= first.start]
            kept[first] = self.exits[first]
        frames = [keys for s in spans for keys in zip(*(half.chunk(len(s), 1) for half in kept[s]), strict=True)]
        if room and len(frames) > room:
            frames = [*frames[:sink], *frames[len(frames) - room + sink :]]
        return {stem: torch.cat([frame[i] for frame in frames], 1) for i, stem in enumerate(("k", "v"))}
