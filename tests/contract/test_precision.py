"""Batches and dtypes: two samples together as apart, bf16 weights, and the fp32 residual stream of `upstream`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests import tiny, tolerance
from wan.context import Full
from wan.ledger import CacheConfig

CONFIG = CacheConfig(9, 2)
BORDERS = tiny.spans(3, 3, 2, 3, 3)
PASSES = 3 * len(BORDERS)  # two steps and the context pass of each chunk
NEAR = (0.8975, 0.9)  # one number in bf16


def video(batch: int, model=None, text=None, noise=None, config=CONFIG, guidance=2.0, training=False) -> torch.Tensor:
    with torch.no_grad():
        rolls = tiny.rollout(model or tiny.denoiser(), config, guidance=guidance, training=training)
        return tiny.healthy(tiny.video(rolls, text or tiny.condition(batch), BORDERS, noise or tiny.noise(batch)))


def one_sample(index: int) -> torch.Tensor:
    """Returns sample `index` of the batch of 2, run alone."""
    both, noise = tiny.condition(2), tiny.noise(2)
    text = replace(both, text=both.text[index, None], null_text=both.null_text[index, None], key=index)
    return video(1, text=text, noise=lambda span, k: noise(span, k)[index, None])


@pytest.mark.parametrize("training", [False, True], ids=["ring", "chunks"])
def test_rollout_batch_of_two_is_two_of_one(training, bound):
    apart = torch.cat([one_sample(0), one_sample(1)])
    assert tiny.error(video(2, training=training), apart) < bound(PASSES)
    assert tiny.error(apart[:1], apart[1:]) > 0.1


def test_samples_that_mix_break_it(float64):
    swapped = tiny.condition(2)
    swapped = replace(swapped, text=swapped.text.flip(0))
    apart = torch.cat([one_sample(0), one_sample(1)])
    assert tiny.error(video(2, text=swapped), apart) > tolerance.DIFFERENT
    noise = tiny.noise(2)
    assert tiny.error(video(2, noise=lambda span, k: noise(span, k).flip(0)), apart) > tolerance.DIFFERENT


def rounded(precision: str = "weights", dtype=torch.bfloat16):
    """Returns the model with bf16-rounded weights, held in `dtype`."""
    model = tiny.denoiser(dtype=torch.bfloat16).to(dtype)
    model.transformer.precision = precision
    return model


@torch.no_grad()
def velocity(model, sigma=0.7) -> torch.Tensor:
    return tiny.healthy(model(tiny.latents(4), sigma, tiny.condition(), Full()))


def stream_dtypes(model) -> set:
    """Returns the dtypes in which hidden states enter and leave the blocks and enter the feed-forward."""
    seen = {"stream": set(), "half": set()}
    for block in model.transformer.blocks:
        block.register_forward_hook(lambda _, given, out: seen["stream"].update((given[0].dtype, out.dtype)))
        block.ffn.register_forward_hook(lambda _, given, out: seen["half"].update((given[0].dtype, out.dtype)))
    velocity(model)
    return seen


@pytest.mark.parametrize(("precision", "wide"), [("weights", torch.bfloat16), ("upstream", torch.float32)])
def test_dtypes_of_the_residual_stream(precision, wide):
    model = rounded(precision)
    assert stream_dtypes(model) == {"stream": {wide}, "half": {torch.bfloat16}}
    assert velocity(model).dtype == wide


def test_upstream_is_nearer_to_fp32():
    wanted = velocity(rounded(dtype=torch.float32))
    errors = {p: (velocity(rounded(p)).float() - wanted).square().mean().sqrt().item() for p in ("weights", "upstream")}
    assert 1e-5 < errors["upstream"] < 0.7 * errors["weights"] < 0.1


def test_precision_changes_nothing_in_fp32():
    assert torch.equal(velocity(rounded(dtype=torch.float32)), velocity(rounded("upstream", torch.float32)))


def test_sigma_is_not_rounded_to_the_weights():
    """Near 1 bf16 knows only multiples of 1/256: the clock must reach the embedding unrounded."""
    model = rounded()
    with torch.no_grad():
        rows = [model.transformer.embed_time(torch.tensor([[s]], dtype=torch.float64))[0] for s in NEAR]
    assert tiny.error(*rows) > 1e-2
    assert tiny.error(*(velocity(model, s) for s in NEAR)) > 0
    assert torch.tensor(NEAR[0]).bfloat16() == torch.tensor(NEAR[1]).bfloat16()


@pytest.mark.parametrize("precision", ["weights", "upstream"])
@pytest.mark.parametrize("rope", ["write", "read"])
def test_bf16_rollouts_stay_near_fp32(precision, rope):
    config = replace(CONFIG, rope=rope)
    wanted = video(1, rounded(dtype=torch.float32), config=config, guidance=1.0)
    given = video(1, rounded(precision), config=config, guidance=1.0)
    assert given.dtype == torch.float32, "latents keep the dtype of the noise"
    assert (given - wanted).square().mean().sqrt() < 0.05


def test_fp64_runs_throughout():
    model, dtype = tiny.denoiser(dtype=torch.float64), torch.float64
    exact = video(1, model, tiny.condition(dtype=dtype), tiny.noise(dtype=dtype))
    assert exact.dtype == dtype
    assert tolerance.EXACT < tiny.error(exact, video(1)) < tiny.rounding(PASSES)
