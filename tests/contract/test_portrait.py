"""A portrait in same-step caches: one masked forward, any storage, recache, gradient; each with a law that can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.executor import PlainExecutor
from pipeline.rollout import Rollout, draw_distance
from pipeline.sampler import FewStep, MultiStep
from pipeline.solver import Solver
from pipeline.track import Fixed, PromptSchedule
from tests import tiny, tolerance
from utils.rng import Rng
from wan.attention.masks import FrameMask, causal
from wan.context import Masked
from wan.generation import PortraitConfig
from wan.geometry import Span
from wan.ledger import CacheConfig
from wan.schedule import Schedule

MODEL = tiny.s2v_denoiser(dtype=torch.float64)
FRAMES, CHUNK, PINNED = 12, 3, 7
BORDERS = tiny.spans(*[CHUNK] * (FRAMES // CHUNK))
AVATAR = tiny.avatar(frames=FRAMES, dtype=torch.float64)
NOISE = tiny.noise(dtype=torch.float64, geometry=tiny.S2V_GEOMETRY)
MOVING = draw_distance(PortraitConfig(), Rng(5))


class Watched(type(MODEL)):
    """Keeps x and the velocities of its passes over the video."""

    def __init__(self, transformer):
        super().__init__(transformer)
        self.passes = []

    def forward(self, x, sigma, condition, context, clean=None):
        velocity = super().forward(x, sigma, condition, context, clean)
        self.passes.append((x, sigma, velocity))
        return velocity


def rollout(model=MODEL, window=9, steps=3, portrait=None, guidance=1.0, **fields) -> Rollout:
    knobs = {name: fields.pop(name) for name in ("rope", "recache") if name in fields}
    cache = CacheConfig(window, content="same_step", **knobs)
    fields = {"distance": MOVING, "geometry": tiny.S2V_GEOMETRY, "dtype": torch.float64} | fields
    sampler = MultiStep(Solver("euler", steps, 3.0, "table"), guidance)
    return Rollout(model, sampler, cache=cache, portrait=portrait or PortraitConfig(), **fields)


@torch.no_grad()
def video(rolls: Rollout, track=AVATAR, borders=BORDERS) -> torch.Tensor:
    state = rolls.start(1, CHUNK, FRAMES)
    track = track if isinstance(track, PromptSchedule) else Fixed(track)
    return torch.cat([chunk.latents for chunk in PlainExecutor(rolls).run(state, track, borders, NOISE)], 1)


def test_streamed_chunks_are_one_masked_forward():
    """With the reference at rest, the passes of step k are one forward over the clip at one sigma."""
    watched = Watched(MODEL.transformer)
    video(rollout(watched, window=-1, distance=lambda span, k: 0))
    mask = torch.zeros(FRAMES + PINNED, FRAMES + PINNED)
    mask[:FRAMES, :FRAMES] = causal(BORDERS).frames
    mask[:, FRAMES:] = 1
    for k in range(3):
        passes = watched.passes[k::3]
        x, wanted = (torch.cat([p[i] for p in passes], 1) for i in (0, 2))
        with torch.no_grad():
            whole = MODEL(x, passes[0][1], AVATAR, Masked(FrameMask(mask)))
        assert tiny.error(whole, tiny.healthy(wanted)) < tolerance.EXACT
        mask_off = mask.clone()
        mask_off[:FRAMES, FRAMES] = 0  # the mutation: nobody sees the reference
        with torch.no_grad():
            assert tiny.error(MODEL(x, passes[0][1], AVATAR, Masked(FrameMask(mask_off))), wanted) > 1e-4


@pytest.mark.parametrize("follow", ["reference", "all"])
@pytest.mark.parametrize("rope", ["write", "read"])
def test_training_storage_sees_the_same(rope, follow):
    portrait = PortraitConfig(follow=follow)
    made = video(rollout(rope=rope, portrait=portrait))
    assert tiny.error(made, video(rollout(rope=rope, portrait=portrait, training=True))) < tolerance.EXACT
    other = PortraitConfig(follow="all" if follow == "reference" else "reference")
    assert tiny.error(made, video(rollout(rope=rope, portrait=other))) > 1e-6 or rope == "read"


def test_read_rotation_is_the_same_until_something_is_dropped():
    early = BORDERS[:3]
    whole = [video(rollout(rope=rope, distance=lambda span, k: 20), borders=early) for rope in ("write", "read")]
    assert tiny.error(*whole) < tolerance.EXACT


def test_the_distance_is_drawn_for_chunk_and_step():
    places, again = [(span, k) for span in BORDERS for k in range(3)], draw_distance(PortraitConfig(), Rng(5))
    drawn = [MOVING(*place) for place in places]
    assert len(set(drawn)) > 4 and all(4 <= d <= 30 for d in drawn)
    assert drawn == [again(*place) for place in places]
    assert tiny.error(video(rollout()), video(rollout(distance=lambda span, k: 30))) > 1e-6


def test_recache_under_the_same_condition_changes_no_bit():
    """As long as nothing was dropped: later, a frame's deep keys have read what is gone."""
    rolls = rollout(recache="causal")
    with torch.no_grad():
        state = rolls.start(1, CHUNK, None)
        list(PlainExecutor(rolls).run(state, Fixed(AVATAR), BORDERS[:2], NOISE))
        before = state.fork()
        twin = replace(AVATAR, key="the same under another name")
        assert rolls.set_condition(state, twin) is not None
    for (old,), (new,) in zip(before.caches, state.caches, strict=True):
        assert list(old.ledger.slot_of) == list(new.ledger.slot_of) == list(range(6))
        assert all(torch.equal(a, b) for f in range(6) for a, b in zip(old.frame(1, f), new.frame(1, f), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(old.pinned(1), new.pinned(1), strict=True))
    with torch.no_grad():
        rolls.set_condition(state, replace(twin, text=twin.null_text, key="another"))
    assert not torch.equal(before.caches[0][0].frame(1, 0)[0], state.caches[0][0].frame(1, 0)[0])


def test_a_prompt_switch_pins_the_portrait_anew():
    other = tiny.avatar(frames=FRAMES, seed=1, dtype=torch.float64)
    text = replace(AVATAR, text=other.text, key="other text")
    track = lambda: PromptSchedule([(0, AVATAR), (6, text)])  # noqa: E731
    made = video(rollout(recache="none"), track())
    assert torch.equal(made[:, :6], video(rollout(recache="none"))[:, :6])

    class Stale(Rollout):
        def pin(self, state, condition):
            if state.portrait_key is None:
                super().pin(state, condition)
            state.portrait_key = (condition.key, condition.portrait_key)

    rolls = rollout(recache="none")
    stale = Stale(**vars(rolls))
    assert tiny.error(made, video(stale, track())) > 1e-6, "the pinned keys have read the text"


def test_a_new_portrait_is_no_prompt_switch():
    """Sound goes on, nothing is recached, only the pinned runs are made again."""
    rolls, other = rollout(), tiny.avatar(frames=FRAMES, seed=1, dtype=torch.float64)
    fresh = replace(AVATAR, reference=other.reference, portrait_key="refreshed")
    with torch.no_grad():
        state = rolls.start(1, CHUNK, None)
        executor = PlainExecutor(rolls)
        executor.generate_chunk(state, Fixed(AVATAR), BORDERS[0], NOISE)
        keys = state.caches[0][0].keys.clone()
        assert rolls.set_condition(state, fresh) is None
        place = slice(-6 * 16, None)
        assert torch.equal(keys[:, :, place], state.caches[0][0].keys[:, :, place])
        raw = state.caches[0][0].pinned(0)[0]
        assert raw.data_ptr() == state.caches[1][0].pinned(0)[0].data_ptr(), "kept once for all steps"


def test_abandoned_forked_and_packed_videos_go_on_alike():
    rolls = rollout(guidance=2.0)
    whole = video(rolls)
    with torch.no_grad():
        executor, track = PlainExecutor(rolls), Fixed(AVATAR)
        state = rolls.start(1, CHUNK, FRAMES)
        for span in BORDERS[:2]:
            executor.generate_chunk(state, track, span, NOISE)
        rolls.set_condition(state, AVATAR)
        assert executor.denoise(state, AVATAR, BORDERS[2], NOISE, preempt=lambda: True) is None
        copy = state.fork()
        book, tensors = state.snapshot()
        packed = rolls.restore(book, tensors, AVATAR)
        for own in (state, copy, packed):
            made = torch.cat([executor.generate_chunk(own, track, span, NOISE).latents for span in BORDERS[2:]], 1)
            assert torch.equal(made, whole[:, 6:])


def test_gradient_with_checkpointing_is_the_gradient_without():
    """The exit pass commits, with gradient: its keys are kept detached."""
    grads = []
    for checkpointing in (False, True):
        model = tiny.s2v_denoiser(dtype=torch.float64)
        model.transformer.requires_grad_(True).checkpointing = checkpointing
        sampler = FewStep((1.0, 0.6), Schedule())
        rolls = replace(rollout(model, window=6), sampler=sampler, training=True)
        state = rolls.start(1, CHUNK, FRAMES)
        made = [c.latents for c in PlainExecutor(rolls).run(state, Fixed(AVATAR), BORDERS, NOISE)]
        torch.cat(made, 1).square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and any("audio_injector" in name for name in grads[0])
    worst = max(tiny.error(grads[0][name], grads[1][name]) for name in grads[0])
    assert worst < tolerance.EXACT and max(g.abs().max() for g in grads[0].values()) > 1e-3


def test_a_still_reference_stays_ahead():
    portrait, span = PortraitConfig((4, 4)), Span(33, 36)
    rolls = rollout(portrait=portrait, distance=None)
    with torch.no_grad():
        state = rolls.start(1, CHUNK, None)
        rolls.set_condition(state, AVATAR)
    ledger = state.caches[0][0].ledger
    ledger.next_frame = 33
    times = [run.times for run in rolls.contexts(state, span, 1)[0][0].plan.pinned]
    assert times == [(37,), (-1,), (-3,), (-19, -14, -9, -4)]
