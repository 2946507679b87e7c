"""Text keys: kept under no_grad per condition and weights version, recomputed by every pass with gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests import tiny, tolerance
from wan.cache import TextKVCache
from wan.context import Cached, Full
from wan.geometry import Span
from wan.ledger import CacheConfig

SPAN = Span(0, 2)
TEXT_WEIGHTS = [
    "transformer.text_embedding.0.weight",
    "transformer.text_embedding.2.bias",
    "transformer.blocks.0.cross_attn.k.weight",
    "transformer.blocks.1.cross_attn.v.weight",
    "transformer.blocks.1.cross_attn.norm_k.weight",
]


@pytest.fixture
def model():
    return tiny.denoiser()


@pytest.fixture
def embedded(model):
    """Returns the list that grows whenever the model embeds a text."""
    calls = []
    model.transformer.text_embedding.register_forward_hook(lambda *_: calls.append(1))
    return calls


def open_cache(model):
    return Cached(tiny.ring(model, CacheConfig(9), 2), SPAN)


def velocity(model, condition, context) -> torch.Tensor:
    return tiny.healthy(model(tiny.latents(2), 0.7, condition, context))


def test_a_rollout_embeds_each_branch_once(model, embedded):
    with torch.no_grad():
        rolls = tiny.rollout(model, CacheConfig(9, 2), guidance=3.0)
        tiny.video(rolls, tiny.condition(), tiny.spans(3, 3, 3, 3), tiny.noise())
    assert len(embedded) == 2


def test_a_pass_with_gradient_embeds_anew_and_reaches_the_text_weights(model, embedded):
    context, condition = Full(), tiny.condition()
    with torch.no_grad():
        velocity(model, condition, context)
        velocity(model, condition, context)
    assert len(embedded) == 1
    model.requires_grad_(True)
    wanted = text_gradients(model, condition, Full())
    given = text_gradients(model, condition, context)
    assert len(embedded) == 3
    for name in TEXT_WEIGHTS:
        assert wanted[name].abs().max() > 1e-3
        assert torch.equal(given[name], wanted[name])


def text_gradients(model, condition, context) -> dict:
    model.zero_grad()
    velocity(model, condition, context).square().sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


def test_kept_text_under_gradient_starves_the_text_weights(model, monkeypatch):
    """The twin: serving what was kept gives the same output and no gradient."""

    def get(self, layer, key, make):
        self._kept[layer] = self._kept.get(layer) or make()
        return self._kept[layer]

    monkeypatch.setattr(TextKVCache, "get", get)
    context, condition = Full(), tiny.condition()
    with torch.no_grad():
        velocity(model, condition, context)
    starved = text_gradients(model.requires_grad_(True), condition, context)
    assert all(starved[name] is None for name in TEXT_WEIGHTS)
    assert starved["transformer.blocks.0.self_attn.q.weight"].abs().max() > 0


@pytest.mark.parametrize("make", [lambda model: Full(), open_cache], ids=["full", "cached"])
@torch.no_grad()
def test_another_condition_refreshes_it(make, model, embedded):
    one, other = tiny.condition(seed=1), tiny.condition(seed=2)
    context = make(model)
    first = velocity(model, one, context)
    second = velocity(model, other, context)
    assert len(embedded) == 2
    assert torch.equal(second, velocity(model, other, make(model)))
    assert torch.equal(first, velocity(model, one, context)), "and back"
    assert tiny.error(first, second) > tolerance.DIFFERENT


@torch.no_grad()
def test_a_key_is_an_identity(model, embedded):
    """The twin of the refresh: with one key the second text is never looked at."""
    one, other = (tiny.condition(seed=seed, key="same") for seed in (1, 2))
    context = Full()
    assert torch.equal(velocity(model, one, context), velocity(model, other, context))
    assert len(embedded) == 1


@torch.no_grad()
def test_the_null_twin_has_its_own_key(model):
    condition, context = tiny.condition(), Full()
    first = velocity(model, condition, context)
    null = velocity(model, condition.null(), context)
    assert tiny.error(first, null) > tolerance.DIFFERENT
    assert torch.equal(null, velocity(model, replace(condition, text=condition.null_text, key=1), Full()))
    assert condition.null().key == condition.null().key != condition.key


@torch.no_grad()
def test_new_weights_refresh_it(model, embedded):
    condition, context = tiny.condition(), open_cache(model)
    before = velocity(model, condition, context)
    model.transformer.text_embedding[0].weight.mul_(-1)
    assert torch.equal(velocity(model, condition, context), before), "without a new version the kept text stands"
    model.transformer.weights_version += 1
    after = velocity(model, condition, context)
    assert len(embedded) == 2
    assert torch.equal(after, velocity(model, condition, open_cache(model)))
    assert tiny.error(after, before) > tolerance.DIFFERENT


@torch.no_grad()
def test_missing_rows_are_zeros_that_are_attended_to(model):
    """Short texts are padded to text_len, and padding by hand changes nothing; cutting the room does."""
    short = tiny.condition(num_tokens=3)
    rows = model.spec.text_len - 3
    padded = replace(short, text=torch.nn.functional.pad(short.text, (0, 0, 0, rows)), key="padded")
    wanted = velocity(model, padded, Full())
    assert torch.equal(velocity(model, short, Full()), wanted)
    tight = tiny.denoiser(text_len=3)
    assert tiny.error(velocity(tight, short, Full()), wanted) > tolerance.DIFFERENT
