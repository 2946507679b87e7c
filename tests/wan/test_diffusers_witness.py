"""An independent witness: diffusers' own transformer with the converted weights gives the same velocity."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from tests import tolerance
from tests.wan.checkpoint.manifest import tiny_transformer
from wan.checkpoint.key_maps import config_to_diffusers, transformer_to_diffusers
from wan.checkpoint.weights import load_strict
from wan.condition import Condition
from wan.context import Full
from wan.denoiser import Denoiser
from wan.transformer import WanTransformer

# 512 keys in series with the sums of two blocks; their wave computes its rates in fp32, up to 1000 times eps off
TOLERANCE = tolerance.rounding(terms=512, sums=36) + 1000 * torch.finfo(torch.float32).eps
SIGMA = 0.75
SHAPES = {
    "t2v": {"text_len": 512},
    "i2v with CLIP": {"model_type": "i2v", "in_dim": 36, "image_dim": 24, "text_len": 512},
    "ti2v, a sigma per frame": {"model_type": "ti2v", "in_dim": 48, "out_dim": 48, "text_len": 512},
}


def drawn_weights(state):
    """Random weights that keep activations near unit scale, none of them zero."""
    scale = {n: 1.0 if t.ndim == 1 else t[0].numel() ** 0.5 for n, t in state.items()}
    return {n: 1 + 0.1 * t if "norm" in n and n.endswith("weight") else 0.7 * t / scale[n] for n, t in state.items()}


def theirs(spec, state):
    from diffusers import WanTransformer3DModel

    config = config_to_diffusers(asdict(spec))
    config = {k: v for k, v in config.items() if k not in ("_class_name", "model_type", "text_len", "rope_theta")}
    model = WanTransformer3DModel(**config).eval()
    load_strict(model, transformer_to_diffusers(state), "the witness")
    return model


@pytest.fixture(scope="module", params=sorted(SHAPES))
def pair(request):
    """(our denoiser, their model, inputs): two samples of 3 frames of 6 x 4 latents."""
    spec, state = tiny_transformer(num_heads=4, dim=96, **SHAPES[request.param])
    state = drawn_weights(state)
    ours = WanTransformer(spec)
    load_strict(ours, state, "ours")
    rng = torch.Generator().manual_seed(4)
    x = torch.randn(2, 3, spec.in_dim, 6, 4, generator=rng)
    text = torch.randn(2, 512, spec.text_dim, generator=rng)
    text[0, 7:], text[1, 30:] = 0, 0
    image = torch.randn(2, 257, spec.image_dim, generator=rng) if spec.image_dim else None
    sigma = torch.tensor([[0.0, SIGMA, SIGMA], [0.0, 0.5, 0.5]]) if spec.model_type == "ti2v" else None
    return Denoiser(ours.eval().requires_grad_(False)), theirs(spec, state), (x, text, image, sigma)


def both(pair):
    ours, model, (x, text, image, sigma) = pair
    mine = ours(x, SIGMA if sigma is None else sigma, Condition(text, image=image), Full())
    tokens = x.shape[3] * x.shape[4] // 4
    times = torch.full((2,), 1000 * SIGMA) if sigma is None else 1000 * sigma.repeat_interleave(tokens, 1)
    with torch.no_grad():
        out = model(x.transpose(1, 2), times, text, encoder_hidden_states_image=image, return_dict=False)[0]
    return mine, out.transpose(1, 2)


def test_the_same_velocity(pair):
    mine, out = both(pair)
    assert mine.shape == out.shape and out.std() > 0.3
    error = (mine - out).abs().max().item()
    assert error <= TOLERANCE, f"{error:.1e}"


@pytest.mark.parametrize("name", ["blocks.1.cross_attn.norm_k.weight", "blocks.0.modulation", "head.modulation"])
def test_a_changed_weight_is_noticed(pair, name):
    weight = pair[0].transformer.get_parameter(name)
    kept = weight.clone()
    try:
        weight.mul_(1.5)
        mine, out = both(pair)
        assert (mine - out).abs().max() > TOLERANCE
    finally:
        weight.copy_(kept)
