"""Generation without a rollout: clean data at one drawn step per chunk, one masked forward (CausVid)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model.flow import diffuse_noisy, masked_context
from wan.condition import Condition
from wan.geometry import Span
from wan.ledger import CacheConfig
from wan.schedule import Schedule
from wan.transformer import RunInput


def generate_from_data(
    generator,
    clean: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    condition: Condition,
    spans: Sequence[Span],
    schedule: Schedule,
    cache: CacheConfig,
    teacher_forcing: bool,
) -> torch.Tensor:
    """Returns the generator's x0 [B, F, C, h, w] of clean latents noised to sigma [B, F] (0 = left clean).

    teacher_forcing: chunks see the clean frames before them, else the noisy ones.
    Source: CausVid (arXiv 2412.07772); Self-Forcing, model/causvid.py (which never starts).
    """
    x = diffuse_noisy(schedule, clean, noise, sigma)
    mode = "teacher_forcing" if teacher_forcing else "diffusion_forcing"
    clean_run = RunInput(clean, torch.zeros_like(sigma), "clean") if teacher_forcing else None
    velocity = generator(x, sigma, condition, masked_context(mode, spans, cache), clean_run)
    return schedule.velocity_to_x0(x, velocity, sigma)
