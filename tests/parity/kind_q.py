"""Kind Q: streaming long tuning, turn by turn of generator and critic, with and without a prompt switch."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch

from model.config import DmdConfig
from pipeline.rollout import Rollout
from pipeline.state import RolloutState
from tests.parity import kind_h
from tests.parity.case import Case, NotATarget
from tests.parity.leak import Leak
from trainer.roles import Roles
from trainer.sources.config import StreamConfig
from trainer.sources.stream import StreamSource
from utils.parallel.layout import ParallelLayout
from utils.rng import Recording
from wan.generation import ContextConfig, GenerationConfig, StepsConfig
from wan.ledger import CacheConfig
from wan.schedule import NUM_TRAIN_TIMESTEPS

LOOK_BACK = 21  # frames of their recache in training, whatever the window
FIRST, SECOND = "first", "second"


class StreamDraws(Recording):
    """The recorded draws of one turn: its length by the case, its exits by name, then its tensors in order."""

    def __init__(self, case: Case, turn: dict):
        self.turn, self.name = turn, ""
        ranges = [turn[key] or (0, 0) for key in ("draws_generation", "draws_loss")]  # a turn may have no loss
        drawn = [draw for borders in ranges for draw in case.draws()[slice(*borders)]]
        self.start, self.exits = drawn[:2]
        super().__init__(drawn[2:], reshape=True)

    def shared(self, step, name):
        self.name = name
        return self

    def permutation(self, count, *key):
        return torch.arange(count)

    def integers(self, low, high, *key, shape=()):
        if self.name == "exit":
            return self.exits
        return torch.tensor((self.turn["new_frames"] - self.least) // self.chunk if self.name == "new frames" else 0)

    def integers_batch(self, low, high, indices, *key, shape=()):
        return super().integers(low, high, *key, shape=(len(indices), *shape))

    def normal_batch(self, shape, indices, *key):
        if len(key) == 2 and key[1] == 0:  # (frame, k) of a rollout; theirs draws the start of all chunks at once
            first = key[0] - self.turn["chunk_start_frame"]
            return self.start[:, first : first + shape[0]]
        return super().normal_batch(shape, indices, *key)


def check_target(case: Case) -> None:
    """Raises NotATarget for a sink that is left at zero: a recache that is not from the video's start, not repaired."""
    knobs = case.config["config"]["args"]
    late = any(call["absolute_start"] > LOOK_BACK for call in case.config["recache_calls"])
    if late and knobs["model_kwargs"].get("sink_size", 0) and not (keeps_sink(case) or repaired(case, "fresh sink")):
        raise NotATarget("its sink is all zeros after the switch and still attended to; ours is kept or made anew")


def repaired(case: Case, what: str) -> bool:
    """True if the recording ran with this repair."""
    return any(repair.startswith(what) for repair in case.config["repairs"])


def keeps_sink(case: Case) -> bool:
    """True if the old sink outlives the switch: theirs honours the option only where that was repaired."""
    return bool(case.config["config"]["args"].get("global_sink")) and repaired(case, "global_sink")


def make_source(case: Case, folder: Path) -> StreamSource:
    """Our source with the recorded knobs."""
    knobs, switch = case.config["config"]["args"], case.config["config"]["switch_frame_index"]
    kwargs, (height, width) = knobs["model_kwargs"], knobs["image_or_video_shape"][3:]
    for text in (FIRST, SECOND):
        (folder / text).write_text(text)
    steps = tuple(s for s in knobs["denoising_step_list"] if s)
    shift, sigma = kwargs["timestep_shift"], knobs.get("context_noise", 0) / NUM_TRAIN_TIMESTEPS
    generation = GenerationConfig(
        chunk=knobs["num_frame_per_block"],
        steps=StepsConfig(steps, shift, knobs["warp_denoising_step"], "table"),
        cache=get_cache(case),
        context=ContextConfig(sigma, renoise=True, rounding="table", shift=shift),
    )
    return StreamConfig(
        prompts=str(folder / FIRST),
        switch_prompts=str(folder / SECOND) if switch is not None else "",
        switch_frames=() if switch is None else switch,
        batch=1,
        max_frames=knobs["streaming_max_length"],
        loss_frames=knobs["streaming_chunk_size"],
        min_new_frames=knobs["streaming_min_new_frame"],
        height=height * 8,
        width=width * 8,
        exit_per_chunk=not knobs["same_step_across_blocks"],
        last_step_only=knobs["last_step_only"],
    ).build(generation)


def get_cache(case: Case) -> CacheConfig:
    """The recorded cache policy."""
    kwargs = case.config["config"]["args"]["model_kwargs"]
    window, sink = kwargs.get("local_attn_size", -1), kwargs.get("sink_size", 0)
    rope = "read" if kwargs.get("use_infinite_attention") else "write"
    look_back = 0 if window == -1 else max(window, LOOK_BACK)
    return CacheConfig(window, sink, rope, "bidirectional", keeps_sink(case), look_back)


class TextVae(kind_h.StubVae):
    """The stub with its strides."""

    strides = (4, 8, 8)


def run(case: Case) -> dict[str, torch.Tensor]:
    """Turn by turn through the source and the losses of the training."""
    check_target(case)
    wanted, watched = case.outputs(), Watched(case)
    with watched:
        outputs, source = play(case)
    outputs |= watched.caches(source)
    leaky = with_leak(case) if repaired(case, "fresh sink") else {}
    for name in [name for name in outputs if name.startswith("gradD_generator")]:
        theirs = name.replace("gradD", "grad", 1)
        if theirs not in wanted:
            continue
        outputs[theirs] = wanted[theirs]  # with their leak: no target
        if leaky and name in wanted and torch.equal(wanted[name], wanted[theirs]):
            outputs[name] = leaky[theirs]  # the repair lost their detaching on the way: it is the leaky gradient again
    return outputs


def with_leak(case: Case) -> dict[str, torch.Tensor]:
    """Our `grad_generator_j` with the ancestor's gradient through its cache."""
    with Leak(case.config["config"]["kv_cache_frames"], 0 if keeps_sink(case) else LOOK_BACK) as leak:
        outputs, _ = play(case, leak)
    return {n.replace("gradD", "grad", 1): t for n, t in outputs.items() if n.startswith("gradD_generator")}


def play(case: Case, leak: Leak | None = None):
    """Returns (what the turns gave, the source); the gradients with the ancestor's leak, if it is given."""
    roles = kind_h.arguments(case)
    texts = {FIRST: "prompt_embeds_cond", SECOND: "prompt_embeds_switch", "": "prompt_embeds_uncond"}
    roles.text = lambda prompts: torch.cat([case.inputs[texts[p]] for p in prompts])
    roles.vae, roles.negative_prompt, roles.device, roles.layout = TextVae(), "", "cpu", ParallelLayout.single()
    roles.condition = partial(Roles.condition, roles)
    roles.generator.transformer.requires_grad_(True).checkpointing = leak is None
    roles.critic.transformer.requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        source = make_source(case, Path(folder))
    loss, outputs = DmdConfig(kind_h.score_config(roles.knobs)).build(), {}
    for turn in case.config["chunks"]:
        if leak is not None:
            leak.forget()
        outputs |= take(case, turn, source, loss, roles)
    return outputs, source


def take(case: Case, turn: dict, source: StreamSource, loss, roles) -> dict[str, torch.Tensor]:
    """One turn: the stretch, its loss, its gradients."""
    draws, number, user = StreamDraws(case, turn), turn["chunk"], turn["used_for"]
    draws.least, draws.chunk = source.config.min_new_frames, source.generation.chunk
    sample = source.next(number, roles, draws, with_grad=user == "generator")
    mask = torch.ones(sample.latents.shape[1], dtype=bool) if sample.frame_mask is None else sample.frame_mask
    made = sample.latents.detach()
    message = {"new_frames": made[:, -turn["new_frames"] :], "chunk": made, "gradient_mask": mask[None]}
    grads = {}
    if user == "generator":
        message |= generator(loss, sample, roles, draws)
        grads = gradients(roles.generator.transformer, f"gradD_generator_{number}")
    elif user == "critic":
        value, _ = loss.critic(sample, roles, draws)
        value.backward()
        message["loss"] = value.detach()
        grads = gradients(roles.critic.transformer, f"grad_fake_score_{number}")
    draws.finish()
    for network in (roles.generator, roles.critic):
        network.transformer.zero_grad()
    return {f"{name}_{number}": tensor for name, tensor in message.items()} | grads


def generator(loss, sample, roles, draws) -> dict[str, torch.Tensor]:
    """DMD on the stretch, with its direction and times."""
    caught, direction = {}, loss.direction

    def kept(*given):
        caught["direction"] = direction(*given)
        return caught["direction"]

    loss.direction = kept
    value, _ = loss(sample, roles, draws)
    loss.direction = direction
    value.backward()
    gradient, sigma = caught["direction"]
    return {"loss": value.detach(), "kl_grad": gradient, "loss_timestep": sigma * NUM_TRAIN_TIMESTEPS}


def gradients(model, stem: str) -> dict[str, torch.Tensor]:
    """All gradients of a network and their norm."""
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    norm = sum(g.double().square().sum() for g in grads.values()).sqrt()
    return {f"{stem}.{name}": grad for name, grad in grads.items()} | {f"{stem}_norm": norm}


class Watched:
    """Our keys in the slots of their cache, which holds more frames than the window and drops them later.

    Slots of frames outside our window take the recorded keys: nothing attends to them.
    """

    def __init__(self, case: Case):
        self.case, self.wanted, self.found = case, case.outputs(), {}
        self.room = case.config["config"]["kv_cache_frames"]

    def __enter__(self):
        self.original = Rollout.recache

        def recache(rollout, state, condition):
            self.original(rollout, state, condition)
            end = state.next_frame
            fresh = not keeps_sink(self.case) and end > LOOK_BACK
            self.note("after_recache", state, end, LOOK_BACK if fresh else min(self.room, end))

        Rollout.recache = recache

    def __exit__(self, *error):
        Rollout.recache = self.original

    def note(self, when: str, state: RolloutState, end: int, filled: int) -> None:
        """Puts the frames that our cache holds into the slots of theirs, whose frames end at `end` in slot `filled`."""
        cache, unit = state.caches[0][0], state.caches[0][0].shape.frame_tokens
        for layer in range(cache.shape.num_layers):
            for place, stem in enumerate(("k", "v")):
                name = f"cache_{stem}_layer{layer}_{when}"
                if name not in self.wanted:
                    continue
                whole = self.wanted[name].clone()
                for frame in cache.ledger.slot_of:
                    sink = frame - cache.ledger.first_frame
                    slot = sink if sink < cache.ledger.sink_frames else filled - (end - frame)
                    whole[:, slot * unit : (slot + 1) * unit] = cache.frame(layer, frame)[place]
                self.found[name] = whole

    def caches(self, source: StreamSource) -> dict[str, torch.Tensor]:
        """The recorded caches with our frames in them."""
        last = self.case.config["chunks"][-1]
        (video,) = source.videos.values()
        end, filled = (
            n // self.case.config["config"]["tokens_per_frame"] for n in last["cache_index_tokens_global_local"]
        )
        assert end == video.length
        self.note(f"after_chunk_{last['chunk']}", video.state, end, filled)
        return self.found
