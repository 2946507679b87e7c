"""Paths of a student: they are the pipeline's own, one serves both updates, and the gradient is one call."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import BidirectionalConfig, CausalConfig
from pipeline.executor import PlainExecutor
from pipeline.rollout import Rollout, guided
from pipeline.sampler import sample
from pipeline.track import Fixed
from tests import tiny, tolerance
from tests.float64 import fp32_is_float64
from tests.trainer import stream_fixture
from trainer.build import build
from trainer.config import load_recipe
from utils.rng import Rng
from wan.context import Full
from wan.geometry import Span

RNG = Rng(5)
SOURCE = "trainer.source={{name: trajectory, mode: {}, prompts: {}, batch: 3, frames: 4, height: 32, width: 32}}"
GENERATION = (
    "generation={{chunk: 2, steps: {{steps: [1000, 700, 400], shift: 3.0, eta: {}}}, cache: {{window_frames: 4}}}}"
)


def overrides(recipe, mode: str, eta: float = 0.6) -> list[str]:
    loss = "trainer.loss={name: tdm, low: 0.05}"
    return [SOURCE.format(mode, recipe.parent / "prompts.txt"), GENERATION.format(eta), loss]


@pytest.fixture(params=["bidirectional", "causal"])
def mode(request):
    return request.param


@pytest.fixture
def method(distill_recipe, mode):
    """A training of two one-block networks."""
    with fp32_is_float64():
        yield stream_fixture.build(distill_recipe[0], overrides(distill_recipe[0], mode))


def watched(method, monkeypatch) -> list[tuple]:
    """Returns the calls of the generator to come: (sigma, whether with gradient, whether it was a whole clip)."""
    calls, forward = [], type(method.roles.generator).forward

    def noted(self, x, sigma, condition, context, *more):
        out = forward(self, x, sigma, condition, context, *more)
        if self is method.roles.generator:
            calls.append((sigma, out.requires_grad, isinstance(context, Full)))
        return out

    monkeypatch.setattr(type(method.roles.generator), "forward", noted)
    return calls


def inferred(method, sample_of):
    """Returns the video that generation makes of the sample's prompts and noise, by its own storage of keys."""
    source, roles = method.source, method.roles
    geometry = source.geometry(roles)
    noise = source.noise(sample_of.step // 2, sample_of.index, geometry, RNG)
    if source.config.bidirectional:
        span, predict = Span(0, 4), guided(roles.generator, sample_of.condition, [Full()], 1.0)
        return sample(source.few_steps(), noise(span, 0), predict, lambda k: noise(span, k))
    rollout = Rollout(roles.generator, source.few_steps(), geometry, method.generation.cache, dtype=tiny.DTYPE)
    state = rollout.start(3, 2, 4)
    made = PlainExecutor(rollout).run(state, Fixed(sample_of.condition), source.spans, noise)
    return torch.cat([chunk.latents for chunk in made], 1)


@torch.no_grad()
def test_the_path_is_that_of_generation(method, monkeypatch):
    monkeypatch.setattr(tiny, "DTYPE", torch.float64)
    monkeypatch.setattr(type(method.source), "draw_steps", lambda self, step, rng, index: [2] * len(index))
    last = method.source.next(0, method.roles, RNG, with_grad=False)
    video = inferred(method, last)
    assert tolerance.EXACT > (last.latents - video).abs().max()
    assert video.std() > 0.1 and last.interval.end.tolist() == [0.0] * 3


def test_the_gradient_is_one_call_and_the_critic_walks_no_path(method, mode, monkeypatch):
    calls = watched(method, monkeypatch)
    made = method.source.next(4, method.roles, RNG)
    grad_step = [call for call in calls if call[1]]
    if mode == "bidirectional":
        assert [call[1] for call in calls] == [False] * 3 + [True] and all(whole for *_, whole in calls)
        assert torch.equal(grad_step[0][0], made.interval.start)
    else:
        step = method.source.draw_steps(4, RNG, made.index)[0]
        one = [k == step for k in range(3)] + [False]  # the steps of a chunk, then its context pass
        assert [call[1] for call in calls] == one * 2
    assert made.latents.requires_grad and not made.interval.x.requires_grad
    calls.clear()
    seen = method.source.next(5, method.roles, RNG, with_grad=False)
    assert calls == [] and not seen.latents.requires_grad and seen.index == made.index
    method.source.next(7, method.roles, RNG, with_grad=False)
    assert calls and not any(call[1] for call in calls), "a critic's step without a generator's walks its own"


def test_a_drawn_step_leads_on_where_the_path_does(method, mode):
    """x of the next step = the end of the interval, by the loss's formula; x0 with gradient = that without."""
    source, roles = method.source, method.roles
    made = {}
    for k in range(3):
        source.draw_steps = lambda step, rng, index, k=k: [k] * len(index)
        made[k] = source.next(0, roles, RNG)
        critic = source.next(1, roles, RNG, with_grad=False)
        assert tolerance.EXACT > (made[k].latents - critic.latents).abs().max()
        assert torch.equal(made[k].interval.x, critic.interval.x)
    for k in (0, 1):
        noise = source.noise(0, made[k].index, source.geometry(roles), RNG)
        fresh = torch.cat([noise(span, k + 1) for span in source.spans], 1)
        step, x0, clock = made[k].interval, made[k].latents.detach(), source.few.schedule
        mixed = clock.noise_of(step.x, x0, step.start, 0.6, lambda fresh=fresh: fresh)
        assert tolerance.EXACT > (clock.diffuse(x0, mixed, step.end) - made[k + 1].interval.x).abs().max()
        assert torch.equal(step.end, made[k + 1].interval.start)


def test_each_sample_has_its_own_step_or_all_share_one(method, mode):
    drawn = [method.source.draw_steps(step, RNG, range(3 * step, 3 * step + 3)) for step in range(30)]
    assert {k for steps in drawn for k in steps} == {0, 1, 2}
    assert any(len(set(steps)) > 1 for steps in drawn) == (mode == "bidirectional")
    part = method.source.draw_steps(4, RNG, range(13, 15))
    assert part == drawn[4][1:], "a part of the batch draws what the whole does"


def gradient(recipe, mode, *more):
    """Returns losses and gradients of both updates of a step."""
    method = stream_fixture.build(recipe, [*overrides(recipe, mode), *more])
    found = []
    for step, loss in ((0, method.loss), (1, method.loss.critic)):
        taken = method.source.next(step, method.roles, RNG, with_grad=not step)
        value, _ = loss(taken, method.roles, RNG)
        value.backward()
        network = method.roles.critic if step else method.roles.generator
        found += [value.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]
    return found


def test_checkpointing_changes_nothing(distill_recipe, mode):
    with fp32_is_float64():
        plain = gradient(distill_recipe[0], mode)
        again = gradient(
            distill_recipe[0], mode, "trainer.generator.checkpointing=true", "trainer.critic.checkpointing=true"
        )
    assert len(plain) == len(again) and max(p.abs().max() for p in plain[1:]) > 1e-4
    assert max((a - b).abs().max() for a, b in zip(plain, again, strict=True)) < tolerance.EXACT


def test_only_the_drawn_step_of_a_causal_path_has_gradient(distill_recipe):
    method = stream_fixture.build(distill_recipe[0], overrides(distill_recipe[0], "causal"))
    source, roles = method.source, method.roles
    walk = source.walk(0, roles, RNG, range(3), roles.condition(["a red three moves right"] * 3), 1)
    carries = [[states.requires_grad for states in walk.kept(k)] for k in range(3)]
    assert carries == [[False, False], [False, True], [False, False]]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("generation.steps.steps=[1000]", "2 or more steps"),
        ("generation.steps.steps=[]", "needs generation.steps.steps"),
        ("generation.steps.steps=[500, 1000]", "must descend"),
        ("generation.steps.eta=1.2", "eta is 1.2"),
        ("generation.steps.first_steps=[1000, 500]", "first_steps="),
        ("trainer.source.mode=chunks", "bidirectional or causal"),
        ("trainer.source.frames=5", "5 latent frames|fill"),
        ("trainer.source.prompts=", "prompts is empty"),
        ("trainer.source={name: rollout, prompts: x.txt, frames: 4, loss_frames: 4}", "source.name=trajectory"),
    ],
)
def test_refused_before_a_network_is_built(distill_recipe, more, why):
    with pytest.raises(ValueError, match=why):
        load_recipe(distill_recipe[0], [*overrides(distill_recipe[0], "causal"), more])


def test_a_path_of_whole_clips_needs_no_chunks(distill_recipe):
    recipe = distill_recipe[0]
    config, _ = load_recipe(recipe, [*overrides(recipe, "bidirectional"), "trainer.source.frames=5", "preview.every=1"])
    assert isinstance(config.preview.requested(config).pipeline, BidirectionalConfig)
    causal, _ = load_recipe(recipe, [*overrides(recipe, "causal"), "preview.every=1"])
    assert isinstance(causal.preview.requested(causal).pipeline, CausalConfig)


def test_a_run_goes_on_to_the_bit(distill_recipe, mode, tmp_path):
    """No path outlives a step, so a checkpoint holds none."""
    given = [*overrides(distill_recipe[0], mode), "checkpoint.every=2", "log_every=1"]
    whole, first, second = (
        build(load_recipe(distill_recipe[0], [*given, f"steps={steps}"])[0], tmp_path / name)
        for name, steps in (("whole", 4), ("parts", 2), ("parts", 4))
    )
    whole.fit()
    first.fit()
    assert second.resume() == 2
    second.fit()
    a, b = (dict(loop.method.roles.generator.named_parameters()) for loop in (whole, second))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole.method.source.cursor() == second.method.source.cursor() == {"step": 8, "sample": 12}
