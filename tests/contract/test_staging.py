"""Keys and values apart from the memory that attention reads: a ring's bits, whatever the copies' timing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from pipeline.executor import PlainExecutor
from pipeline.track import Fixed, PromptSchedule
from tests import tiny
from tests.contract.test_portrait import AVATAR, BORDERS, NOISE
from tests.contract.test_portrait import rollout as portrait_rollout
from tests.contract.test_portrait import video as portrait_video
from tests.contract.test_recache_storage import RUN, Naive, Numbered, follow, schedules
from tests.contract.test_recache_storage import SHAPE as ONE_LAYER
from tests.fake_device import FakeDevice
from utils.offload import InlineCopier
from wan.generation import PortraitConfig
from wan.ledger import CacheConfig, Ledger
from wan.staging import Staged, Workspace

SHAPE = replace(ONE_LAYER, num_layers=3)
STORAGES = ("staged", "cpu")


class Layered(Numbered):
    """Numbered frames through the three layers of a staged cache on a fake device; each layer's are its own."""

    @classmethod
    def of(cls, at_home, config, chunk):
        device = FakeDevice()
        cache = Staged(Ledger(replace(config), chunk, 400), SHAPE, device, at_home=at_home)
        for store in (*cache.home, *(x for pair in cache.work.buffers for x in pair)):
            store.fill_(torch.nan)
        made = cls(cache, [])
        made.device, made.at_home = device, at_home
        return made

    def fork(self):
        other = Layered(self.cache.fork(), list(self.spans))
        other.device, other.at_home = self.device, self.at_home
        return other

    @torch.no_grad()
    def show(self, context, numbers):
        plan, seen = context.plan, []
        for layer in range(SHAPE.num_layers):
            rows = torch.tensor(numbers, dtype=torch.float32).repeat_interleave(SHAPE.frame_tokens) + 1e5 * layer
            k = torch.stack((rows, -rows))[..., None, None]
            keys, values = self.cache.write(layer, plan, k, k + 0.5)
            self.device.use(keys, values)
            assert torch.equal(keys + 0.5, values), "a key without its value, or one that was never written"
            assert torch.equal(keys[0], -keys[1]), "rows of the batch were mixed"
            frames = keys[0, :: SHAPE.frame_tokens, 0, 0] - 1e5 * layer
            positions = [time for run in self.cache.key_runs(plan, RUN) for time in run.times]
            seen.append(sorted(zip(map(int, frames.tolist()), positions, strict=True)))
        assert seen[0] == seen[1] == seen[2], "a layer sees another one's frames"
        return seen[0]


def check(schedule, at_home: bool) -> None:
    """Asserts that every pass of a schedule sees what the definition says."""
    config, chunk, steps = schedule
    wanted, _ = follow(Naive(config, chunk), steps, fork=False)
    made, _ = follow(Layered.of(at_home, config, chunk), steps)
    assert made == wanted


@pytest.mark.parametrize("at_home", [False, True])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(schedule=schedules())
def test_every_pass_sees_what_the_definition_says(at_home, schedule):
    """Chunks, abandoned ones, switches of any kind, snapshots, rewinds and forks; copies as late as they may be."""
    check(schedule, at_home)


def check_broken_off() -> None:
    """The same of an example, with a pass that ends behind its second layer and leaves the third one fetched."""
    config, chunk, steps = EXAMPLE
    wanted, _ = follow(Naive(config, chunk), steps, fork=False)
    player = Layered.of(True, config, chunk)
    show = player.show

    def twice(context, numbers):
        k = torch.zeros(2, len(numbers) * SHAPE.frame_tokens, 1, 1)
        with torch.no_grad():
            for layer in range(2):
                player.device.use(*player.cache.write(layer, context.plan, k, k))
        return show(context, numbers)

    player.show = twice
    assert follow(player, steps)[0] == wanted


EXAMPLE = CacheConfig(7, 1), 3, [("chunk", 3), ("chunk", 3), ("abandon", 3), ("chunk", 3), ("chunk", 2), ("chunk", 3)]


def without_exchange(monkeypatch):
    """A commit that leaves the places where they were."""
    monkeypatch.setattr(Staged, "commit", lambda self, plan: self.ledger.commit(plan))


def without_wait(monkeypatch):
    """Nobody waits for what was fetched."""
    monkeypatch.setattr(FakeDevice, "wait", lambda self, copied: None)


def without_order(monkeypatch):
    """Copies that do not stand behind the attention that reads their buffer."""
    monkeypatch.setattr(FakeDevice, "mark", lambda self: None)


def any_layer(monkeypatch):
    """What was fetched ahead is taken for the layer that comes, whichever it is."""
    fetch = Staged._fetch

    def wrong(self, layer, plan):
        staged = fetch(self, layer, plan)
        self.work.staged[layer % 2] = ((id(self), layer % 2), staged[1])
        return staged

    monkeypatch.setattr(Staged, "_fetch", wrong)


@pytest.mark.parametrize("mutate", [without_exchange, without_wait, without_order, any_layer])
def test_mutations_are_seen(mutate, monkeypatch):
    check_broken_off()
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        check_broken_off()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("rope", ["write", "read"])
@pytest.mark.parametrize("follow_all", [False, True])
def test_videos_with_a_portrait_have_the_bits_of_rings(storage, rope, follow_all):
    """Same-step caches, pinned runs, guidance, a prompt switch with a recache, fp32."""
    knobs = {"rope": rope, "portrait": PortraitConfig(follow="all" if follow_all else "reference"), "guidance": 2.0}
    knobs |= {"recache": "causal"}
    text = replace(AVATAR, text=AVATAR.null_text, key="other text")
    made, wanted = (
        portrait_video(portrait_rollout(storage=kind, **knobs), PromptSchedule([(0, AVATAR), (6, text)]))
        for kind in (storage, "device")
    )
    assert torch.equal(made, tiny.healthy(wanted))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("recache", ["bidirectional", "causal", "reset", "none"])
def test_videos_with_a_context_pass_have_the_bits_of_rings(storage, recache):
    model, borders = tiny.denoiser(), tiny.spans(3, 3, 2, 3, 1, 3)
    track = lambda: PromptSchedule([(0, tiny.condition(2, 0)), (6, tiny.condition(2, 1))])  # noqa: E731
    videos = []
    for kind in (storage, "device"):
        rolls = tiny.rollout(model, CacheConfig(7, 1, recache=recache), storage=kind, guidance=1.5)
        with torch.no_grad():
            chunks = list(tiny.generate(rolls, track(), borders, tiny.noise(2), batch=2))
        videos.append(torch.cat([chunk.latents for chunk in chunks], 1))
    assert torch.equal(videos[0], tiny.healthy(videos[1]))


@pytest.mark.parametrize("storage", STORAGES)
def test_packed_forked_and_moved_videos_go_on_alike(storage):
    rolls = portrait_rollout(storage=storage)
    whole = portrait_video(portrait_rollout())
    with torch.no_grad():
        executor, track = PlainExecutor(rolls), Fixed(AVATAR)
        state = rolls.start(1, 3, 12)
        for span in BORDERS[:2]:
            executor.generate_chunk(state, track, span, NOISE)
        packed = rolls.restore(*state.snapshot(), AVATAR)
        other = portrait_rollout().restore(*state.snapshot(), AVATAR)  # rings take it up
        forked, moved = state.fork(), state.fork().to("cpu")
        executor.generate_chunk(state.fork(), track, BORDERS[2], lambda *_: 5 * NOISE(*_))  # goes its own way
        for own in (state, forked, moved, packed, other):
            player = PlainExecutor(portrait_rollout()) if own is other else executor
            made = torch.cat([player.generate_chunk(own, track, span, NOISE).latents for span in BORDERS[2:]], 1)
            assert torch.equal(made, whole[:, 6:])


def test_the_caches_of_the_steps_share_their_working_memory():
    """Pinned runs and buffers are there once, and never made for a cache that shares another's."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        pair = Workspace._pair
        patch.setattr(Workspace, "_pair", lambda self, size: made.append(size) or pair(self, size))
        rolls = portrait_rollout(storage="cpu")
        portrait_video(rolls)
    assert len(made) == 3, "two buffers and the pinned runs"
    state = rolls.start(1, 3, 12)
    assert len({id(branches[0].work) for branches in state.caches}) == 1


def test_a_staged_cache_refuses_a_gradient():
    cache = Staged(Ledger(CacheConfig(6), 3), SHAPE, InlineCopier())
    with pytest.raises(AssertionError, match="no gradient"):
        cache.write(0, None, None, None)
