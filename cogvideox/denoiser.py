"""CogVideoX as a velocity field: its variance-preserving latents and integer times behind sigma in [0, 1].

With A^2 + S^2 = 1 the signal and noise of a time, and sigma = S / (A + S): x_flow = x / (A + S) lies on the straight
line (1 - sigma) x0 + sigma noise, and velocity = noise - x0 = (S^2 - A^2) x_flow + (A + S) v. A step of Euler is one
of DDIM.
"""

from __future__ import annotations

import torch
from torch import nn

from cogvideox.transformer import CogVideoXTransformer
from wan.condition import Condition
from wan.denoiser import sigma_rows
from wan.schedule import vp_time


class CogVideoXDenoiser(nn.Module):
    """One CogVideoX transformer as a velocity field; bidirectional."""

    def __init__(self, transformer: CogVideoXTransformer):
        super().__init__()
        self.transformer = transformer

    @property
    def spec(self):
        """Sizes of the transformer."""
        return self.transformer.spec

    def forward(self, x_BFCHW, sigma, condition: Condition, context, clean=None) -> torch.Tensor:
        """Returns the velocity [B, F, C, h, w]; sigma: a float or [B], or [B, F] with equal columns.

        Errors: ValueError for a cache, a mask or clean frames.
        """
        if context.cached or context.mask is not None or clean is not None:
            raise ValueError(
                "CogVideoX sees whole clips, without cache or mask; write pipeline.name=bidirectional, and a loss and "
                "a source whose mode is bidirectional"
            )
        level = sigma if isinstance(sigma, float) else None
        sigma = sigma_rows(sigma, x_BFCHW)[:, :1].double()
        times = vp_time(sigma[:, 0], self.spec.snr_shift)
        size = ((1 - sigma).square() + sigma.square()).rsqrt()[..., None, None, None]  # A + S
        sigma, wide = sigma[..., None, None, None], torch.promote_types(x_BFCHW.dtype, torch.float32)
        signal, spread = (1 - sigma) * size, sigma * size
        x = x_BFCHW.to(wide)
        v = self.transformer((x * size.to(wide)).to(x_BFCHW.dtype), times, condition.text, level).to(wide)
        return ((spread.square() - signal.square()).to(wide) * x + size.to(wide) * v).to(x_BFCHW.dtype)

    def portrait_frames(self, condition: Condition) -> int:
        """Returns 0: there is no portrait."""
        return 0
