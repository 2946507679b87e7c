"""Compiled blocks compute what plain ones do, with one graph per region for all layers and chunks of a size."""

from __future__ import annotations

import copy
import os
import shutil

import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend

from tests import tiny, tolerance
from tests.float64 import fp32_is_float64
from utils import lora
from utils.parallel import fsdp, ranks
from utils.parallel.compiled import compile_blocks
from utils.parallel.layout import LayoutConfig
from wan.blocks import Block
from wan.context import Full
from wan.ledger import CacheConfig

COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def trained(**changes):
    return tiny.denoiser(**changes).requires_grad_(True)


def gradients(out: torch.Tensor, model) -> dict[str, torch.Tensor]:
    """Returns the output and the gradient of its weighted sum per weight."""
    (tiny.healthy(out) * tiny.draw("loss", shape=out.shape)).sum().backward()
    return {n: fsdp.whole(w.grad) for n, w in model.named_parameters() if w.grad is not None} | {"out": out.detach()}


def clip(model) -> dict[str, torch.Tensor]:
    """One forward and backward over a whole clip."""
    return gradients(model(tiny.latents(3, 2), 0.6, tiny.condition(2), Full()), model)


def video(model, lengths=(3, 3, 3)) -> dict[str, torch.Tensor]:
    """A training rollout, with evictions, and its backward."""
    rolls = tiny.rollout(model, CacheConfig(6, 2), training=True)
    return gradients(tiny.video(rolls, tiny.condition(2), tiny.spans(*lengths), tiny.noise(2)), model)


def worst(given: dict, wanted: dict) -> float:
    assert given.keys() == wanted.keys() and len(given) > 10
    return max(tiny.error(given[n], wanted[n]) / wanted[n].abs().max().item() for n in wanted)


def test_one_graph_per_region_and_grad_mode(float64):
    """Two layers, three chunks, two steps and a context pass each, recomputed: three regions with and without grad."""
    model, counter = trained(), CompileCounterWithBackend("aot_eager")
    wanted = video(trained())
    names = list(model.state_dict())
    model.transformer.checkpointing = True
    compile_blocks(model.transformer, backend=counter)
    assert counter.frame_count == 0, "nothing is compiled before the first forward"
    given = video(model)
    assert worst(given, wanted) < tolerance.EXACT
    assert counter.frame_count == len(Block.regions) * 2
    assert list(model.state_dict()) == names


def test_the_second_size_is_variable():
    model, counter = trained(), CompileCounterWithBackend("eager")
    compile_blocks(model.transformer, backend=counter)
    counts = []
    for lengths in ((3, 3), (2, 3, 2), (1, 3, 2, 4)):
        video(model, lengths)
        model.zero_grad()
        counts.append(counter.frame_count)
    few = len(Block.regions) * 2
    assert counts == [few, 2 * few, 2 * few]
    assert torch._dynamo.config.recompile_limit >= 64, "reaching the limit would end the run"


@pytest.fixture
def group_of_one():
    yield LayoutConfig().build(torch.device("cpu"))
    ranks.shutdown()


def test_adapters_before_and_shards_after(group_of_one, float64):
    """LoRA, checkpointing, compile, FSDP: the order in which a role is placed."""
    results = []
    for placed in (False, True):
        model = tiny.denoiser()
        lora.inject(model.transformer, rank=2)
        for name, layer in lora.layers(model.transformer).items():
            for half in (layer.lora_A[lora.ADAPTER], layer.lora_B[lora.ADAPTER]):
                half.weight.data.copy_(0.3 * tiny.draw(name, shape=half.weight.shape))
        if placed:
            model.transformer.checkpointing = True
            compile_blocks(model.transformer, backend="eager")
            with fp32_is_float64():
                fsdp.shard(model.transformer, model.transformer.blocks, group_of_one, torch.float64)
            assert all(fsdp.is_sharded(w) for w in model.parameters())
        results.append(video(model))
    assert worst(results[1], results[0]) < tolerance.EXACT


@pytest.mark.skipif(COMPILER is None, reason="inductor needs a C++ compiler")
def test_inductor_computes_the_same(monkeypatch, float64):
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # more would start processes first
    model = trained(num_layers=1)
    compile_blocks(model.transformer)
    assert worst(clip(model), clip(trained(num_layers=1))) < tolerance.EXACT


def test_a_region_must_be_one_graph(monkeypatch):
    plain = Block.cross_and_ffn

    def broken(self, x, read, shift, scale, gate):
        torch._dynamo.graph_break()
        return plain(self, x, read, shift, scale, gate)

    monkeypatch.setattr(Block, "cross_and_ffn", broken)
    model = compile_blocks(tiny.transformer(num_layers=1), backend="eager")
    with pytest.raises(Unsupported):
        clip(tiny.Denoiser(model))


def test_a_copy_computes_with_its_own_weights(float64):
    model = tiny.denoiser(num_layers=1)
    compile_blocks(model.transformer, backend="eager")
    other = copy.deepcopy(model)
    other.load_state_dict(tiny.denoiser(seed=1, num_layers=1).state_dict())
    with torch.no_grad():
        for each, seed in ((model, 0), (other, 1)):
            plain = tiny.denoiser(seed=seed, num_layers=1)
            given, wanted = (m(tiny.latents(3, 2), 0.6, tiny.condition(2), Full()) for m in (each, plain))
            assert tiny.error(given, tiny.healthy(wanted)) < tolerance.EXACT


def test_compiling_twice_is_refused():
    model = compile_blocks(tiny.transformer(), backend="eager")
    with pytest.raises(ValueError, match="compiled already"):
        compile_blocks(model)
