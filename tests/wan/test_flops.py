"""Counted operations: Wan 2.1 1.3B's known numbers, and torch's own counter on a real forward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests import tiny
from wan.checkpoint.library import VAE_CONFIGS, build_vae
from wan.codec.base import StreamingDecoder
from wan.codec.vae import StreamingVAE
from wan.config import VAEConfig
from wan.context import Full
from wan.flops import decode_flops, pass_flops
from wan.geometry import Geometry
from wan.spec import SPECS

CHUNK = 3


@pytest.mark.parametrize(("window", "attention", "chunk"), [(12, 16.148, 141.5), (21, 28.259, 202.0)])
def test_wan_1_3b_costs_what_is_known(window, attention, chunk):
    """Tera-operations per pass, and per chunk of 4 denoising passes and the context pass."""
    spec = SPECS["t2v-1.3B"]
    tokens = Geometry.of(spec).frame_tokens
    flops = pass_flops(spec.transformer, CHUNK * tokens, window * tokens)
    assert flops.linear / 1e12 == pytest.approx(11.706, abs=5e-4)
    assert flops.self_attention / 1e12 == pytest.approx(attention, abs=5e-4)
    assert flops.cross_attention / 1e12 == pytest.approx(0.442, abs=5e-4)
    assert 5 * flops.total / 1e12 == pytest.approx(chunk, abs=0.05)


@pytest.mark.parametrize("batch", [1, 2])
def test_linears_are_what_torch_counts(batch):
    """torch counts the kept text and the time embedding too; without these nothing may be left."""
    model, frames, spec = tiny.denoiser(), 4, tiny.SPEC
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(tiny.latents(frames, batch), 0.5, tiny.condition(batch), Full())
    counts = counter.get_flop_counts()["Global"]
    counted = sum(n for op, n in counts.items() if "attention" not in str(op))
    time = 2 * batch * (spec.freq_dim * spec.dim + 7 * spec.dim**2)
    text = 2 * batch * spec.text_len * (spec.text_dim * spec.dim + spec.dim**2 + spec.num_layers * 2 * spec.dim**2)
    tokens = frames * tiny.GEOMETRY.frame_tokens
    assert counted - time - text == pass_flops(spec, tokens, tokens, batch).linear


def test_attention_grows_with_keys_and_images_alone():
    spec = tiny.SPEC
    short, long = pass_flops(spec, 18, 18), pass_flops(spec, 18, 36)
    assert long.self_attention == 2 * short.self_attention
    assert (long.linear, long.cross_attention) == (short.linear, short.cross_attention)
    image = pass_flops(replace(spec, image_dim=8), 18, 18)
    assert image.cross_attention - short.cross_attention == 4 * 18 * 257 * spec.dim * spec.num_layers
    assert image.linear == short.linear


@pytest.mark.parametrize("together", [1, 3])
def test_a_decoded_chunk_costs_what_is_known(together):
    vae = StreamingVAE(build_vae(VAE_CONFIGS["vae 2.1"], "meta"), VAEConfig(frames_per_pass=together))
    shape = (1, *Geometry.of(SPECS["t2v-1.3B"]).latent_shape(CHUNK))
    assert decode_flops(vae, shape) / 1e12 == pytest.approx(40.65, abs=5e-3)


class Projected(StreamingDecoder):
    """A decoder that is one matrix over the channels; its first call costs more than the others."""

    strides, latent_channels = (1, 1, 1), 16

    def decode_stream(self, latents, state=None):
        """Returns (pixels, state)."""
        times = 1 if state else 2
        for _ in range(times):
            pixels = latents.movedim(2, -1) @ torch.ones(16, 3)
        return pixels.movedim(-1, 2), ("running",)


def test_decode_flops_of_any_decoder_are_those_of_a_running_stream():
    assert decode_flops(Projected(), (2, 5, 16, 4, 6)) == 2 * (2 * 5 * 4 * 6) * 16 * 3
