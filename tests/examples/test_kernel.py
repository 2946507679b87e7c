"""The kernel of `kernel.py` computes what torch's does: full, masked and cached, with gradient."""

from __future__ import annotations

import pytest
import torch

from tests import tiny, tolerance
from utils.config.field import check
from wan.attention import BACKENDS, dispatch
from wan.attention.config import AttentionConfig
from wan.attention.masks import causal
from wan.context import Full, Masked
from wan.ledger import CacheConfig

pytestmark = pytest.mark.usefixtures("float64")
DTYPE = torch.float64


@pytest.fixture(autouse=True)
def entry(monkeypatch):
    """The line of the table."""
    monkeypatch.setitem(BACKENDS, "written_out", "tests.examples.kernel:WrittenOut")
    dispatch._kernel.cache_clear()


def network(backend: str):
    """Returns the tiny network with a kernel; as a recipe would, it checks the name."""
    config = AttentionConfig(backend)
    check(config)
    model = tiny.denoiser(dtype=DTYPE).requires_grad_(True)
    dispatch.apply(model.transformer, config)
    return model


@pytest.mark.parametrize("context", [Full(), Masked(causal(tiny.spans(2, 2)))], ids=["full", "masked"])
def test_kernel_equals_sdpa_with_its_gradient(context):
    outputs, gradients = [], []
    for backend in ("sdpa", "written_out"):
        model = network(backend)
        velocity = model(tiny.latents(4, dtype=DTYPE), 0.6, tiny.condition(dtype=DTYPE), context)
        velocity.square().sum().backward()
        outputs.append(tiny.healthy(velocity).detach())
        gradients.append(model.transformer.blocks[0].self_attn.k.weight.grad)
    assert tiny.error(*outputs) < tolerance.EXACT
    assert tiny.error(*gradients) < tolerance.EXACT * gradients[0].abs().max().clamp(min=1)


def test_kernel_equals_sdpa_over_a_cache():
    videos = []
    for backend in ("sdpa", "written_out"):
        rolls = tiny.rollout(network(backend), CacheConfig(6, 2))
        with torch.no_grad():
            videos.append(tiny.video(rolls, tiny.condition(dtype=DTYPE), tiny.spans(3, 3, 3), tiny.noise(dtype=DTYPE)))
    assert tiny.error(*videos) < tolerance.EXACT


def test_kernel_says_why_it_cannot_run():
    wide = torch.zeros(1, 1, 1, 512)
    with pytest.raises(ValueError, match="'written_out' cannot be used here: it is for heads of at most 256 channels"):
        dispatch.attend(dispatch.AttentionCall(wide, wide, wide), AttentionConfig("written_out"))
