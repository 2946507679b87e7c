"""Same-step caches: each step sees the earlier frames at its own noise level, so no context pass is needed.

`generate` is how the project runs it: one word in the cache's knobs. `written_out` is the same without any cache: at
step k the frames so far, all at sigma k, go through one forward under a causal mask. `tests/contract/test_same_step.py`
runs both.
"""

from __future__ import annotations

import torch

from pipeline.executor import PlainExecutor
from pipeline.rollout import Rollout
from pipeline.sampler import FewStep
from pipeline.track import Fixed
from wan.attention.masks import FrameMask, causal
from wan.context import Masked
from wan.ledger import CacheConfig
from wan.schedule import Schedule


@torch.no_grad()
def generate(model, condition, spans, noise, sigmas, geometry, window: int, sink: int) -> torch.Tensor:
    """Returns the video [B, F, C, h, w]: one cache for each step, committed by the step itself."""
    cache = CacheConfig(window, sink, content="same_step")
    rollout = Rollout(model, FewStep(sigmas, Schedule()), geometry, cache, dtype=next(model.parameters()).dtype)
    state = rollout.start(batch=len(condition.text), chunk_frames=max(map(len, spans)), max_frames=spans[-1].stop)
    chunks = PlainExecutor(rollout).run(state, Fixed(condition), spans, noise)
    return torch.cat([chunk.latents for chunk in chunks], 1)


@torch.no_grad()
def written_out(model, condition, spans, noise, sigmas, window: int, sink: int) -> torch.Tensor:
    """Returns the same video from forwards over all frames so far."""
    inputs, video = [[] for _ in sigmas], []  # of each step: x of every chunk
    whole = causal(spans, window, sink).frames
    for span in spans:
        x, past = noise(span, 0), Masked(FrameMask(whole[: span.stop, : span.stop]))
        for k, sigma in enumerate(sigmas):
            inputs[k].append(x)
            velocity = model(torch.cat(inputs[k], 1), sigma, condition, past)[:, span.start :]
            x0 = x - sigma * velocity
            if k + 1 < len(sigmas):
                x = (1 - sigmas[k + 1]) * x0 + sigmas[k + 1] * noise(span, k + 1)
        video.append(x0)
    return torch.cat(video, 1)
