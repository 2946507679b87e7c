"""Videos whose prompt switches, with each kind of recache, against the oracle that drops nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.executor import PlainExecutor
from pipeline.rollout import Rollout
from pipeline.state import RolloutState
from pipeline.track import Fixed, PromptSchedule
from tests import tiny, tolerance
from tests.contract.oracle import Book, play
from wan.ledger import RECACHES, CacheConfig

KINDS = RECACHES
FP64 = tiny.denoiser(dtype=torch.float64)
BY_FRAME = tiny.denoiser(dtype=torch.float64, in_dim=8)


@st.composite
def videos(draw):
    """Returns (config, chunk lengths, numbers of the chunks that begin with another condition)."""
    chunk, sink, history = draw(st.integers(1, 3)), draw(st.integers(0, 5)), draw(st.integers(0, 4))
    window = draw(st.sampled_from([-1, sink + chunk + history, sink + chunk + history]))
    lengths = draw(st.permutations([chunk, *draw(st.lists(st.integers(1, chunk), min_size=3, max_size=5))]))
    switches = draw(st.sets(st.integers(1, len(lengths) - 1), min_size=1, max_size=3))
    rope, kind = draw(st.sampled_from(["write", "read"])), draw(st.sampled_from(KINDS))
    return CacheConfig(window, sink, rope, kind, draw(st.booleans())), list(lengths), sorted(switches)


def both_videos(config, lengths, switches, batch=1, guidance=1.0, by_frame=False, **fields):
    """Returns the video over the project's cache, and the oracle's, in float64.

    by_frame: the conditions differ from frame to frame too, by channels that are joined to the latents.
    """
    borders, noise, model = tiny.spans(*lengths), tiny.noise(batch, dtype=torch.float64), BY_FRAME if by_frame else FP64
    texts = [tiny.condition(batch, seed, torch.float64) for seed in range(len(switches) + 1)]
    if by_frame:
        channels = [tiny.latents(sum(lengths), batch, 50 + n, torch.float64) for n in range(len(texts))]
        texts = [replace(text, channels=own) for text, own in zip(texts, channels, strict=True)]
    book = Book(config.window_frames, config.sink_frames, max(lengths))
    kind = f"{config.recache},{'keep' if config.keep_sink else 'drop'},{config.recache_frames}"
    later = dict(zip(switches, texts[1:], strict=True))
    wanted = play(model, texts[0], borders, noise, tiny.SIGMAS, book, config.rope, switches=later, recache=kind)
    cues = [(0, texts[0]), *((borders[n].start, text) for n, text in later.items())]
    with torch.no_grad():
        rolls = tiny.rollout(model, config, guidance=guidance, **fields)
        made = list(tiny.generate(rolls, PromptSchedule(cues), borders, noise, batch))
    assert [c.recache_seconds is not None for c in made] == [n in later for n in range(len(borders))]
    return torch.cat([c.latents for c in made], 1), tiny.healthy(wanted)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(video=videos(), batch=st.integers(1, 2), training=st.booleans())
def test_recache_equals_oracle(video, batch, training):
    given_video, wanted = both_videos(*video, batch, training=training)
    assert tiny.error(given_video, wanted) < tolerance.EXACT


LENGTHS, SWITCHES = [3, 3, 2, 3, 3, 1, 3], [3, 5]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(video=videos(), beyond=st.integers(0, 4), training=st.booleans())
def test_recache_reads_condition_of_its_frames(video, beyond, training):
    """With a condition that differs in each frame, and a recache that reaches beyond the window too."""
    config, lengths, switches = video
    if config.window_frames != -1:
        config = replace(config, recache_frames=config.window_frames + beyond)
    made, wanted = both_videos(config, lengths, switches, by_frame=True, training=training)
    assert tiny.error(made, wanted) < tolerance.EXACT


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
def test_recache_with_other_frames_condition_shows(kind, monkeypatch):
    """The twin: a recache that reads the condition of the frame before, while the chunks read their own."""
    config = CacheConfig(9, 2, "write", kind)
    assert tiny.error(*both_videos(config, LENGTHS, SWITCHES, by_frame=True)) < tolerance.EXACT
    recache = Rollout.recache

    def beside(self, state, condition):
        recache(self, state, replace(condition, channels=condition.channels.roll(1, 1)))

    monkeypatch.setattr(Rollout, "recache", beside)
    assert tiny.error(*both_videos(config, LENGTHS, SWITCHES, by_frame=True)) > 1e-3


@pytest.mark.parametrize("rope", ["write", "read"])
def test_recache_kinds_differ(rope):
    """The twin: the kinds, and keeping the sink or not, are not the same thing under two names."""
    kinds = [(kind, keep) for kind in KINDS[:3] for keep in (True, False)] + [("none", True)]
    made = [both_videos(CacheConfig(9, 2, rope, *kind), LENGTHS, SWITCHES)[0] for kind in kinds]
    for i, a in enumerate(made):
        for b in made[:i]:
            assert tiny.error(a, b) > 1e-3
    first = sum(LENGTHS[: SWITCHES[0]])
    assert all(torch.equal(made[0][:, :first], other[:, :first]) for other in made[1:])


def old_condition(monkeypatch):
    original = Rollout.recache
    old = tiny.condition(dtype=torch.float64)
    monkeypatch.setattr(Rollout, "recache", lambda self, state, _: original(self, state, old))


def renoised(monkeypatch):
    original = RolloutState.inputs
    monkeypatch.setattr(RolloutState, "inputs", lambda self, *which: 0.99 * original(self, *which))


def no_recache(monkeypatch):
    monkeypatch.setattr(Rollout, "recache", lambda self, state, condition: None)


def causal_for_bidirectional(monkeypatch):
    def recache(self, state, condition):
        original(replace(self, cache=replace(self.cache, recache="causal")), state, condition)

    original = Rollout.recache
    monkeypatch.setattr(Rollout, "recache", recache)


@pytest.mark.parametrize("mutate", [old_condition, renoised, no_recache, causal_for_bidirectional])
def test_recache_mutations_show(mutate, monkeypatch):
    mutate(monkeypatch)
    config = CacheConfig(9, 2, "write", "bidirectional", False)
    assert tiny.error(*both_videos(config, LENGTHS, SWITCHES)) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_recache_covers_each_guidance_branch(kind):
    """Guided by a null text equal to the text, the video is that without guidance, if both caches were made anew."""
    config = CacheConfig(9, 2, "write", kind)
    texts = [replace(tiny.condition(seed=s, dtype=torch.float64), null_text=None) for s in range(2)]
    texts = [replace(t, null_text=t.text) for t in texts]
    with torch.no_grad():
        videos = [
            torch.cat(
                [
                    c.latents
                    for c in tiny.generate(
                        tiny.rollout(FP64, config, guidance=w),
                        PromptSchedule([(0, texts[0]), (8, texts[1])]),
                        tiny.spans(*LENGTHS),
                        tiny.noise(dtype=torch.float64),
                    )
                ],
                1,
            )
            for w in (1.0, 3.0)
        ]
    assert tiny.error(*videos) < tolerance.EXACT


@pytest.mark.parametrize("rope", ["write", "read"])
def test_recache_sink_apart_in_both_storages(rope):
    """A recache beyond the window: ring and training storage make the same video, and another one than W's."""
    cues, videos = (
        PromptSchedule([(0, tiny.condition(dtype=torch.float64)), (15, tiny.condition(1, 1, torch.float64))]),
        {},
    )
    for reach, training in ((14, True), (14, False), (0, False)):
        config = CacheConfig(9, 2, rope, "bidirectional", False, reach)
        rolls = tiny.rollout(FP64, config, training=training)
        with torch.no_grad():
            noise = tiny.noise(dtype=torch.float64)
            track = PromptSchedule(cues.cues)
            made = [c.latents for c in tiny.generate(rolls, track, tiny.spans(*[3] * 8), noise)]
        videos[reach, training] = torch.cat(made, 1)
    assert tiny.error(videos[14, True], videos[14, False]) < tolerance.EXACT
    assert tiny.error(videos[14, False], videos[0, False]) > 1e-3


def test_recache_remembers_the_window_only():
    """Memory is constant: a video ten times as long remembers as much."""
    for config in (CacheConfig(9, 2), CacheConfig(7, 0, "read", "bidirectional")):
        rolls, held, borders = tiny.rollout(tiny.denoiser(), config), [], tiny.spans(*[3] * 12)
        state = tiny.start(rolls, borders)
        with torch.no_grad():
            for _ in PlainExecutor(rolls).run(state, Fixed(tiny.condition()), borders, tiny.noise()):
                held.append(sum(len(chunk.span) for chunk in state.latest))
        assert max(held) < config.window_frames + 3 and held[-1] == held[-2] >= config.window_frames


def test_recache_not_for_the_same_key():
    text = tiny.condition(key="one")
    twin = tiny.condition(key="one")
    rolls = tiny.rollout(tiny.denoiser(), CacheConfig(9, 2))
    with torch.no_grad():
        track = PromptSchedule([(0, text), (3, twin)])
        made = list(tiny.generate(rolls, track, tiny.spans(3, 3, 3), tiny.noise()))
    assert [c.recache_seconds for c in made] == [None] * 3
