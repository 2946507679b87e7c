"""The state of a rollout: forked, moved, packed and taken back, it goes on with the same bits."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from pipeline.executor import PlainExecutor
from pipeline.state import RECACHE_INCOMPLETE, VERSION, RolloutState, check_version, pack, unpack
from pipeline.track import Fixed, PromptSchedule
from tests import tiny
from wan.cache import KVCache
from wan.ledger import CacheConfig

BORDERS = tiny.spans(3, 3, 2, 3, 3, 3)
TEXTS = [tiny.condition(seed=number) for number in range(3)]
POLICIES = [
    CacheConfig(9, 2),
    CacheConfig(-1, 0, "write", "bidirectional"),
    CacheConfig(9, 2, "read", keep_sink=False),
    CacheConfig(9, 2, content="same_step"),
]
CASES = [(config, training) for config in POLICIES for training in (False, True)]


def make_executor(config, training=False, guidance=2.0) -> PlainExecutor:
    return PlainExecutor(tiny.rollout(tiny.denoiser(), config, guidance=guidance, training=training))


@torch.no_grad()
def half_way(executor) -> RolloutState:
    """Returns a state after three chunks under the first text."""
    state = tiny.start(executor.rollout, BORDERS)
    list(executor.run(state, Fixed(TEXTS[0]), BORDERS[:3], tiny.noise()))
    return state


@torch.no_grad()
def rest(executor, state, text=1) -> torch.Tensor:
    """Returns the frames that follow, of which the second chunk comes under another text."""
    track = PromptSchedule([(0, TEXTS[0]), (BORDERS[4].start, TEXTS[text])])
    return tiny.healthy(torch.cat([c.latents for c in executor.run(state, track, BORDERS, tiny.noise())], 1))


def list_tensors(state) -> list[torch.Tensor]:
    """Returns every tensor that hangs on a state."""
    held = [x for chunk in state.latest for x in (chunk.latents, *chunk.inputs)]
    for branches in state.caches:
        for cache in branches:
            kept = [pair for frames in vars(cache).get("_kept", ()) for pair in frames.values()]
            held += [t for pair in kept for t in pair] or [cache.keys, cache.values]
    return held


@pytest.mark.parametrize(("config", "training"), CASES, ids=str)
def test_state_fork_shares_nothing(config, training):
    executor = make_executor(config, training)
    wanted = rest(executor, half_way(executor))
    state = half_way(executor)
    fork = state.fork()
    other = rest(executor, fork, text=2)
    assert state.next_frame == BORDERS[2].stop and fork.next_frame == BORDERS[-1].stop
    assert torch.equal(rest(executor, state), wanted) and tiny.error(other, wanted) > 1e-3


def test_state_fork_that_shares_a_cache_shows(monkeypatch):
    monkeypatch.setattr(KVCache, "fork", lambda self: self)
    executor = make_executor(POLICIES[0])
    state = half_way(executor)
    rest(executor, state.fork(), text=2)
    with pytest.raises(ValueError, match="does not start at the next frame"):
        rest(executor, state)


@pytest.mark.parametrize(("config", "training"), CASES, ids=str)
def test_state_moves_whole(config, training):
    executor = make_executor(config, training)
    wanted, state = rest(executor, half_way(executor)), half_way(executor)
    assert {t.device.type for t in list_tensors(state.fork().to("meta"))} == {"meta"}
    assert torch.equal(rest(executor, state.to("cpu")), wanted)


@pytest.mark.parametrize(("config", "training"), CASES, ids=str)
def test_state_restores_from_bytes(config, training):
    executor = make_executor(config, training)
    state = half_way(executor)
    book, tensors = state.snapshot()
    book, tensors = json.loads(json.dumps(book)), load(save(tensors))
    again = executor.rollout.restore(book, tensors, TEXTS[0])
    assert again.next_frame == state.next_frame and again.sizes == state.sizes and again.key == state.key
    assert torch.equal(rest(executor, again), rest(executor, state))


@pytest.mark.parametrize("name", ["0.keys", "3.values", "latest", "inputs.1"])
def test_state_every_tensor_matters(name):
    executor = make_executor(CacheConfig(9, 2, content="same_step", recache="none"))
    recaching = make_executor(POLICIES[3])
    state = half_way(executor)
    book, tensors = state.snapshot()
    changed = tensors | {name: tensors[name] * 0.5}
    executor = recaching if name == "inputs.1" else executor
    again = executor.rollout.restore(book, changed, TEXTS[0])
    if name == "latest":  # what a session shows whose decoder failed
        assert not torch.equal(again.latest[-1].latents, state.latest[-1].latents)
        return
    wanted = rest(executor, executor.rollout.restore(book, tensors, TEXTS[0]))
    assert tiny.error(rest(executor, again), wanted) > 1e-4


def test_state_keeps_an_interrupted_recache():
    executor = make_executor(POLICIES[0])
    state = half_way(executor)
    state.key = RECACHE_INCOMPLETE
    again = executor.rollout.restore(*state.snapshot(), TEXTS[0])
    assert again.key is RECACHE_INCOMPLETE and state.fork().key is RECACHE_INCOMPLETE
    with torch.no_grad():
        assert executor.rollout.set_condition(again, TEXTS[0]) is not None, "it recaches under any condition"
        assert executor.rollout.set_condition(again, TEXTS[0]) is None


def test_state_pack_holds_decoder_and_version():
    executor = make_executor(POLICIES[0])
    stream = (tiny.latents(1), None, "Rep")
    packed = pack(half_way(executor), stream, 8)
    state, again = unpack(packed, executor.rollout, TEXTS[0], "cpu")
    assert torch.equal(again[0], stream[0]) and again[1:] == stream[1:] and state.next_frame == 8
    assert again[0].data_ptr() != stream[0].data_ptr() and packed["book"]["version"] == VERSION
    check_version(packed["book"])
    for book in ({}, {"version": VERSION + 1}):
        with pytest.raises(ValueError, match=rf"format {book.get('version', 1)} and this version reads {VERSION}"):
            check_version(book)


def test_state_shares_text_keys_between_steps():
    """They depend on text and weights alone: K caches of a branch compute them once; a fork computes its own."""
    state = tiny.start(make_executor(POLICIES[3]).rollout, BORDERS)
    for each in (state, state.fork()):
        texts = [[cache.text for cache in branches] for branches in each.caches]
        assert all(row[0] is texts[0][0] and row[1] is texts[0][1] for row in texts)
        assert texts[0][0] is not texts[0][1]
    assert state.fork().caches[0][0].text is not state.caches[0][0].text
    assert replace(state).caches is state.caches
