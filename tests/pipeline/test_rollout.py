"""The loop over chunks: order, caches, context pass, given frames, tracks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.rollout import Chunk
from pipeline.track import Fixed, Track
from tests import tiny, tolerance
from utils.config.field import check
from wan.cache import Chunks, Ring
from wan.generation import ContextConfig
from wan.geometry import Span
from wan.ledger import CacheConfig
from wan.schedule import Schedule

pytestmark = pytest.mark.usefixtures("float64")
MODEL, TEXT = tiny.denoiser(dtype=torch.float64), tiny.condition(dtype=torch.float64)
CONFIG = CacheConfig(9, 2)
BORDERS = tiny.spans(3, 3, 3, 3)


@torch.no_grad()
def video(config=CONFIG, borders=BORDERS, condition=TEXT, noise=None, given=(), max_frames=None, **fields):
    rolls = tiny.rollout(MODEL, config, **fields)
    noise = noise or tiny.noise()
    return tiny.healthy(tiny.video(rolls, condition, borders, noise, given=given, max_frames=max_frames))


class Recorded:
    """A denoiser that notes sigma, the span, the condition's key and whether gradients flowed."""

    def __init__(self):
        self.spec, self.cache_heads, self.calls = MODEL.spec, MODEL.cache_heads, []
        self.pinned_runs, self.pinned_tokens = MODEL.pinned_runs, MODEL.pinned_tokens
        self.frame_tokens = MODEL.frame_tokens

    def __call__(self, x, sigma, condition, context):
        self.calls.append((context.plan.span.start, sigma, condition.key, torch.is_grad_enabled(), x))
        return MODEL(x, sigma, condition, context)


def recorded(guidance=1.0, context=None, training=True):
    model = Recorded()
    rolls = tiny.rollout(MODEL, CONFIG, guidance=guidance, training=training, context=context or ContextConfig())
    rolls = replace(rolls, denoiser=model)
    return list(tiny.generate(rolls, Fixed(TEXT), BORDERS[:2], tiny.noise())), model.calls


def test_each_chunk_is_denoised_and_then_shown_clean_once():
    chunks, calls = recorded()
    assert [(start, sigma, grad) for start, sigma, _, grad, _ in calls] == [
        *[(0, 1.0, True), (0, 0.6, True), (0, 0.0, False)],
        *[(3, 1.0, True), (3, 0.6, True), (3, 0.0, False)],
    ]
    assert torch.equal(calls[2][4], chunks[0].latents) and not calls[2][4].requires_grad


def test_each_guidance_branch_has_its_cache_and_its_context_pass():
    _, calls = recorded(guidance=2.0)
    null = (TEXT.key, "null")
    assert [(sigma, key) for start, sigma, key, *_ in calls if start == 0] == [
        (sigma, key) for sigma in (1.0, 0.6, 0.0) for key in (TEXT.key, null)
    ]


def test_the_context_pass_may_tell_a_time_and_renoise():
    knobs = ContextConfig(sigma=0.1, renoise=True)
    chunks, calls = recorded(context=knobs)
    note, seen = calls[2][1], calls[2][4]
    noise = tiny.noise()(BORDERS[0], -1)
    assert note == 0.1
    assert tiny.error(seen, 0.9 * chunks[0].latents + 0.1 * noise) < tolerance.EXACT
    chunks, calls = recorded(context=ContextConfig(sigma=0.0, renoise=True, rounding="table"))
    mixed = Schedule(5.0, "table").diffuse(chunks[0].latents, noise, torch.tensor([0.0], dtype=torch.float64))
    assert calls[2][1] == 0.0 and tiny.error(calls[2][4], mixed) < tolerance.EXACT, "told 0, mixed at the table's last"
    assert tiny.error(calls[2][4], chunks[0].latents) > 1e-4


@pytest.mark.parametrize("context", [ContextConfig(sigma=0.1), ContextConfig(sigma=0.1, renoise=True)], ids=str)
def test_context_knobs_reach_later_chunks_alone(context):
    wanted, given = video(), video(context=context)
    assert torch.equal(given[:, :3], wanted[:, :3])
    assert tiny.error(given[:, 3:], wanted[:, 3:]) > tolerance.DIFFERENT


@torch.no_grad()
def test_executor_yields_chunk_by_chunk():
    requested = []

    def noise(span, k):
        requested.append((span.start, k))
        return tiny.noise()(span, k)

    rolls = tiny.generate(tiny.rollout(MODEL, CONFIG), Fixed(TEXT), BORDERS, noise)
    first = next(rolls)
    assert (first.span, first.given, first.latents.shape) == (Span(0, 3), False, (1, 3, 4, 4, 6))
    assert requested == [(0, 0), (0, 1)]
    assert [c.span for c in rolls] == BORDERS[1:]


def test_the_video_so_far_does_not_depend_on_its_length():
    assert torch.equal(video()[:, :6], video(borders=BORDERS[:2]))
    everything = CacheConfig(-1)
    assert torch.equal(video(everything)[:, :6], video(everything, borders=BORDERS[:2], max_frames=12))


def test_executor_passes_given_frames_on():
    start = tiny.latents(1, seed=3)
    given, borders = Chunk(Span(0, 1), start, given=True), [Span(1, 4), Span(4, 7)]
    rolls = tiny.rollout(MODEL, CONFIG)
    with torch.no_grad():
        made = list(tiny.generate(rolls, Fixed(TEXT), borders, tiny.noise(), given=[given]))
    assert made[0].latents is given.latents and [c.given for c in made] == [True, False, False]
    after = torch.cat([c.latents for c in made[1:]], 1)
    other = video(borders=borders, given=[replace(given, latents=-start)])[:, 1:]
    assert tiny.error(after, tiny.healthy(other)) > 1e-2


def test_a_continued_video_is_the_video():
    """The first chunks of a video, given to a second rollout, lead to the same rest."""
    whole = video()
    given = [Chunk(span, whole[:, span.start : span.stop], given=True) for span in BORDERS[:2]]
    assert torch.equal(video(borders=BORDERS[2:], given=given), whole)


def test_guidance_reaches_the_video():
    strong = video(guidance=3.0)
    assert tiny.error(strong, video()) > 1e-2
    same = replace(TEXT, null_text=TEXT.text, key="same")
    assert tiny.error(video(guidance=3.0, condition=same), video()) < tolerance.EXACT


def test_rollout_track_changes_the_condition():
    other = tiny.condition(seed=4)

    class Switch(Track):
        def at(self, span):
            return TEXT if span.start < 6 else other

    with torch.no_grad():
        rolls = tiny.rollout(MODEL, CONFIG)
        given = torch.cat([c.latents for c in tiny.generate(rolls, Switch(), BORDERS, tiny.noise())], 1)
        start = [Chunk(span, given[:, span.start : span.stop], given=True) for span in BORDERS[:3]]
        again = list(tiny.generate(rolls, Switch(), BORDERS[3:], tiny.noise(), given=start))
    assert torch.equal(given[:, :6], video()[:, :6])
    assert tiny.error(given[:, 6:], video()[:, 6:]) > 1e-2
    assert [c.span.start for c in again if c.recache_seconds is not None] == [6]  # told of a given chunk, too


def test_rollout_storage_follows_the_purpose():
    for training, kind in ((False, Ring), (True, Chunks)):
        rolls = tiny.rollout(MODEL, CONFIG, guidance=2.0, training=training)
        (branches,) = tiny.start(rolls, BORDERS).caches
        assert [type(cache) for cache in branches] == [kind, kind]
        assert branches[0].ledger is not branches[1].ledger
    assert tiny.error(video(training=True), video()) < tolerance.EXACT


def test_rollout_runs_twice_alike():
    rolls = tiny.rollout(MODEL, CONFIG)
    with torch.no_grad():
        first, again = (tiny.video(rolls, TEXT, BORDERS, tiny.noise()) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: video(CacheConfig(4, 2)), r"window_frames 4 is smaller than sink_frames 2 \+ chunk 3"),
        (lambda: video(borders=[Span(1, 4)]), r"span \[1, 4\) does not start at the next frame 0"),
        (lambda: video(CacheConfig(-1), max_frames=6), "length"),
        (lambda: video(guidance=2.0, condition=replace(TEXT, null_text=None)), "needs the encoded negative prompt"),
        (lambda: check(ContextConfig(sigma=1.5)), "sigma is 1.5; write 0 to 1"),
        (lambda: check(ContextConfig(rounding="up")), "rounding is 'up'"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
