"""An attention kernel of your own: the softmax written out. It is this file and one line of `BACKENDS`:

    BACKENDS["written_out"] = "tests.examples.kernel:WrittenOut"

A recipe then chooses it by `model.attention.backend=written_out`, a training by `trainer.generator.attention.backend`.
"""

from __future__ import annotations

import torch
from einops import einsum

from wan.attention.call import AttentionCall


class WrittenOut:
    """softmax(q k^T / sqrt(E)) v on any device, with gradient, with and without a mask."""

    def usable(self, call: AttentionCall) -> str | None:
        """Returns why it cannot run this call, or None."""
        return "it is for heads of at most 256 channels" if call.q.shape[-1] > 256 else None

    def run(self, call: AttentionCall) -> torch.Tensor:
        """[B, L, N, E] in and out."""
        scores = einsum(call.q, call.k, "b l n e, b s n e -> b n l s") * call.q.shape[-1] ** -0.5
        if call.mask is not None:
            visible = call.mask.dense(call.queries, call.keys, call.q.device)
            scores = scores.masked_fill(~visible, -torch.inf)
        return einsum(scores.softmax(-1), call.v, "b n l s, b s n e -> b l n e")
