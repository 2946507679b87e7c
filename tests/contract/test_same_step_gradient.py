"""Gradients of rollouts over same-step caches: checkpointed, written out, and what must carry none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.sampler import FewStep, RandomExit
from tests import tiny, tolerance
from tests.contract.oracle import Oracle
from tests.contract.test_gradient import gradients, worst
from tests.contract.test_same_step import LENGTHS, NOISE, SIGMAS, TEXT, rollout
from wan.cache import Chunks
from wan.context import Cached, Full
from wan.ledger import CacheConfig
from wan.schedule import Schedule


def train_step(config, checkpointing: bool, exit_step: int = 2):
    """Returns (the video, gradient of each weight) of a rollout in which each chunk's exit pass has a gradient."""
    model = tiny.denoiser(dtype=torch.float64).train().requires_grad_(True)
    model.transformer.checkpointing = checkpointing
    sampler = RandomExit(FewStep(SIGMAS, Schedule()), lambda span: exit_step)
    rolls = replace(rollout(config, model, training=True), sampler=sampler)
    video = tiny.video(rolls, TEXT, tiny.spans(*LENGTHS), NOISE)
    return video.detach(), gradients(model, video)


@pytest.mark.parametrize("config", [CacheConfig(6, 2), CacheConfig(4, 1), CacheConfig(6, 0, "read")], ids=str)
@pytest.mark.parametrize("exit_step", [0, 2])
def test_same_step_checkpointing_changes_no_gradient(config, exit_step):
    """The pass with gradient is a committing one: its keys are kept, detached, and no recompute enters them again."""
    (video, wanted), (again_, found) = (train_step(config, c, exit_step) for c in (False, True))
    assert tiny.error(video, again_) < tolerance.EXACT and worst(found, wanted) < tolerance.EXACT
    with torch.no_grad():
        ring = tiny.video(rollout(config, sigmas=SIGMAS[: exit_step + 1]), TEXT, tiny.spans(*LENGTHS), NOISE)
    assert tiny.error(video, ring) < tolerance.EXACT, "the ring makes the same video"


def test_same_step_gradient_is_that_of_one_masked_forward():
    """Written out: the exit pass of all chunks at once, over the keys of the same frames as constants."""
    config, borders = CacheConfig(-1), tiny.spans(3, 3)
    video, found = train_step_one(config, borders)
    model = tiny.denoiser(dtype=torch.float64).requires_grad_(True)
    x = torch.cat([NOISE(span, 0) for span in borders], 1)
    first = x[:, :3] - model(x[:, :3], 1.0, TEXT, Full())
    keys = [{} for _ in range(model.spec.num_layers)]
    with torch.no_grad():
        context = Oracle(keys, [], "write", range(3), model.spec.rope_theta)
        model(x[:, :3], 1.0, TEXT, context)
        context.commit()
    past = Oracle(keys, range(3), "write", range(3, 6), model.spec.rope_theta)
    made = torch.cat((first, x[:, 3:] - model(x[:, 3:], 1.0, TEXT, past)), 1)
    assert tiny.error(video, made.detach()) < tolerance.EXACT
    assert worst(found, gradients(model, made)) < tolerance.EXACT


def train_step_one(config, borders):
    """Returns (video, gradients) of one step a chunk, from noise."""
    model = tiny.denoiser(dtype=torch.float64).train().requires_grad_(True)
    model.transformer.checkpointing = True
    video = tiny.video(rollout(config, model, (1.0,), training=True), TEXT, borders, NOISE)
    return video.detach(), gradients(model, video)


def test_same_step_keys_with_gradient_show(monkeypatch):
    """The twin: keys that are kept with their graph carry gradient from chunk to chunk."""
    _, wanted = train_step(CacheConfig(6, 2), False)

    def write(self, layer, plan, k, v):
        if self._own:
            self._own[layer] = (k, v)
        kept = [self._kept[layer][f] for f in plan.read]
        return tuple(torch.cat([pair[i] for pair in kept] + [new], 1) for i, new in enumerate((k, v)))

    monkeypatch.setattr(Chunks, "write", write)
    monkeypatch.setattr(Cached, "commit", lambda self: torch.enable_grad()(self.cache.commit)(self.plan))
    assert worst(train_step(CacheConfig(6, 2), False)[1], wanted) > 1e-3


def test_same_step_recompute_keeps_nothing(monkeypatch):
    """What backward computes again is not held by the views that it reads."""
    views, frozen = [], Chunks.frozen_view
    monkeypatch.setattr(Chunks, "frozen_view", lambda self, plan: views.append(frozen(self, plan)) or views[-1])
    train_step(CacheConfig(6, 2), True)
    assert any(view.ledger.config.content == "same_step" and not view._own for view in views)
    assert not any(entry for view in views for entry in view._own)
