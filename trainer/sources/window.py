"""Loss window of a long rollout: the last frames; the frame before them is re-encoded as one image latent.

A teacher sees clips whose first latent frame is a single pixel frame. So the last N frames of a
longer video are scored as [last pixel frame before them, encoded alone | last N - 1 latents], and
the first chunk of that window does not count.
Source: Self-Forcing, model/base.py; LongLive (arXiv 2509.22622).
"""

from __future__ import annotations

import torch


def loss_window(latents_BFCHW: torch.Tensor, num_frames: int, vae, head: int):
    """Returns (latents [B, N, C, h, w], mask bool [N] or None) of a rollout for a loss window of N frames.

    vae: decodes and encodes without gradient; asked only if the rollout is longer than the window.
    head: frames at the window's start that do not count (the first chunk).
    """
    if latents_BFCHW.shape[1] <= num_frames:
        return latents_BFCHW, None
    kept = latents_BFCHW[:, 1 - num_frames :]
    with torch.no_grad():
        past = vae.last_frame(latents_BFCHW[:, : 1 - num_frames])
        first = vae.encode(past).to(kept)
    mask = torch.arange(num_frames, device=kept.device) >= head
    return torch.cat((first, kept), 1), mask
