"""Floating-point operations of a transformer forward and of a VAE's decode; a multiply-add counts as two.

A forward is counted from its sizes. Left out is what a causal chunk does not repeat or cannot feel: the text's
projections (kept per condition), the time embedding (one row per sample), norms, rotations and softmax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from wan.codec.base import StreamingDecoder
from wan.codec.vae import StreamingVAE
from wan.spec import CLIP_TOKENS, TransformerSpec


@dataclass(frozen=True)
class PassFlops:
    """Operations of one forward: matrix products with weights, attention to the video, attention to the text."""

    linear: int
    self_attention: int
    cross_attention: int

    @property
    def total(self) -> int:
        """All three."""
        return self.linear + self.self_attention + self.cross_attention


def pass_flops(spec: TransformerSpec, query_tokens: int, key_tokens: int, batch: int = 1) -> PassFlops:
    """Returns the operations of a forward over `query_tokens` whose self-attention reads `key_tokens`.

    key_tokens: all that the pass really reads, its own tokens included (window_frames * frame_tokens when
    the window is full). Text keys are `text_len`, padding included, plus the image tokens of Wan 2.1 i2v.
    """
    per_block = 4 * spec.dim**2 + 2 * spec.dim**2 + 2 * spec.dim * spec.ffn_dim  # q k v o; q o of cross; feed-forward
    per_ends = math.prod(spec.patch_size) * (spec.in_dim + spec.out_dim) * spec.dim  # patch embedding and head
    text_tokens = spec.text_len + (CLIP_TOKENS if spec.image_dim else 0)
    queries = batch * query_tokens
    return PassFlops(
        linear=2 * queries * (spec.num_layers * per_block + per_ends),
        self_attention=4 * queries * key_tokens * spec.dim * spec.num_layers,  # q k^T and (softmax) v
        cross_attention=4 * queries * text_tokens * spec.dim * spec.num_layers,
    )


@torch.no_grad()
def decode_flops(decoder: StreamingDecoder, latent_shape: tuple[int, ...]) -> int:
    """Returns the operations of decoding latents [B, F, C, h, w] of a running stream (not its first chunk).

    Counted by torch; for a VAE on a twin without storage, so that nothing is computed.
    """
    latents = torch.zeros(latent_shape)
    if isinstance(decoder, StreamingVAE):
        model, latents = decoder.model, latents.to("meta")
        with torch.device("meta"):
            decoder = StreamingVAE(type(model).from_config(model.config), decoder.config).to("meta")
    _, state = decoder.decode_stream(latents)
    with FlopCounterMode(display=False) as counter:
        decoder.decode_stream(latents, state)
    return counter.get_total_flops()
