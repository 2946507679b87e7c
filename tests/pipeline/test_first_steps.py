"""A video's first chunk may have steps of its own: in generation, in a training's exits, in what is exported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.config import BidirectionalConfig, FewStepConfig, InferConfig, MultiStepConfig
from pipeline.executor import PlainExecutor
from pipeline.rollout import Chunk, Rollout
from pipeline.sampler import FewStep, RandomExit
from pipeline.state import pack, unpack
from pipeline.track import Fixed
from scripts import benchmark
from scripts.experiments import objectives_results, recipes
from tests import avatar_fixture as avatar
from tests import tiny
from trainer.sources.config import RolloutConfig
from trainer.sources.rollout import Generating
from utils.config.field import check
from utils.config.text import to_dict
from utils.media.audio import ArraySound
from utils.rng import Rng
from wan.generation import GenerationConfig, StepsConfig
from wan.geometry import Span
from wan.ledger import CacheConfig
from wan.schedule import Schedule, step_sigmas

LATER, FIRST = (1000.0, 500.0), (1000.0, 800.0, 600.0, 400.0, 200.0)
STEPS = StepsConfig(LATER, 3.0, first_steps=FIRST)
CACHE = CacheConfig(window_frames=6, sink_frames=1)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


class Counting:
    """A denoiser that notes (first frame of the chunk, sigma) of each pass."""

    def __init__(self):
        self.inner, self.passes = tiny.denoiser(), []

    def __call__(self, x, sigma, condition, context):
        self.passes.append((context.plan.span.start, round(float(torch.as_tensor(sigma).flatten()[0]), 6)))
        return self.inner(x, sigma, condition, context)

    def __getattr__(self, name):
        return getattr(self.inner, name)


def rollout(denoiser, steps=STEPS) -> Rollout:
    few = FewStepConfig().build(steps)
    return Rollout(denoiser, few, tiny.GEOMETRY, cache=CACHE, dtype=tiny.DTYPE)


def test_the_first_chunk_walks_its_own_steps():
    denoiser, spans = Counting(), tiny.spans(2, 2, 2)
    tiny.video(rollout(denoiser), tiny.condition(), spans, tiny.noise())
    sigmas = {span.start: [s for start, s in denoiser.passes if start == span.start][:-1] for span in spans}
    first, later = (step_sigmas(steps, 3.0, True) for steps in (FIRST, LATER))
    assert sigmas[0] == pytest.approx(first, abs=1e-5)
    assert sigmas[2] == sigmas[4] == pytest.approx(later, abs=1e-5)


def test_the_later_chunks_walk_as_without_them():
    """From the same first chunk the same video follows."""
    spans, condition, noise = tiny.spans(2, 2, 2), tiny.condition(), tiny.noise()
    rolls = rollout(tiny.denoiser())
    whole = tiny.video(rolls, condition, spans, noise)
    plain = rollout(tiny.denoiser(), StepsConfig(LATER, 3.0))
    given = [Chunk(spans[0], whole[:, :2], given=True)]
    rest = torch.cat([c.latents for c in tiny.generate(plain, Fixed(condition), spans[1:], noise, given=given)], 1)
    assert torch.equal(whole, rest)
    assert tiny.error(whole, tiny.video(plain, condition, spans, noise)) > 0.01, "the first chunk is another"


def test_a_given_start_takes_no_first_steps():
    denoiser, spans = Counting(), tiny.spans(2, 2)
    given = [Chunk(spans[0], tiny.latents(2), given=True)]
    list(tiny.generate(rollout(denoiser), Fixed(tiny.condition()), spans[1:], tiny.noise(), given=given))
    assert len([1 for start, _ in denoiser.passes if start == 2]) == len(LATER) + 1


def test_a_state_goes_on_between_the_first_chunk_and_the_next():
    spans, condition, noise, rolls = tiny.spans(2, 2), tiny.condition(), tiny.noise(), rollout(tiny.denoiser())
    whole = tiny.video(rolls, condition, spans, noise)
    state = tiny.start(rolls, spans)
    executor = PlainExecutor(rolls)
    first = executor.generate_chunk(state, Fixed(condition), spans[0], noise)
    state, _ = unpack(pack(state, None, 0, "cpu"), rolls, condition, "cpu")
    second = executor.generate_chunk(state, Fixed(condition), spans[1], noise)
    assert torch.equal(torch.cat((first.latents, second.latents), 1), whole)


@pytest.mark.parametrize("exit_step", range(len(FIRST)))
def test_a_training_exits_on_the_first_chunks_steps(exit_step):
    few = FewStepConfig().build(STEPS)
    sampler = RandomExit(few, {Span(0, 2): exit_step, Span(2, 4): 1}.__getitem__)
    assert sampler.at(Span(0, 2)).sigmas == few.first_sigmas[: exit_step + 1]
    assert sampler.at(Span(2, 4)).sigmas == few.sigmas


def source(steps=STEPS, **knobs) -> Generating:
    made = Generating.__new__(Generating)
    knobs = {"exit_per_chunk": False, "last_step_only": False} | knobs
    made.config, made.generation = SimpleNamespace(**knobs), GenerationConfig(2, steps=steps)
    return made


@pytest.mark.parametrize("per_chunk", [False, True])
def test_exits_of_the_later_chunks_do_not_depend_on_the_first(per_chunk):
    """Recipes without first_steps draw what they drew; the first chunk draws from its own list."""
    rng, firsts = Rng(3), set()
    for step in range(60):
        plain = source(StepsConfig(LATER, 3.0), exit_per_chunk=per_chunk).exits(step, 4, rng, first=True)
        own = source(exit_per_chunk=per_chunk).exits(step, 4, rng, first=True)
        assert own[1:] == plain[1:] and source(exit_per_chunk=per_chunk).exits(step, 4, rng) == plain
        firsts.add(own[0])
    assert firsts == set(range(len(FIRST)))
    assert source(last_step_only=True).exits(0, 3, rng, first=True) == [4, 1, 1]


def test_the_range_of_a_score_is_that_of_the_later_chunks():
    made = source()
    assert made.exit_range([3, 1, 1], first=True) == (500, 0) == made.exit_range([1, 1])
    assert made.exit_range([3, 1, 0], first=True) is None
    assert made.exit_range([3], first=True) == (400, 200)
    assert source(StepsConfig(LATER)).exit_range([0, 0], first=True) == (1000, 500)


def test_it_is_written_and_read_with_the_weights():
    config = GenerationConfig(2, steps=STEPS)
    assert json.loads(json.dumps(to_dict(config)))["steps"]["first_steps"] == list(FIRST)
    few = FewStepConfig(guidance=2.0).build(STEPS)
    assert few.at(Span(0, 2)).guidance == 2.0 and few.num_steps == 2
    assert FewStep((1.0,), Schedule()).at(Span(0, 1)).sigmas == (1.0,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (StepsConfig(LATER, first_steps=(500.0, 800.0)), "first_steps .* must descend"),
        (StepsConfig(LATER, first_steps=(1200.0,)), "first_steps.0 is 1200.0; write"),
        (StepsConfig(first_steps=(1000.0,)), "steps are empty"),
        (
            GenerationConfig(steps=STEPS, cache=CacheConfig(content="same_step")),
            "same_step: a cache for each of the steps; write generation.steps.first_steps=..",
        ),
    ],
)
def test_wrong_steps_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        check(config)


def test_a_rollout_source_takes_them():
    assert [
        *RolloutConfig(prompts="p.txt", frames=6, loss_frames=6).problems_with(GenerationConfig(2, steps=STEPS))
    ] == []


def test_a_clip_made_as_one_piece_refuses_them_by_name():
    """A bidirectional video has no later chunks; a solver does not read the list."""
    few = InferConfig(pipeline=BidirectionalConfig(), generation=GenerationConfig(2, steps=STEPS))
    with pytest.raises(ValueError, match=r"write generation\.steps\.first_steps=\[\]"):
        check(few)
    few.sampler = MultiStepConfig()
    check(few)


def test_the_first_of_an_avatars_clips_walks_them(monkeypatch):
    """Each clip is a chunk, and the first one has no motion behind it."""
    walked, plain = [], FewStep.step
    monkeypatch.setattr(FewStep, "step", lambda self, k, *rest: walked.append(self.sigmas[k]) or plain(self, k, *rest))
    made = avatar.pipeline(GenerationConfig(steps=replace(avatar.GENERATION.steps, eta=0)), clip_frames=6)
    few = FewStepConfig().build(STEPS)
    made.sampler = few
    sounds = [[ArraySound(avatar.sound(), 16_000)]]
    condition = replace(avatar.bundle().condition(["a red three"], None), key="a red three")
    track = made.voice(condition, avatar.portrait()[None], sounds, 8, None).track
    list(made.generate(track, tiny.noise(geometry=made.geometry), 1, 12))
    assert walked == [*few.first_sigmas, *few.sigmas]


def test_a_benchmark_counts_them():
    assert benchmark.count_passes(FewStepConfig(guidance=2.0).build(STEPS)) == (
        "2 + 1 context (first chunk 5 + 1), twice (guidance)"
    )
    assert benchmark.count_passes(FewStepConfig().build(StepsConfig(LATER))) == "2 + 1 context"
    assert benchmark.count_passes(MultiStepConfig(num_steps=7, guidance=1.0).build(STEPS)) == "7 + 1 context"


def test_a_cpu_is_spared_a_first_chunk_of_many_steps(monkeypatch):
    monkeypatch.setattr(benchmark, "CPU_LIMIT", 2e9)
    config = InferConfig(generation=GenerationConfig(3, steps=STEPS, cache=CacheConfig(12)), sampler=FewStepConfig())
    config.model.spec, args = "digits", SimpleNamespace(windows=None, layers=None)
    config.generation.steps = StepsConfig((1000.0,))
    assert benchmark.cpu_excess(args, config) == ""
    config.generation.steps = StepsConfig((1000.0,), first_steps=tuple(1000.0 - n for n in range(100)))
    assert "tera-operations per chunk need a CUDA device" in benchmark.cpu_excess(args, config)


def test_a_table_shows_them():
    record = {"sampler": {"steps": 4, "first_steps": 8, "guidance": 1.0}, "metrics": {}, "frechet": {}, "drift": {}}
    assert objectives_results.quality_cells("dmd", [{"1x": record}])[0] == "4 (first 8)"
    del record["sampler"]["first_steps"]
    assert objectives_results.quality_cells("dmd", [{"1x": record}])[0] == "4"


def test_the_facts_of_a_sampler_name_them(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("generation: {steps: {steps: [1000, 500], first_steps: [1000, 750, 500]}}\n")
    facts = recipes.sampler_facts(recipe, Path("assets/digits/transformer"), ["model.path=assets/digits"])
    assert facts == {"steps": 2, "first_steps": 3, "guidance": 1.0}
