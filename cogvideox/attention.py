"""Self-attention over [video | text] through the project's own call, in place of the library's processor."""

from __future__ import annotations

import torch

from wan.attention.config import AttentionConfig


class JointAttention:
    """A processor of diffusers' `Attention`: projections and norms are its own, attention is the view's.

    config: which kernel runs; one for all blocks of a network.
    """

    def __init__(self):
        self.config = AttentionConfig()

    def __call__(
        self, attn, hidden_states, encoder_hidden_states, attention_mask, view, layer: int, image_rotary_emb=None
    ):
        """Returns (video tokens, text tokens), each [B, L, D]; rotation and masks are the view's."""
        length = hidden_states.shape[1]
        tokens = torch.cat((hidden_states, encoder_hidden_states), 1)
        q, k, v = (project(tokens).unflatten(-1, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        attended = attn.to_out[0](view.attend(layer, q, k, v, self.config).flatten(2))
        return attended[:, :length], attended[:, length:]
