"""A pinned run in full: two clean frames of the past, on a coarser grid, that every chunk of a video attends to.

    ledger = Ledger(config, chunk_frames, max_frames, pinned=(PAST,))
    cache = Ring(ledger, shape)
    prefill(denoiser, cache, past_input(latents), condition)
    denoiser(x, sigma, condition, Cached(cache, span))

The prefill pass writes their keys and values once. Keys are kept as they are and rotated when they are read, so a
chunk may place them elsewhere: `Cached(cache, span, pinned=(replace(PAST, times=...),))`.
"""

from __future__ import annotations

import torch

from wan.condition import Condition
from wan.context import Prefill
from wan.tokens import Run, spread
from wan.transformer import RunInput

# Before frame 0, 1 x 3 tokens a frame, spread over the rows and columns of a 2 x 6 video.
PAST = Run("motion", times=(-5, -1), rows=(0.5,), columns=spread(3, over=6), cached=True)


def past_input(latents_BFCHW: torch.Tensor, run: Run = PAST) -> RunInput:
    """Returns clean latents (sigma 0) as the input of the run."""
    sigma = latents_BFCHW.new_zeros(len(latents_BFCHW), 1)
    return RunInput(latents_BFCHW, sigma, run.kind, (run.times, run.rows, run.columns))


@torch.no_grad()
def prefill(denoiser, cache, past: RunInput, condition: Condition) -> None:
    """Writes the pinned run of a cache; again where the condition changes, because it has read the text."""
    context = Prefill(cache)
    denoiser.transformer((past,), condition, context)
    context.commit()
