"""Same-step caches: K steps over K caches equal the same K steps written out, with recaches, gradients and forks."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import mask_problems
from pipeline.executor import PlainExecutor
from pipeline.rollout import Chunk, Rollout
from pipeline.sampler import MultiStep
from pipeline.solver import Solver
from pipeline.track import Fixed, PromptSchedule, Track
from tests import tiny, tolerance
from tests.contract.oracle import Book, Oracle, Window, again, at
from tests.examples import same_step
from trainer.sources.config import RolloutConfig, StreamConfig
from wan.generation import ContextConfig, GenerationConfig, StepsConfig
from wan.geometry import Span
from wan.ledger import CacheConfig

FP64, BY_FRAME = (tiny.denoiser(dtype=torch.float64, in_dim=channels) for channels in (4, 8))
SIGMAS = (1.0, 0.8, 0.5)
LENGTHS = [3, 3, 2, 3, 3, 1, 3]
NOISE, TEXT = tiny.noise(dtype=torch.float64), tiny.condition(dtype=torch.float64)


def rollout(config, model=FP64, sigmas=SIGMAS, **fields) -> Rollout:
    return tiny.rollout(model, replace(config, content="same_step"), sigmas, **fields)


@pytest.mark.parametrize(("window", "sink"), [(-1, 0), (9, 2), (6, 0), (3, 0)])
def test_same_step_example_equals_written_out(window, sink):
    borders = tiny.spans(*LENGTHS)
    made = same_step.generate(FP64, TEXT, borders, NOISE, SIGMAS, tiny.GEOMETRY, window, sink)
    wanted = same_step.written_out(FP64, TEXT, borders, NOISE, SIGMAS, window, sink)
    assert tiny.error(made, tiny.healthy(wanted)) < tolerance.EXACT


@torch.no_grad()
def play(model, texts, spans, noise, sigmas, config, chunk: int, given=None) -> torch.Tensor:
    """Returns the video of K steps over K stores that drop nothing; texts: number of a chunk -> condition from then."""
    theta, layers = model.spec.rope_theta, range(model.spec.num_layers)
    stores, inputs, video = [[{} for _ in layers] for _ in sigmas], [[] for _ in sigmas], []
    window = Window(Book(config.window_frames, config.sink_frames, chunk))

    def step(k, x, frames, seen):
        context = Oracle(stores[k], seen, config.rope, frames, theta)
        return context, model(x, sigmas[k], at(condition, frames), context)

    def show(k):
        return lambda x, frames, seen: step(k, x, frames, seen)[0].commit()

    for number, span in enumerate(spans):
        if number in texts:
            condition = texts[number]
            if number and config.recache == "causal":
                sink, before = "keep" if config.keep_sink else "drop", window
                for k in range(len(sigmas)):
                    window = copy.deepcopy(before)
                    again(window, torch.cat(inputs[k], 1), spans[:number], "causal", sink, 0, show(k))
        x, frames, contexts = noise(span, 0), range(span.start, span.stop), []
        for k, sigma in enumerate(sigmas):
            if given is not None and not number:
                x = (1 - sigma) * given + sigma * noise(span, k)
            inputs[k].append(x)
            context, velocity = step(k, x, frames, window.seen())
            contexts.append(context)
            x0 = x - sigma * velocity
            if k + 1 < len(sigmas):
                x = (1 - sigmas[k + 1]) * x0 + sigmas[k + 1] * noise(span, k + 1)
        for context in contexts:
            context.commit()
        window.add(span)
        video.append(given if given is not None and not number else x0)
    return torch.cat(video, 1)


def both_videos(config, lengths, switches=(), given_frames=0, by_frame=False, **fields):
    """Returns the rollout's video and the one written out."""
    model, borders = BY_FRAME if by_frame else FP64, tiny.spans(*lengths)
    texts = [tiny.condition(1, seed, torch.float64) for seed in range(len(switches) + 1)]
    if by_frame:
        channels = [tiny.latents(sum(lengths), 1, 50 + n, torch.float64) for n in range(len(texts))]
        texts = [replace(text, channels=own) for text, own in zip(texts, channels, strict=True)]
    start = tiny.latents(lengths[0], dtype=torch.float64) if given_frames else None
    by_number = dict(zip((0, *switches), texts, strict=True))
    wanted = play(model, by_number, borders, NOISE, SIGMAS, config, max(lengths), start)
    cues = [(borders[n].start, text) for n, text in by_number.items()]
    first = [Chunk(borders[0], start, given=True)] if given_frames else []
    rolls = rollout(config, model, **fields)
    with torch.no_grad():
        made = list(tiny.generate(rolls, PromptSchedule(cues), borders[len(first) :], NOISE, given=first))
    return torch.cat([chunk.latents for chunk in made], 1), tiny.healthy(wanted)


@st.composite
def videos(draw):
    """Returns (config, chunk lengths, numbers of the chunks that begin with another condition)."""
    chunk, sink, history = draw(st.integers(1, 3)), draw(st.integers(0, 4)), draw(st.integers(0, 4))
    window = draw(st.sampled_from([-1, sink + chunk + history, sink + chunk + history]))
    lengths = draw(st.permutations([chunk, *draw(st.lists(st.integers(1, chunk), min_size=3, max_size=5))]))
    switches = draw(st.sets(st.integers(1, len(lengths) - 1), max_size=2))
    rope, kind = draw(st.sampled_from(["write", "read"])), draw(st.sampled_from(["causal", "none"]))
    return CacheConfig(window, sink, rope, kind, draw(st.booleans())), list(lengths), tuple(sorted(switches))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(video=videos(), given_frames=st.booleans(), training=st.booleans(), by_frame=st.booleans())
def test_same_step_rollout_equals_written_out(video, given_frames, training, by_frame):
    """Any window, sink, rotation and storage; with prompt switches, given frames, a condition of its own per frame."""
    made, wanted = both_videos(*video, given_frames, by_frame, training=training)
    assert tiny.error(made, wanted) < tolerance.EXACT


def share_first_cache(monkeypatch):
    """All steps read the first one's cache, as a single cache for all steps would have it."""
    predictors = Rollout.predictors
    monkeypatch.setattr(Rollout, "predictors", lambda self, c, contexts: predictors(self, c, [contexts[0]] * 3))


def recache_first_input(monkeypatch):
    """A recache that runs every step's pass on the chunk's noise."""
    recompute = Rollout._recompute

    def wrong(self, state, step, *rest):
        latest = [replace(chunk, inputs=(chunk.inputs[0],) * 3) for chunk in state.latest]
        recompute(self, replace(state, latest=latest), step, *rest)

    monkeypatch.setattr(Rollout, "_recompute", wrong)


@pytest.mark.parametrize("mutate", [share_first_cache, recache_first_input])
def test_same_step_mutations_show(mutate, monkeypatch):
    case = CacheConfig(9, 2), LENGTHS, (3, 5)
    assert tiny.error(*both_videos(*case)) < tolerance.EXACT
    mutate(monkeypatch)
    assert tiny.error(*both_videos(*case)) > 1e-3


@torch.no_grad()
def test_same_step_differs_from_clean():
    clean = tiny.video(tiny.rollout(FP64, CacheConfig(9, 2), SIGMAS), TEXT, tiny.spans(*LENGTHS), NOISE)
    made = tiny.video(rollout(CacheConfig(9, 2)), TEXT, tiny.spans(*LENGTHS), NOISE)
    assert torch.equal(made[:, :3], clean[:, :3]) and tiny.error(made[:, 3:], clean[:, 3:]) > 1e-2


class Noted:
    """A denoiser that notes the span and sigma of each pass."""

    def __init__(self):
        self.spec, self.cache_heads, self.calls = FP64.spec, FP64.cache_heads, []
        self.pinned_runs, self.pinned_tokens, self.frame_tokens = (
            FP64.pinned_runs,
            FP64.pinned_tokens,
            FP64.frame_tokens,
        )

    def __call__(self, x, sigma, condition, context):
        self.calls.append((context.plan.span.start, sigma))
        return FP64(x, sigma, condition, context)

    def parameters(self):
        return FP64.parameters()


def test_same_step_runs_no_context_pass():
    rolls = replace(rollout(CacheConfig(9, 2), guidance=2.0), denoiser=Noted())
    with torch.no_grad():
        tiny.video(rolls, TEXT, tiny.spans(3, 3), NOISE)
    assert rolls.denoiser.calls == [(start, sigma) for start in (0, 3) for sigma in SIGMAS for _ in range(2)]


@pytest.mark.parametrize("kind", ["unipc", "euler"])
@torch.no_grad()
def test_same_step_guided_solver_runs_on_its_caches(kind):
    """Guided by a null text equal to the text, the video is that without guidance: both branches have K caches."""
    same, videos = replace(TEXT, null_text=TEXT.text, key="same"), []
    for w in (1.0, 3.0):
        rolls = replace(rollout(CacheConfig(9, 2)), sampler=MultiStep(Solver(kind, 4, 3.0), w))
        assert [len(branches) for branches in tiny.start(rolls, tiny.spans(3)).caches] == [1 if w == 1 else 2] * 4
        videos.append(tiny.video(rolls, same, tiny.spans(3, 3, 3, 3), NOISE))
    assert tiny.error(videos[0], tiny.healthy(videos[1])) < tiny.rounding(passes=16)  # the solvers compute in fp32


class Interrupted(Track):
    """A track that asks for a restart once, before step `at` of the chunk at `frame`; then calls `then`."""

    def __init__(self, at: int, then):
        self.asked, self.at_step, self.then = 0, at, then

    def at(self, span):
        return TEXT

    def preempt_requested(self):
        self.asked += 1
        if self.asked == self.at_step:
            self.then()
        return self.asked == self.at_step


def list_caches(state) -> list[torch.Tensor]:
    """Returns all committed keys and values."""
    return [t for branches in state.caches for cache in branches for t in cache.snapshot().values()]


@pytest.mark.parametrize("training", [False, True], ids=["ring", "chunks"])
@pytest.mark.parametrize("step", [1, 2])
def test_same_step_chunk_can_be_dropped_and_forked(step, training):
    """At any step nothing is committed yet: a restart, and a fork taken there, make the video that never stopped."""
    rolls, borders, forks = rollout(CacheConfig(6, 2), training=training), tiny.spans(3, 3, 3, 3), []
    executor, state = PlainExecutor(rolls), tiny.start(rolls, borders)
    with torch.no_grad():
        wanted = [chunk.latents for chunk in tiny.generate(rolls, Fixed(TEXT), borders, NOISE)]
        list(executor.run(state, Fixed(TEXT), borders[:2], NOISE))
        before = list_caches(state)

        def during():
            assert all(torch.equal(a, b) for a, b in zip(before, list_caches(state), strict=True))
            forks.append(state.fork())

        made = list(executor.run(state, Interrupted(step, during), borders[2:], NOISE))
        forked = list(executor.run(forks[0], Fixed(TEXT), borders[2:], NOISE))
    for chunks in (made, forked):
        assert all(torch.equal(c.latents, x) for c, x in zip(chunks, wanted[2:], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, list_caches(state), strict=True))


def test_same_step_commit_before_the_end_shows(monkeypatch):
    """The twin: a step that commits at once is refused where the chunk is restarted."""
    predictors = Rollout.predictors

    def hasty(self, condition, contexts):
        made = predictors(self, condition, contexts)

        def first(x, sigma):
            velocity = made[0](x, sigma)
            contexts[0][0].commit()
            return velocity

        return [first, *made[1:]]

    monkeypatch.setattr(Rollout, "predictors", hasty)
    rolls, borders = rollout(CacheConfig(6, 2)), tiny.spans(3, 3)
    with torch.no_grad(), pytest.raises(ValueError, match="does not start at the next frame"):
        list(tiny.generate(rolls, Interrupted(1, lambda: None), borders, NOISE))


@pytest.mark.parametrize("window", [-1, 12])
def test_same_step_recache_of_the_same_text_changes_no_bit(window):
    """All frames are still there, so every pass of the recache is a pass that was run before."""
    rolls, borders = rollout(CacheConfig(window, 2)), tiny.spans(3, 3, 3)
    state = tiny.start(rolls, borders)
    with torch.no_grad():
        list(PlainExecutor(rolls).run(state, Fixed(TEXT), borders, NOISE))
        before = list_caches(state)
        assert rolls.set_condition(state, replace(TEXT, key="again")) is not None
        after = list_caches(state)
        rolls.set_condition(state, tiny.condition(1, 1, torch.float64))
    assert len(before) == 2 * len(SIGMAS) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    moved = [tiny.error(a, b) for a, b in zip(after, list_caches(state), strict=True)]
    assert min(moved) > 1e-3, "another text reaches the cache of every step"


SAME_STEP = CacheConfig(content="same_step")
GENERATION = GenerationConfig(cache=SAME_STEP, steps=StepsConfig((1000.0, 500.0)))


@pytest.mark.parametrize(
    ("problems", "words"),
    [
        (CacheConfig(content="noisy").problems(), "cache.content is 'noisy'; write one of clean, same_step"),
        (CacheConfig(content="same_step", recache="bidirectional").problems(), "chunk by chunk; write causal or none"),
        (CacheConfig(content="same_step", recache="reset").problems(), "cache.recache reset: .*write causal or none"),
        (GenerationConfig(cache=SAME_STEP, context=ContextConfig(0.1)).problems(), "no context pass runs; leave out"),
        (RolloutConfig("x", exit_per_chunk=True).problems_with(GENERATION), "write exit_per_chunk=false"),
        (StreamConfig("x").problems_with(GENERATION), "write last_step_only=true"),
        (mask_problems(SAME_STEP), "write content: clean"),
    ],
)
def test_same_step_config_is_refused(problems, words):
    (problem,) = problems
    assert re.search(words, problem)


@pytest.mark.parametrize(
    "source",
    [
        RolloutConfig("x", exit_per_chunk=True, last_step_only=True),
        RolloutConfig("x"),
        StreamConfig("x", last_step_only=True),
    ],
)
def test_same_step_config_is_accepted(source):
    assert [*GENERATION.problems(), *source.problems(), *source.problems_with(GENERATION)] == []


def test_same_step_memory_is_bounded():
    """A video ten times as long remembers as many inputs."""
    rolls, borders, held = rollout(CacheConfig(9, 2)), tiny.spans(*[3] * 10), []
    state = tiny.start(rolls, borders)
    with torch.no_grad():
        for _ in PlainExecutor(rolls).run(state, Fixed(TEXT), borders, NOISE):
            held.append(sum(x.shape[1] for chunk in state.latest for x in chunk.inputs))
    assert held[-1] == held[3] == len(SIGMAS) * 9 and state.next_frame == Span(0, 30).stop
