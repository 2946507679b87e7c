"""The transformer block: self-attention, cross-attention to the text, feed-forward.

Module names are those of the official checkpoints.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from wan.attention.call import AttentionCall
from wan.attention.config import AttentionConfig
from wan.attention.dispatch import attend
from wan.layers import RMSNorm, gated_sum, layer_norm, modulate
from wan.spec import CLIP_TOKENS, TransformerSpec


class Attention(nn.Module):
    """Projections q, k, v, o and the norms of q and k over the whole width (before the heads)."""

    def __init__(self, spec: TransformerSpec):
        super().__init__()
        dim, self.num_heads = spec.dim, spec.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q = RMSNorm(dim, spec.eps) if spec.qk_norm else nn.Identity()
        self.norm_k = RMSNorm(dim, spec.eps) if spec.qk_norm else nn.Identity()
        self.config = AttentionConfig()

    def heads(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """[B, L, D] -> [B, L, N, E]."""
        return x_BLD.unflatten(-1, (self.num_heads, -1))


class SelfAttention(Attention):
    """Attention among the tokens of the sequence; the context decides what they may attend to."""

    def project(self, x_BLD: torch.Tensor):
        """Returns q, k, v [B, L, N, E]."""
        q, k = self.heads(self.norm_q(self.q(x_BLD))), self.heads(self.norm_k(self.k(x_BLD)))
        return q, k, self.heads(self.v(x_BLD))


class CrossAttention(Attention):
    """Attention to the text; Wan 2.1 i2v adds a second one to the image tokens and sums both."""

    def __init__(self, spec: TransformerSpec):
        super().__init__(spec)
        if spec.image_dim:
            self.k_img, self.v_img = nn.Linear(spec.dim, spec.dim), nn.Linear(spec.dim, spec.dim)
            self.norm_k_img = RMSNorm(spec.dim, spec.eps) if spec.qk_norm else nn.Identity()

    def project(self, text_BTD: torch.Tensor, image_BTD: torch.Tensor | None):
        """Returns the (k, v) pairs [B, T, N, E] to attend to: the text's, then the image's."""
        pairs = [(self.heads(self.norm_k(self.k(text_BTD))), self.heads(self.v(text_BTD)))]
        if image_BTD is not None:
            k = self.norm_k_img(self.k_img(image_BTD))
            pairs.append((self.heads(k), self.heads(self.v_img(image_BTD))))
        return pairs

    def read(self, layer: int, q_BLNE: torch.Tensor, pairs) -> torch.Tensor:
        """Returns what the queries read from the pairs, summed, [B, L, D] before the projection `o`."""
        return sum(attend(AttentionCall(q_BLNE, k, v, layer), self.config).flatten(2) for k, v in pairs)


class Block(nn.Module):
    """x += gate * SelfAttn(mod(x)); x += CrossAttn(norm3(x)); x += gate * FFN(mod(x)).

    Modulation rows: shift, scale, gate of attention, then of the feed-forward; one set for all tokens, per frame,
    or per stretch of equal length (R of them).
    The methods named in `regions` are tensor code alone, the same for every layer: caches, masks,
    cached text and the choice of a kernel stay between them, so a compiler can take each as one graph.
    """

    regions = ("qkv", "attention_out", "cross_and_ffn")

    def __init__(self, spec: TransformerSpec):
        super().__init__()
        self.eps = spec.eps
        self.self_attn = SelfAttention(spec)
        self.norm3 = nn.LayerNorm(spec.dim, spec.eps) if spec.cross_attn_norm else nn.Identity()
        self.cross_attn = CrossAttention(spec)
        self.ffn = nn.Sequential(nn.Linear(spec.dim, spec.ffn_dim), nn.GELU("tanh"), nn.Linear(spec.ffn_dim, spec.dim))
        self.modulation = nn.Parameter(torch.empty(1, 6, spec.dim))

    def forward(self, x_BLD, time_BR6D, text, view, layer: int) -> torch.Tensor:
        """`text`: callable without arguments -> (text tokens, image tokens), called only where none are cached."""
        rows = (self.modulation[:, None].to(time_BR6D.dtype) + time_BR6D).unbind(2)
        shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = rows
        q, k, v = self.qkv(x_BLD, shift_attn, scale_attn)
        x_BLD, q = self.attention_out(x_BLD, view.attend(layer, q, k, v, self.self_attn.config), gate_attn)
        pairs = view.text.get(layer, text.key, lambda: self.cross_attn.project(*text()))
        return self.cross_and_ffn(x_BLD, self.cross_attn.read(layer, q, pairs), shift_ffn, scale_ffn, gate_ffn)

    def qkv(self, x_BLD, shift_BRD, scale_BRD):
        """Returns q, k, v [B, L, N, E] of self-attention."""
        return self.self_attn.project(modulate(layer_norm(x_BLD, self.eps), shift_BRD, scale_BRD).to(self._half))

    def attention_out(self, x_BLD, attended_BLNE, gate_BRD):
        """Adds the self-attention output; returns x and the queries [B, L, N, E] of cross-attention."""
        x_BLD = gated_sum(x_BLD, self.self_attn.o(attended_BLNE.flatten(2)), gate_BRD)
        attention = self.cross_attn
        return x_BLD, attention.heads(attention.norm_q(attention.q(self._norm3(x_BLD).to(self._half))))

    def cross_and_ffn(self, x_BLD, read_BLD, shift_BRD, scale_BRD, gate_BRD):
        """Adds the cross-attention output, then the feed-forward; returns x."""
        x_BLD = x_BLD + self.cross_attn.o(read_BLD)
        h = modulate(layer_norm(x_BLD, self.eps), shift_BRD, scale_BRD).to(self._half)
        return gated_sum(x_BLD, self.ffn(h), gate_BRD)

    @property
    def _half(self) -> torch.dtype:
        """Dtype of the projections, which may be narrower than the residual stream."""
        return self.ffn[0].bias.dtype  # of bf16 networks with 8-bit weights too

    def _norm3(self, x: torch.Tensor) -> torch.Tensor:
        """norm3 in the dtype of x: its weights follow when the residual stream is wider."""
        if isinstance(self.norm3, nn.Identity):
            return x
        weight, bias = self.norm3.weight.to(x.dtype), self.norm3.bias.to(x.dtype)
        return functional.layer_norm(x, x.shape[-1:], weight, bias, self.eps)


class Head(nn.Module):
    """Norm, modulation by the raw time embedding, projection to patches."""

    def __init__(self, spec: TransformerSpec):
        super().__init__()
        self.eps = spec.eps
        patch = spec.patch_size[0] * spec.patch_size[1] * spec.patch_size[2]
        self.head = nn.Linear(spec.dim, patch * spec.out_dim)
        self.modulation = nn.Parameter(torch.empty(1, 2, spec.dim))

    def forward(self, x_BLD: torch.Tensor, time_BRD: torch.Tensor) -> torch.Tensor:
        shift, scale = (self.modulation[:, None].to(time_BRD.dtype) + time_BRD[:, :, None]).unbind(2)
        h = modulate(layer_norm(x_BLD, self.eps), shift, scale)
        return functional.linear(h, self.head.weight.to(h.dtype), self.head.bias.to(h.dtype))


class ImageEmbedding(nn.Module):
    """CLIP tokens [B, 257, 1280] -> [B, 257, D] (Wan 2.1 i2v)."""

    def __init__(self, spec: TransformerSpec):
        super().__init__()
        width = spec.image_dim
        self.proj = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, spec.dim), nn.LayerNorm(spec.dim)
        )

    def forward(self, image_BTD: torch.Tensor) -> torch.Tensor:
        if image_BTD.shape[1] != CLIP_TOKENS:
            raise ValueError(f"{image_BTD.shape[1]} image tokens given; CLIP ViT-H/14 makes {CLIP_TOKENS}")
        return self.proj(image_BTD)
