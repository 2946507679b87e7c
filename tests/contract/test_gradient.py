"""Gradients of a rollout: with checkpointing as without, and as an independent masked forward has them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.executor import PlainExecutor
from pipeline.sampler import FewStep, RandomExit
from pipeline.track import PromptSchedule
from tests import tiny, tolerance
from tests.contract.oracle import Book, ForgetfulText, rotate
from wan.attention.call import AttentionCall
from wan.attention.dispatch import attend
from wan.attention.masks import FrameMask
from wan.cache import Chunks, TextKVCache
from wan.ledger import CacheConfig
from wan.schedule import Schedule

LENGTHS = (1, 3, 2, 3, 3)
BATCH = 2
PASSES = 2 * 3 * len(LENGTHS)  # forward and back: two steps and the context pass of each chunk


def all_steps(sigmas):
    return FewStep(sigmas, Schedule())


def random_exit(sigmas):
    """Chunks stop at different steps, and only the step they stop at has a gradient."""
    return RandomExit(all_steps(sigmas), lambda span: span.start % len(sigmas))


def train_step(config, sigmas=tiny.SIGMAS, sampler=all_steps, checkpointing=False, strict=True, switch=None):
    """Returns (the video, gradient of each weight) of one rollout whose backward runs at its very end.

    switch: the frame from which on another prompt holds.
    """
    model = tiny.denoiser().train().requires_grad_(True)
    model.transformer.checkpointing = checkpointing
    rolls = replace(tiny.rollout(model, config, training=True), sampler=sampler(sigmas))
    cues = [(0, tiny.condition(BATCH))]
    cues += [(switch, tiny.condition(BATCH, seed=1))] if switch else []
    borders, noise = tiny.spans(*LENGTHS), tiny.noise(BATCH)
    state = tiny.start(rolls, borders, BATCH)
    chunks = list(PlainExecutor(rolls).run(state, PromptSchedule(cues), borders, noise))
    assert sum(c.recache_seconds is not None for c in chunks) == len(cues) - 1
    video = torch.cat([c.latents for c in chunks], 1)
    if config.window_frames != -1:
        assert len(state.caches[0][0].ledger.slot_of) < sum(LENGTHS), "nothing was evicted before backward"
    return video.detach(), gradients(model, video, strict)


def gradients(model: nn.Module, video: torch.Tensor, strict: bool = True) -> dict[str, torch.Tensor]:
    """Returns the gradient of a fixed weighted sum of the video; every weight must have one (`strict`), or gets 0."""
    weights = tiny.draw("loss", shape=video.shape, dtype=video.dtype)
    (tiny.healthy(video) * weights).sum().backward()
    found = {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in model.named_parameters()}
    assert not strict or all(g.abs().max() > 0 for g in found.values())
    return found


def worst(given: dict, wanted: dict) -> float:
    """Returns the largest error of a gradient, relative to that weight's largest."""
    return max(tiny.error(given[n], wanted[n]) / wanted[n].abs().max().item() for n in wanted)


POLICIES = [CacheConfig(-1), CacheConfig(6, 0), CacheConfig(6, 2), CacheConfig(6, 2, "read"), CacheConfig(4, 1)]


@pytest.mark.parametrize("config", POLICIES, ids=str)
@pytest.mark.parametrize("sampler", [all_steps, random_exit])
def test_checkpointing_changes_no_gradient(config, sampler, bound):
    (video, wanted), (again, given) = (train_step(config, sampler=sampler, checkpointing=c) for c in (False, True))
    assert tiny.error(video, again) < bound(PASSES)
    assert worst(given, wanted) < bound(PASSES)


@pytest.mark.parametrize("config", [CacheConfig(6, 2), CacheConfig(6, 2, "read"), CacheConfig(-1)], ids=str)
@pytest.mark.parametrize("recache", ["bidirectional", "causal", "reset"])
@pytest.mark.parametrize("keep_sink", [True, False])
def test_checkpointing_changes_no_gradient_where_the_prompt_switches(config, recache, keep_sink, float64):
    """The recache replaces, before backward, the keys that earlier chunks read."""
    config = replace(config, recache=recache, keep_sink=keep_sink)
    (video, wanted), (again, given) = (train_step(config, checkpointing=c, switch=9) for c in (False, True))
    assert tiny.error(video, again) < tolerance.EXACT
    assert worst(given, wanted) < tolerance.EXACT
    assert worst(train_step(config)[1], wanted) > 1e-3, "the switch is seen"


@pytest.mark.parametrize("switch", [None, 9])
def test_recompute_over_a_changed_cache_breaks_it(switch, monkeypatch, float64):
    """A checkpointed block that closes over the cache reads, at backward, frames that came later or anew."""

    def write(self, layer, plan, k, v):
        if not torch.is_grad_enabled():
            self._own[layer] = (k, v)
        kept = [pair for _, pair in sorted(self._kept[layer].items())][-len(plan.read) :] if plan.read else []
        if plan.recache:
            kept = [self._kept[layer][frame] for frame in plan.read]
        return tuple(torch.cat([pair[i] for pair in kept] + [new], 1) for i, new in enumerate((k, v)))

    config = CacheConfig(6, 2)
    video, wanted = train_step(config, switch=switch)
    monkeypatch.setattr(Chunks, "write", write)
    monkeypatch.setattr(Chunks, "frozen_view", lambda self, plan: self)
    plain = train_step(config, switch=switch)
    again, given = train_step(config, checkpointing=True, switch=switch)
    assert worst(plain[1], wanted) < tolerance.EXACT, "the twin is right as long as nothing is recomputed"
    assert tiny.error(video, again) < tolerance.EXACT, "the loss does not show it"
    assert worst(given, wanted) > tolerance.DIFFERENT


class Recording:
    """A masked context that notes each layer's rotated keys and values, and may put constants before its own."""

    def __init__(self, mask: FrameMask, theta: float, constants=None):
        self.mask, self.theta, self.constants = mask, theta, constants
        self.text, self.noted = ForgetfulText(), {}

    cached, times = False, range

    def place(self, portrait):
        """Returns the runs of a portrait where they stand."""
        return portrait

    def open(self, layout, table, device, dtype):
        """Returns itself as the view."""
        self.queries = layout
        self.keys = replace(layout, runs=layout.runs * (2 if self.constants else 1))
        return self

    def attend(self, layer, q, k, v, config):
        """Rotates by the frames' own numbers."""
        run = self.queries.runs[0]
        q, k = (rotate(x, run.times, run.grid, self.theta) for x in (q, k))
        self.noted[layer] = (k, v)
        if self.constants:
            k, v = (torch.cat(pair, 1) for pair in zip(self.constants[layer], (k, v), strict=True))
        return attend(AttentionCall(q, k, v, layer, self.queries, self.keys, self.mask), config)


def independent_step(config, video, sigma, window=None):
    """Returns (video, gradients) of all chunks at once: noisy frames over the constant keys of the finished video."""
    dtype, borders = video.dtype, tiny.spans(*LENGTHS)
    model = tiny.denoiser(dtype=dtype).requires_grad_(True)
    text, theta = tiny.condition(BATCH, dtype=dtype), model.spec.rope_theta
    book = Book(window or config.window_frames, config.sink_frames, max(LENGTHS))
    first = Recording(book.mask(borders), theta)
    with torch.no_grad():
        model(video, 0.0, text, first)
    before = book.mask(borders, with_own=False).frames
    own = book.mask(borders).frames & ~before
    second = Recording(FrameMask(torch.cat((before, own), 1)), theta, first.noted)
    noise = torch.cat([tiny.noise(BATCH, dtype=dtype)(span, 0) for span in borders], 1)
    made = noise - sigma * model(noise, sigma, text, second)
    return made.detach(), gradients(model, made)


@pytest.mark.parametrize("config", [c for c in POLICIES if c.rope == "write"], ids=str)
def test_rollout_gradient_is_that_of_one_forward_over_constant_keys(config, bound):
    video, given = train_step(config, sigmas=(0.8,), checkpointing=True)
    made, wanted = independent_step(config, video, 0.8)
    assert tiny.error(made, video) < bound(PASSES)
    assert worst(given, wanted) < bound(PASSES)


def keep_text_under_grad(monkeypatch):
    """Serves the text keys of the passes without grad, which are constants, to those with grad."""

    def get(self, layer, key, make):
        if layer not in self._kept:
            with torch.no_grad():
                self._kept[layer] = make()
        return self._kept[layer]

    monkeypatch.setattr(TextKVCache, "get", get)


def forget_history(monkeypatch):
    def write(self, layer, plan, k, v):
        if not torch.is_grad_enabled():
            self._own[layer] = (k, v)
        return k, v

    monkeypatch.setattr(Chunks, "write", write)


@pytest.mark.parametrize("mutate", [keep_text_under_grad, forget_history])
def test_mutations_break_it(mutate, monkeypatch, float64):
    config = CacheConfig(6, 2)
    _, wanted = independent_step(config, train_step(config, sigmas=(0.8,))[0], 0.8)
    mutate(monkeypatch)
    _, given = train_step(config, sigmas=(0.8,), strict=False)
    assert worst(given, wanted) > tolerance.DIFFERENT


def test_gradient_through_the_keys_of_earlier_chunks_is_none():
    """What a chunk sees of earlier ones are constants: a loss on the last chunk asks for its own pass alone."""
    model = tiny.denoiser().requires_grad_(True)
    rolls = tiny.rollout(model, CacheConfig(6, 2), training=True)
    noise = tiny.noise(BATCH)
    starts = {}

    def leaf(span, k):
        starts[span, k] = noise(span, k).requires_grad_()
        return starts[span, k]

    video = tiny.video(rolls, tiny.condition(BATCH), tiny.spans(*LENGTHS), leaf)
    video[:, -3:].sum().backward()
    reached = {key for key, x in starts.items() if x.grad is not None and x.grad.abs().max() > 0}
    last = tiny.spans(*LENGTHS)[-1]
    assert reached == {(last, 0), (last, 1)}
