"""Sparse attention: everything kept is dense, a selection is a mask, storages and kernels agree, recomputes repeat."""

from __future__ import annotations

import math
import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from pipeline.track import PromptSchedule
from tests import tiny, tolerance
from wan.attention import selector, sparse
from wan.attention.call import AttentionCall
from wan.attention.config import AsaConfig, AttentionConfig, DensePartsConfig
from wan.attention.dispatch import attend
from wan.attention.flex import Flex
from wan.attention.masks import causal
from wan.context import Full, Masked
from wan.denoiser import Denoiser
from wan.ledger import CacheConfig

ALL = {"threshold": 1.0, "min": 1.0, "max": 1.0}
LOOSE = DensePartsConfig(own=True, sink=False, newest=0)
BORDERS = tiny.spans(2, 2, 1, 2, 2, 2)
FRAMES = BORDERS[-1].stop
RING = CacheConfig(window_frames=5, sink_frames=1)


def denoiser(**knobs) -> Denoiser:
    """Returns the tiny network, 6 tokens a frame, in blocks of 4 (two pads a frame), sparse by these knobs."""
    model = tiny.transformer()
    return Denoiser(selector.apply(model, AsaConfig(**{"block": 4, **knobs})))


def whole(model, context=None, frames=4, sigma=0.7):
    return model(tiny.latents(frames), sigma, tiny.condition(), context or Full())


@pytest.mark.parametrize("block", [2, 4, 8])
@pytest.mark.parametrize("order", ["frame", "clip"])
def test_everything_kept_is_dense(order, block, float64):
    wanted = tiny.healthy(whole(tiny.denoiser()))
    made = whole(denoiser(order=order, block=block, **ALL))
    assert tiny.error(made, wanted) < tiny.rounding(dtype=torch.float64)
    assert tiny.error(whole(denoiser(order=order, block=block, max=0.3)), wanted) > 1e-3, "nothing is hidden"


def test_everything_kept_has_dense_gradients(float64):
    grads = []
    for model in (tiny.denoiser(), denoiser(**ALL), denoiser(order="clip", **ALL)):
        model.requires_grad_(True)
        whole(model).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for found in grads[1:]:
        for made, wanted in zip(found, grads[0], strict=True):
            assert torch.allclose(made, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("where", ["dense_layers", "dense_above", "dense_below"])
def test_dense_layers_and_levels_leave_out_the_pads(where, float64):
    knobs = {"dense_layers": [0, -1], "dense_above": 0.6, "dense_below": 0.8}
    model, wanted = denoiser(max=0.3, **{where: knobs[where]}), whole(tiny.denoiser())
    assert tiny.error(whole(model), wanted) < tiny.rounding(dtype=torch.float64)
    if where != "dense_layers":
        sparse_level = 0.5 if where == "dense_above" else 0.9
        assert tiny.error(whole(model, sigma=sparse_level), whole(tiny.denoiser(), sigma=sparse_level)) > 1e-3


def test_a_frame_mask_hides_the_same(float64):
    mask = causal(tiny.spans(2, 2), 3, 1)
    wanted = whole(tiny.denoiser(), Masked(mask))
    for knobs in (ALL, {"dense_layers": [0, 1]}):
        assert tiny.error(whole(denoiser(**knobs), Masked(mask)), wanted) < tiny.rounding(dtype=torch.float64)


def call(seed=0, pool=0, kept=0.4, pads=True, grad=False, blocks=(5, 7), width=8, block=4) -> AttentionCall:
    """Returns a call with a drawn selection of blocks; each row keeps at least one block."""
    queries, keys = (block * count - (0 if pads else 3) for count in blocks)
    q, k, v = (tiny.draw(seed, name, shape=(2, n, 3, width)) for name, n in (("q", queries), ("k", keys), ("v", keys)))
    scores = tiny.draw(seed, "kept", shape=(2, 3, *blocks))
    drawn = (scores > functional.threshold(torch.tensor(1 - kept), 0, 0)) | (scores == scores.amax(-1, keepdim=True))
    limits = tuple(drawn.sum(-1).amax((0, 1)).tolist())
    real = None
    if pads:
        real = torch.ones(keys, dtype=torch.bool)
        real[block - 1 :: 2 * block] = False
    for tensor in (q, k, v):
        tensor.requires_grad_(grad)
    return AttentionCall(q, k, v, 0, selection=sparse.Selection(drawn, block, limits, False, real, pool))


def by_definition(call: AttentionCall) -> torch.Tensor:
    """Returns the attention over [kept keys | pooled keys], token by token of the definition."""
    s, (batch, length, heads, width) = call.selection, call.q.shape
    out = torch.zeros_like(call.q)
    k, v = ([*x.unbind(1)] for x in (call.k, call.v))
    size = len(k)
    for b in range(batch):
        for n in range(heads):
            for i in range(length):
                seen = [j for j in range(size) if s.kept[b, n, i // 4, j // 4] and (s.real is None or s.real[j])]
                keys, values = [k[j][b, n] for j in seen], [v[j][b, n] for j in seen]
                bias = [0.0] * len(seen)
                for first in range(0, size, s.pool) if s.pool else ():
                    group = [min(j, size - 1) for j in range(first, first + s.pool)]
                    keys.append(sum(k[j][b, n] for j in group) / s.pool)
                    values.append(sum(v[j][b, n] for j in group) / s.pool)
                    bias.append(math.log(s.pool))
                scores = torch.stack(keys) @ call.q[b, i, n] / width**0.5 + torch.tensor(bias, dtype=torch.float64).to(
                    call.q
                )
                out[b, i, n] = scores.softmax(0) @ torch.stack(values)
    return out


@pytest.mark.parametrize("pads", [True, False])
@pytest.mark.parametrize("pool", [0, 3])
@pytest.mark.parametrize("backend", ["sdpa", "gather"])
def test_kernels_agree_with_the_definition(backend, pool, pads, float64, monkeypatch):
    monkeypatch.setattr("wan.attention.gather.PIECE_BYTES", 4000)  # several pieces
    given = call(pool=pool, pads=pads)
    made = attend(given, AttentionConfig(backend))
    assert tiny.error(made, by_definition(given)) < tolerance.rounding(28, 5, dtype=torch.float64)
    other = replace(given, selection=replace(given.selection, kept=~given.selection.kept, limits=(7,) * 5))
    assert tiny.error(attend(other, AttentionConfig(backend)), made) > 1e-2


@pytest.mark.parametrize("pool", [0, 3])
def test_kernels_have_the_same_gradient(pool, float64, monkeypatch):
    monkeypatch.setattr("wan.attention.gather.PIECE_BYTES", 4000)
    grads = []
    for backend in ("sdpa", "gather"):
        given = call(pool=pool, grad=True)
        attend(given, AttentionConfig(backend)).sin().sum().backward()
        grads.append([x.grad for x in (given.q, given.k, given.v)])
    for a, b in zip(*grads, strict=True):
        assert tiny.error(a, b) < 1e-12 and a.abs().max() > 1e-3


@pytest.mark.skipif(shutil.which("g++") is None, reason="FlexAttention on a CPU is compiled by a C++ compiler")
def test_compiled_lists_are_the_selection():
    """Its lists are run, not its mask alone: what `flex` does on a GPU, compiled for the CPU."""
    given = call(pool=3, pads=True, width=16, block=16)
    with torch.no_grad():
        made = Flex().run(given)
    assert tiny.error(made, attend(given, AttentionConfig("sdpa"))) < tolerance.rounding(112, 5)


def test_rows_that_keep_equally_much_need_no_mask(float64):
    given = call(pads=False, blocks=(4, 6))
    kept = torch.zeros_like(given.selection.kept)
    kept[..., 1:4] = True
    # the last block is ragged and not kept, so no mask is needed for it either
    given = replace(given, selection=replace(given.selection, kept=kept, limits=(3,) * 4, exact=True))
    assert tiny.error(attend(given, AttentionConfig("gather")), by_definition(given)) < 1e-12


def test_threshold_counts_and_limits():
    scores = torch.tensor([[[[0.5, 0.1, 0.3, 0.06, 0.04]]]])

    def kept(least=0, most=5, **knobs):
        found = sparse.choose(scores, torch.tensor([least]), torch.tensor([most]), AsaConfig(**knobs))
        return found.flatten().nonzero().flatten().tolist()

    assert kept(threshold=0.85) == [0, 1, 2] and kept(threshold=0.85, count="below") == [0, 2]
    assert kept(threshold=0.85, most=2) == [0, 2] and kept(threshold=0.4, least=4) == [0, 1, 2, 3]
    assert kept(threshold=1.0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("rope", ["write", "read"])
@pytest.mark.parametrize("share", [1.0, 0.34, 1e-9])
def test_storages_select_the_same(share, rope, float64):
    """The ring has frames in slot order, the training's cache in time order; evictions and a short chunk included."""
    config = replace(RING, rope=rope)
    model = denoiser(threshold=1.0, min=share, max=share, dense=LOOSE)
    made, noisy = [], tiny.latents(FRAMES, seed=1)
    for cache in (tiny.ring(model, config, 2), tiny.kept_chunks(model, config, 2)):
        made.append(tiny.walk(model, cache, BORDERS, tiny.latents(FRAMES), tiny.condition(), noisy)[1])
    assert tiny.error(*made) < tiny.rounding(len(BORDERS), torch.float64)
    plain = tiny.denoiser()
    cache = tiny.ring(plain, config, 2)
    wanted = tiny.walk(plain, cache, BORDERS, tiny.latents(FRAMES), tiny.condition(), noisy)
    apart = tiny.error(made[0], wanted[1])
    assert apart < tiny.rounding(len(BORDERS), torch.float64) if share == 1 else apart > 1e-3


@pytest.mark.parametrize("dense", ["own", "sink", "newest"])
def test_what_is_dense_over_a_cache(dense, float64):
    """A key of a dense part moves the result wherever it lies; with it off, a bad one is not read."""
    model = denoiser(threshold=1e-6, min=0.0, max=1e-9, dense=DensePartsConfig(False, False, 0))
    config = model.transformer.sequence.config
    on = replace(config, dense=DensePartsConfig(dense == "own", dense == "sink", int(dense == "newest")))
    sizes = []
    for knobs in (config, on):
        model = Denoiser(selector.apply(tiny.transformer(), knobs))
        tiny.walk(model, tiny.ring(model, RING, 2), BORDERS, tiny.latents(FRAMES), tiny.condition())
        sizes.append(model.transformer.sequence.statistics.take())
    assert sizes[0]["forced"] == 0 < sizes[1]["forced"] and sizes[1]["sparsity"] < sizes[0]["sparsity"] < 1


@torch.no_grad()
def rolled(model, recache="causal", **fields):
    config = replace(RING, recache=recache)
    rolls = tiny.rollout(model, config, **fields)
    track = PromptSchedule([(0, tiny.condition()), (5, tiny.condition(seed=5))])
    return torch.cat([c.latents for c in tiny.generate(rolls, track, BORDERS, tiny.noise())], 1)


@pytest.mark.parametrize("recache", ["causal", "bidirectional"])
def test_rollouts_recache_alike_on_both_storages(recache, float64):
    model = denoiser(max=0.4, dense=LOOSE)
    ring = tiny.healthy(rolled(model, recache))
    chunks = rolled(model, recache, training=True)
    assert tiny.error(ring, chunks) < tiny.rounding(4 * len(BORDERS), torch.float64)
    assert tiny.error(ring, rolled(tiny.denoiser(), recache)) > 1e-3
    full = rolled(denoiser(**ALL), recache)
    assert tiny.error(full, rolled(tiny.denoiser(), recache)) < tiny.rounding(4 * len(BORDERS), torch.float64)


def test_a_chunk_keeps_its_first_choice(float64):
    seen = []
    original = sparse.select

    def select(*arguments):
        seen.append(1)
        return original(*arguments)

    counts = {}
    for how in ("step", "chunk"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selector, "select", select)
            seen.clear()
            rolled(denoiser(select=how, max=0.4, dense=LOOSE), "none")
            counts[how] = len(seen)
    layers, chunks = tiny.SPEC.num_layers, len(BORDERS)
    assert counts == {"step": layers * chunks * 3, "chunk": layers * chunks * 2}, "two steps and the context pass"


@contextmanager
def choosing_anew():
    """A selector that chooses again in the recompute, from other draws."""
    original = selector.Selector.__call__

    def broken(self, call, classes):
        self.kept.clear()
        self._level = tiny.draw(len(drawn), shape=(1,)).item()
        drawn.append(1)
        return original(self, call, classes)

    drawn: list = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selector.Selector, "__call__", broken)
        yield


def gradient(checkpointing: bool) -> list[torch.Tensor]:
    model = denoiser(probe="drawn", samples=2, max=0.4)
    model.requires_grad_(True)
    model.transformer.checkpointing = checkpointing
    whole(model).square().sum().backward()
    return [p.grad for p in model.parameters()]


def test_a_recompute_reads_the_selection_again(float64):
    wanted = gradient(False)
    assert all(tiny.error(a, b) == 0 for a, b in zip(gradient(True), wanted, strict=True))
    with choosing_anew():
        assert any(tiny.error(a, b) > 1e-3 for a, b in zip(gradient(True), wanted, strict=True))


def test_no_layer_reads_a_tensors_value(monkeypatch):
    model = denoiser(max=0.4, dense=LOOSE, pool=2)
    rolled(model)  # what is made once is there

    def refuse(self, *arguments):
        raise AssertionError("a value was read")

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    cache = tiny.ring(model, RING, 2)
    tiny.walk(model, cache, BORDERS, tiny.latents(FRAMES), tiny.condition())


def test_what_cannot_be_ordered_is_refused():
    model = denoiser(order="clip")
    with pytest.raises(ValueError, match="sparse.order=frame"):
        whole(model, sigma=torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    with pytest.raises(ValueError, match="sparse.order=frame"):
        tiny.walk(model, tiny.ring(tiny.denoiser(), RING, 2), BORDERS, tiny.latents(FRAMES), tiny.condition())
    with pytest.raises(ValueError, match="write 0 to 1"):
        denoiser(dense_layers=[2])
    with pytest.raises(ValueError, match="power of two"):
        denoiser(block=12)
