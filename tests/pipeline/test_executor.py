"""Executors: a walk goes on where its state stands, and the steps of a chunk can be given to several processes."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch

from pipeline.executor import PlainExecutor
from pipeline.rollout import Chunk, Denoised
from pipeline.sampler import FewStep, MultiStep
from pipeline.solver import Solver
from pipeline.track import Fixed
from tests import tiny
from wan.ledger import CacheConfig
from wan.schedule import Schedule

BORDERS, TEXT, NOISE = tiny.spans(3, 3, 2, 3, 3), tiny.condition(), tiny.noise()
SAMPLERS = {
    "few_step": FewStep((1.0, 0.8, 0.5), Schedule(), 2.0),
    "unipc": MultiStep(Solver("unipc", 5, 3.0), 2.0),
    "dpm++": MultiStep(Solver("dpm++", 5, 3.0), 2.0),
    "euler": MultiStep(Solver("euler", 3, 3.0), 2.0),
}


def make_executor(sampler="few_step", content="same_step") -> PlainExecutor:
    rolls = tiny.rollout(tiny.denoiser(), CacheConfig(6, 2, content=content))
    return PlainExecutor(replace(rolls, sampler=SAMPLERS[sampler]))


@torch.no_grad()
def run(executor, state, **fields) -> list[Chunk]:
    return list(executor.run(state, Fixed(TEXT), BORDERS, NOISE, **fields))


@pytest.mark.parametrize("content", ["clean", "same_step"])
def test_executor_goes_on_where_the_state_stands(content):
    """An interrupted walk that gets all spans and all given chunks again yields what is missing."""
    executor = make_executor(content=content)
    given = [Chunk(BORDERS[0], tiny.latents(3), given=True)]
    state = tiny.start(executor.rollout, BORDERS)
    wanted = run(executor, state, given=given)
    assert [c.span for c in wanted] == BORDERS and [c.given for c in wanted] == [True, *[False] * 4]
    assert run(executor, state, given=given) == []
    for count in range(1, 4):
        state = tiny.start(executor.rollout, BORDERS)
        with torch.no_grad():
            for _, _ in zip(range(count), executor.run(state, Fixed(TEXT), BORDERS, NOISE, given), strict=False):
                pass
        more = run(executor, state, given=given)
        assert [c.span for c in more] == [span for span in BORDERS if span.start >= BORDERS[count].start]
        assert all(torch.equal(a.latents, b.latents) for a, b in zip(more[::-1], wanted[::-1], strict=False))


def shipped(message: dict) -> dict:
    """Returns what arrives in another process: tensors and numbers, no code."""
    file = io.BytesIO()
    torch.save(message, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@torch.no_grad()
def by_ranks(executor, hand_on: bool = True) -> torch.Tensor:
    """Returns the video when each step has a process of its own, with the cache of its step; what one hands on to the
    next are x and the state of the steps."""
    rollout = executor.rollout
    whole = tiny.start(rollout, BORDERS)
    ranks = [replace(whole, caches=[branches], latest=[]) for branches in whole.caches]
    condition, video = TEXT, []
    for span in BORDERS:
        message = {"x": NOISE(span, 0), "steps": {}}
        done = []
        for k, state in enumerate(ranks):
            message, steps = shipped(message), rollout.sampler.start()
            if hand_on:
                steps.load_state_dict(message["steps"])
            contexts = rollout.contexts(state, span, 1)
            (predict,) = rollout.predictors(condition.cut(span), contexts)
            x = rollout.sampler.step(k, message["x"], predict, lambda k, span=span: NOISE(span, k), steps)
            done.append((state, [message["x"]], contexts))
            message = {"x": x, "steps": steps.state_dict()}
        for state, inputs, contexts in done:
            rollout.commit(state, condition, span, Denoised(x, inputs, contexts), NOISE)
        video.append(x)
    return torch.cat(video, 1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_executor_steps_may_run_in_several_processes(sampler):
    executor = make_executor(sampler)
    wanted = torch.cat([c.latents for c in run(executor, tiny.start(executor.rollout, BORDERS))], 1)
    assert torch.equal(by_ranks(executor), tiny.healthy(wanted))


def test_executor_steps_without_their_state_show():
    executor = make_executor("unipc")
    assert tiny.error(by_ranks(executor, hand_on=False), by_ranks(executor)) > 1e-3
