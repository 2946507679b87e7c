"""Adapters: a signal per frame in every way to run, against hooks that write it out; the tap of the discriminator."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import set_checkpoint_early_stop

from tests import tiny, tolerance
from tests.examples.adapter import SignalAdapter, SignalCondition, attach
from tests.examples.pinned import past_input
from utils.parallel.compiled import compile_blocks
from wan.adapters import Tap, tap
from wan.attention import masks
from wan.blocks import Block
from wan.context import Full, Masked
from wan.ledger import CacheConfig
from wan.sequence import WholeSequence
from wan.transformer import RunInput, WanTransformer

BATCH, WIDTH, LAYERS = 2, 3, (0,)
BORDERS = tiny.spans(1, 3, 2, 3)
CLIP = tiny.latents(9, BATCH, dtype=torch.float64)
SIGNAL = tiny.draw("signal", shape=(BATCH, 9, WIDTH), dtype=torch.float64)
TEXT = tiny.condition(BATCH, dtype=torch.float64)
CONDITION = SignalCondition(TEXT.text, TEXT.null_text, signal=SIGNAL)


def project() -> torch.Tensor:
    return tiny.draw("project", shape=(tiny.SPEC.dim, WIDTH), dtype=torch.float64)


def network(trained: bool = False, layers=LAYERS):
    """Returns the tiny denoiser with the example's adapter."""
    model = tiny.denoiser(dtype=torch.float64).requires_grad_(trained)
    adapter = attach(model.transformer, SignalAdapter(layers, WIDTH, tiny.SPEC.dim).double())
    adapter.project.weight.data.copy_(project())
    adapter.requires_grad_(trained)
    return model


def naive(trained: bool = False, frames: int = 9, layers=LAYERS, signal=SIGNAL):
    """Returns (the denoiser whose blocks add the signal in a hook, the projection)."""
    model, weight = tiny.denoiser(dtype=torch.float64).requires_grad_(trained), project().requires_grad_(trained)

    def add(module, inputs, x):
        rows = torch.cat([signal[:, :frames]] * (x.shape[1] // (6 * frames)), 1) @ weight.T
        return x + torch.stack([rows[:, token // 6] for token in range(x.shape[1])], 1)

    for layer in layers:
        model.transformer.blocks[layer].register_forward_hook(add)
    return model, weight


def walked(model, storage=tiny.ring, rope: str = "write"):
    """Returns the velocities of the context passes and of noisy passes over a cache, the condition cut per chunk."""
    cache, made = storage(model, CacheConfig(6, 2, rope), 3, batch=BATCH), ([], [])
    for span in BORDERS:
        pair = tiny.walk(model, cache, [span], CLIP, CONDITION.cut(span), CLIP.flip(1))
        for velocities, velocity in zip(made, pair, strict=True):
            velocities.append(velocity)
    return [torch.cat(velocities, 1) for velocities in made]


@torch.no_grad()
def test_full_and_masked():
    model, (reference, _) = network(), naive()
    mask = Masked(masks.causal(BORDERS, 6, 2))
    for context in (Full(), mask):
        wanted = tiny.healthy(reference(CLIP, 0.7, TEXT, context))
        assert tiny.error(model(CLIP, 0.7, CONDITION, context), wanted) < tolerance.EXACT
    assert tiny.error(tiny.denoiser(dtype=torch.float64)(CLIP, 0.7, TEXT, mask), wanted) > 1e-2, "it does something"


@torch.no_grad()
def test_every_run_has_its_own_frames():
    """Clean and noisy frames get the signal, a reference does not; in any order of the tokens."""
    model, (reference, _) = network(), naive()
    clean = RunInput(CLIP.flip(1), torch.zeros(BATCH, 9), "clean")
    context = Masked(masks.teacher_forcing(BORDERS, 6, 2))
    wanted = tiny.healthy(reference(CLIP, 0.7, TEXT, context, clean))
    assert tiny.error(model(CLIP, 0.7, CONDITION, context, clean), wanted) < tolerance.EXACT
    past = past_input(tiny.draw("past", shape=(BATCH, 2, 4, 2, 6), dtype=torch.float64))
    video = RunInput(CLIP, torch.full((BATCH, 1), 0.7))
    beside = model.transformer((past, video), CONDITION, Full())
    silent = replace(CONDITION, signal=torch.zeros_like(SIGNAL), key=-1)
    assert tiny.error(beside, tiny.healthy(model.transformer((past, video), silent, Full()))) > 1e-2
    model.transformer.sequence = WholeSequence(lambda f, r, c: range(f * r * c - 1, -1, -1))
    assert tiny.error(model.transformer((past, video), CONDITION, Full()), beside) < tolerance.EXACT


@pytest.mark.parametrize("storage", [tiny.ring, tiny.kept_chunks], ids=["ring", "chunks"])
@torch.no_grad()
def test_cached_is_one_masked_forward(storage):
    given, noisy = walked(network(), storage)
    reference, _ = naive()
    wanted = tiny.healthy(reference(CLIP, 0.0, TEXT, Masked(masks.causal(BORDERS, 6, 2))))
    assert tiny.error(given, wanted) < tolerance.EXACT
    clean = RunInput(CLIP, torch.zeros(BATCH, 9), "clean")
    wanted = reference(CLIP.flip(1), 0.7, TEXT, Masked(masks.teacher_forcing(BORDERS, 6, 2)), clean)
    assert tiny.error(noisy, wanted) < tolerance.EXACT


def gradients(model, weight, condition, context=None) -> dict[str, torch.Tensor]:
    """Returns the velocity and the gradients of its weighted sum."""
    out = model(CLIP, 0.7, condition, context or Masked(masks.causal(BORDERS, 6, 2)))
    (tiny.healthy(out) * tiny.draw("loss", shape=out.shape, dtype=out.dtype)).sum().backward()
    names = dict(model.transformer.named_parameters())
    names.pop("signal.project.weight", None)
    return {n: w.grad for n, w in names.items()} | {"project": weight.grad, "out": out.detach()}


def worst(given: dict, wanted: dict) -> float:
    assert given.keys() == wanted.keys() and len(given) > 20
    return max(tiny.error(given[n], wanted[n]) for n in wanted)


def trained(change=lambda transformer: None) -> dict[str, torch.Tensor]:
    model = network(trained=True)
    change(model.transformer)
    return gradients(model, model.transformer.signal.project.weight, CONDITION)


@pytest.fixture(scope="module")
def wanted() -> dict[str, torch.Tensor]:
    """Velocity and gradients of the written-out reference."""
    return gradients(*naive(trained=True), TEXT)


def checkpointed(transformer):
    transformer.checkpointing = True


def test_recomputed_in_backward(wanted):
    assert worst(trained(), wanted) < tolerance.EXACT
    assert worst(trained(checkpointed), wanted) < tolerance.EXACT


def test_recompute_asks_the_adapters_of_the_forward(wanted):
    """Adapters that are gone when backward runs are still part of what is recomputed."""

    @contextlib.contextmanager
    def attached(model):
        before, model.transformer.adapters = model.transformer.adapters, (model.transformer.signal,)
        yield
        model.transformer.adapters = before

    model = network(trained=True)
    model.transformer.adapters, model.transformer.checkpointing = (), True
    with attached(model):
        out = model(CLIP, 0.7, CONDITION, Masked(masks.causal(BORDERS, 6, 2)))
    (out * tiny.draw("loss", shape=out.shape, dtype=out.dtype)).sum().backward()
    given = model.transformer.blocks[0].ffn[0].weight.grad
    assert tiny.error(given, wanted["blocks.0.ffn.0.weight"]) < tolerance.EXACT


@pytest.fixture
def fresh_compiler():
    """Sizes that a compiler has met here must not be known to other tests."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compiled_with_its_own_graph(wanted, fresh_compiler):
    counter = CompileCounterWithBackend("aot_eager")
    names = list(network().state_dict())

    def compiled(transformer):
        checkpointed(transformer)
        compile_blocks(transformer, backend=counter)
        assert list(transformer.state_dict()) == [name.removeprefix("transformer.") for name in names]

    assert worst(trained(compiled), wanted) < tolerance.EXACT
    assert counter.frame_count == len(Block.regions) + len(SignalAdapter.regions)
    with pytest.raises(ValueError, match="compiled already"):
        compile_blocks(compile_blocks(network().transformer, backend="eager"))


def frame_late(monkeypatch):
    """Each frame gets the signal of the one before."""
    add = SignalAdapter.add
    monkeypatch.setattr(SignalAdapter, "add", lambda self, x, signal, frame: add(self, x, signal.roll(1, 1), frame))


def after_the_head_only(monkeypatch):
    """Adapters that are asked after the last block only."""
    run = WanTransformer._run_block

    def last_alone(self, layer, x, rows, text, view, adapters, *rest):
        return run(self, layer, x, rows, text, view, adapters if layer else (), *rest)

    monkeypatch.setattr(WanTransformer, "_run_block", last_alone)


def whole_signal(monkeypatch):
    """A condition that is not cut to the chunk's frames, but to the video's first."""
    cut = SignalCondition.cut
    monkeypatch.setattr(SignalCondition, "cut", lambda self, span: replace(cut(self, span), signal=self.signal))


@pytest.mark.parametrize("mutate", [frame_late, after_the_head_only, whole_signal])
@torch.no_grad()
def test_faults_show(mutate, monkeypatch):
    wanted = naive()[0](CLIP, 0.0, TEXT, Masked(masks.causal(BORDERS, 6, 2)))
    mutate(monkeypatch)
    assert tiny.error(walked(network())[0], wanted) > 1e-3


def tapped(transformer, layers=(0, -1), **fields):
    with set_checkpoint_early_stop(False), tap(transformer, layers) as found:
        out = tiny.Denoiser(transformer)(CLIP, 0.7, TEXT, Full(), **fields)
    return found, out


def test_a_tap_records_the_tokens_after_its_blocks():
    transformer, hooked = tiny.transformer(dtype=torch.float64).requires_grad_(True), {}
    for layer, block in enumerate(transformer.blocks):
        block.register_forward_hook(lambda module, inputs, x, layer=layer: hooked.__setitem__(layer, x))
    for transformer.checkpointing in (False, True):
        found, out = tapped(transformer, (0, -1, 1))
        assert found.features.keys() == {0, -1, 1} and found.features[-1] is found.features[1]
        assert found.features[0] is hooked[0] and found.features[1] is hooked[1]
        assert found.tokens.num_tokens == 54 and transformer.adapters == ()
        kept = dict(found.features)
        (out.sum() + found.features[0].square().sum()).backward()
        assert all(found.features[layer] is kept[layer] for layer in kept), "a recompute records nothing"
    with pytest.raises(ValueError, match=r"blocks \[2, -3\] cannot be tapped: the transformer has 2 \(0..1\)"):
        tapped(transformer, (0, 2, -3))


def test_a_tap_has_the_gradient_of_its_features():
    found = {}
    for checkpointing in (False, True):
        transformer = tiny.transformer(dtype=torch.float64).requires_grad_(True)
        transformer.checkpointing = checkpointing
        features = tapped(transformer)[0].features
        (features[0].square().sum() + features[-1].sum()).backward()
        found[checkpointing] = {n: w.grad for n, w in transformer.named_parameters() if w.grad is not None}
    assert worst(found[True], found[False]) < tolerance.EXACT
    assert found[True]["blocks.1.ffn.0.weight"].abs().max() > 0.01
    assert "head.head.weight" not in found[True]


def test_a_tap_that_stays_open_shows(monkeypatch):
    """The twin: one that records what backward recomputes."""
    always = property(lambda self: True, lambda self, value: None)
    monkeypatch.setattr(Tap, "is_open", always, raising=False)
    transformer = tiny.transformer(dtype=torch.float64).requires_grad_(True)
    transformer.checkpointing = True
    found, out = tapped(transformer, (0,))
    kept = found.features[0]
    out.sum().backward()
    assert found.features[0] is not kept
