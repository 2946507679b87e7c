"""What two ranks find out about layouts, adapters and pinned runs; started by torchrun from test_tokens_on_ranks.py.

Each check computes the same thing alone and shared, in float64, and returns errors relative to the largest value.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from tests import tiny
from tests.examples.adapter import SignalAdapter, SignalCondition, attach
from tests.examples.pinned import PAST, past_input, prefill
from tests.utils.parallel.ulysses_worker import errors, gradients
from utils.parallel import fsdp, ranks, ulysses
from utils.parallel.compiled import compile_blocks
from utils.parallel.layout import LayoutConfig
from wan import sequence
from wan.attention import selector
from wan.attention.config import AsaConfig, DensePartsConfig
from wan.attention.masks import FrameMask, causal
from wan.cache import CacheShape, Ring
from wan.context import Full, Masked
from wan.geometry import Geometry
from wan.ledger import CacheConfig, Ledger
from wan.sequence import WholeSequence
from wan.tokens import TokenLayout
from wan.transformer import RunInput

GEOMETRY = Geometry(32, 64, latent_channels=4)  # 2 x 4 tokens a frame
BORDERS = tiny.spans(1, 3, 2)
WIDTH = 3
LOOSE = DensePartsConfig(own=False, sink=False, newest=0)
CHECKS = {}
PINNED = replace(PAST, columns=(0, 3))  # 1 x 2 tokens a frame, as many as a unit of all runs


def check(function):
    """Registers a check under its name."""
    CHECKS[function.__name__] = function
    return function


def float64(*key, shape) -> torch.Tensor:
    return tiny.draw(*key, shape=shape, dtype=torch.float64)


def clip(seed: int = 0) -> torch.Tensor:
    return tiny.latents(6, 2, seed, dtype=torch.float64, geometry=GEOMETRY)


def network(group=None, checkpointing: bool = False, order=None, sparse: AsaConfig | None = None):
    """Returns the tiny denoiser with an adapter, shared by the ranks of a group if there is one."""
    model = tiny.denoiser(dtype=torch.float64).requires_grad_(True)
    adapter = attach(model.transformer, SignalAdapter((0, 1), WIDTH, tiny.SPEC.dim).double())
    adapter.project.weight.data.copy_(float64("project", shape=(tiny.SPEC.dim, WIDTH)))
    model.transformer.checkpointing = checkpointing
    model.transformer.sequence = WholeSequence(order)
    if sparse is not None:
        selector.apply(model.transformer, sparse)
    if group is not None:
        ulysses.apply(model.transformer, group)
    return model


def condition() -> SignalCondition:
    text = tiny.condition(2, dtype=torch.float64)
    return SignalCondition(text.text, text.null_text, signal=float64("signal", shape=(2, 6, WIDTH)))


def compare(run, sparse: AsaConfig | None = None, **fields) -> dict[str, float]:
    """run(model) -> (output, inputs), alone and shared; returns the errors of output and gradients."""
    group, fields["sparse"] = dist.group.WORLD, sparse
    alone, inputs = run(model := network(sparse=sparse))
    wanted = gradients(alone, inputs, {"model": model})
    shared, inputs = run(model := network(group, **fields))
    given = gradients(shared, inputs, {"model": model}, group)
    return {"output": errors({"": shared.detach()}, {"": alone.detach()}), "gradients": errors(given, wanted)}


def masked(model):
    """A masked clip with one sigma per frame."""
    x = clip().requires_grad_()
    sigma = float64("sigma", shape=(2, 6)).sigmoid()
    return model(x, sigma, condition(), Masked(causal(BORDERS, 5, 2))), {"x": x}


def uneven(model):
    """A coarse run before the clip: units of two tokens, four in a frame of the clip."""
    x, past = clip().requires_grad_(), float64("past", shape=(2, 2, 4, 2, 4)).requires_grad_()
    run = replace(past_input(past, PINNED), sigma=float64("past sigma", shape=(2, 2)).sigmoid())
    sigma = float64("sigma", shape=(2, 6)).sigmoid()
    frames = torch.block_diag(torch.ones(2, 2), causal(BORDERS, 5, 2).frames) > 0
    frames[2:, :2] = True
    out = model.transformer((run, RunInput(x, sigma)), condition(), Masked(FrameMask(frames)))
    return out, {"x": x, "past": past}


@check
def adapter() -> dict:
    return compare(masked, checkpointing=True)


@check
def runs_of_unequal_frames() -> dict:
    return compare(uneven, checkpointing=True)


def whole(model):
    """A whole clip with one sigma for each sample."""
    x = clip().requires_grad_()
    return model(x, float64("sigma", shape=(2,)).sigmoid(), condition(), Full()), {"x": x}


@check
def sparse_frames() -> dict:
    """Blocks within the frames, half of each frame pads; selected again in the recompute it would be another result."""
    return compare(masked, AsaConfig(block=16, max=0.4, dense=LOOSE), checkpointing=True)


@check
def sparse_clip() -> dict:
    return compare(whole, AsaConfig(block=8, order="clip", probe="drawn", samples=3, max=0.4, pool=3))


def backwards(frames: int, rows: int, columns: int) -> range:
    """Takes tokens out of their frames."""
    return range(frames * rows * columns - 1, -1, -1)


@check
def order_of_tokens() -> dict:
    """Against no order on one rank."""
    return compare(uneven, order=lambda f, r, c: sorted(backwards(f, r, c), key=lambda token: token * 7 % (f * r * c)))


@check
def twin_of_the_order() -> dict:
    """An inner sequence that is left out, as it was: tokens as they lie, angles in their order."""

    def split(self, x, layout):
        parts = x.unflatten(1, (layout.num_units, self.size, -1)).movedim(2, 0)
        return ulysses._Take.apply(parts, self.rank, self.group).flatten(1, 2)

    with mock.patch.object(ulysses.SharedSequence, "split", split):
        return compare(uneven, order=backwards)


@check
def twin_of_the_adapter() -> dict:
    """An adapter that takes its own tokens for the first of the sequence."""
    frames = TokenLayout.frame_of_token

    def first(self):
        whole = frames.fget(replace(self, share=(0, 1)))
        return whole[: len(whole) // self.share[1]]

    with mock.patch.object(TokenLayout, "frame_of_token", property(first)):
        sequence._index.cache_clear()
        found = compare(masked)
    sequence._index.cache_clear()
    return found


@check
def pinned_run(sparse: AsaConfig | None = None) -> dict:
    """A walk over a ring that holds this rank's heads; the pinned run has units of its own."""
    walks = []
    for group in (None, dist.group.WORLD):
        model, text = network(group, sparse=sparse), condition()
        heads = model.cache_heads
        assert heads == (2 if group is None else 1)
        shape = CacheShape(2, 2, heads, model.spec.head_dim, model.frame_tokens(GEOMETRY.grid))
        pinned = PINNED.num_tokens if sparse is None else sparse.block * PINNED.num_frames
        cache = Ring(Ledger(CacheConfig(5, 1), 3, 6, (PINNED,), pinned), shape, dtype=torch.float64)
        prefill(model, cache, past_input(float64("past", shape=(2, 2, 4, 2, 4)), PINNED), text)
        parts = [tiny.walk(model, cache, [span], clip(), text.cut(span), clip(3)) for span in BORDERS]
        walks.append([torch.cat([part[i] for part in parts], 1) for i in (0, 1)])
    return {f"velocity {i}": errors({"": walks[1][i]}, {"": tiny.healthy(walks[0][i])}) for i in (0, 1)}


@check
def sparse_pinned_run() -> dict:
    return pinned_run(AsaConfig(block=4, max=0.4, dense=LOOSE))


@check
def sparse_sharded_weights() -> dict:
    return sharded_weights(AsaConfig(block=4, max=0.4, dense=LOOSE))


@check
def sharded_weights(sparse: AsaConfig | None = None) -> dict:
    """Each rank its own sample; weights, the adapter's among them, sharded, recomputed and compiled."""
    wanted, sample = {}, dist.get_rank()
    outputs = []
    for each in (0, 1):
        model = network(sparse=sparse)
        out, _ = masked(model)
        outputs.append(out.detach()[each])
        (out[each] * float64("loss", shape=out[each].shape)).sum().backward()
        for name, weight in model.named_parameters():
            wanted[name] = wanted.get(name, 0) + weight.grad / 2
    layout = LayoutConfig().build(torch.device("cpu"))
    model = network(checkpointing=True, sparse=sparse)
    compile_blocks(model.transformer, backend="eager")
    with mock.patch.object(fsdp, "cast", lambda module, compute: None):  # float64 weights stay what they are
        fsdp.shard(model.transformer, model.transformer.blocks, layout, torch.float64)
    assert all(fsdp.is_sharded(weight) for weight in model.parameters())
    out, _ = masked(model)
    (out[sample] * float64("loss", shape=out[sample].shape)).sum().backward()
    given = {name: fsdp.whole(weight.grad) for name, weight in model.named_parameters()}
    return {
        "output": errors({"": out.detach()[sample]}, {"": outputs[sample]}),
        "gradients": errors(given, wanted),
    }


def main(folder: str) -> None:
    ranks.init("gloo")
    found = {name: function() for name, function in CHECKS.items()}
    Path(folder, f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    ranks.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
