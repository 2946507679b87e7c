"""Flow matching: L = mean_f w(sigma_f) |v(x_sigma, sigma, c) - (noise - x0)|^2.

`bidirectional`: one sigma for the clip, every frame sees every other (a teacher).
`diffusion_forcing`: one sigma per chunk, each chunk sees itself and the noisy chunks before it.
`teacher_forcing`: one sigma per chunk, each chunk sees itself and the clean chunks before it.
`same_step`: one sigma for the clip, each chunk sees itself and the chunks before it, which have its noise level: what
runs with one cache for each step (`cache.content: same_step`).
A portrait is visible to all frames and sees itself alone.
The masks are those of the cache, so what is trained is what will run.
Source: arXiv 2210.02747; arXiv 2407.01392 (diffusion forcing); Self-Forcing, model/diffusion.py.
Differs from Self-Forcing: sigma is continuous; `context_sigma` and `context_range` (drawn per chunk) are noise levels,
where their noise_augmentation_max_timestep N takes the N noisiest entries of a table: [shift(1 - N / 1000), 1] here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from model.base import Sample, count_frames, draw_noise, wide
from model.config import FlowConfig
from wan.attention import masks
from wan.context import Full, Masked
from wan.generation import GenerationConfig
from wan.ledger import CacheConfig
from wan.schedule import Schedule, shift_sigma, unshift_sigma
from wan.transformer import RunInput


class FlowLoss:
    """The flow objective of a generator on clean latents."""

    def __init__(self, config: FlowConfig, generation: GenerationConfig):
        self.config, self.generation = config, generation
        self.schedule = Schedule(generation.steps.shift, generation.steps.rounding)

    def __call__(self, sample: Sample, roles, rng):
        x0, noise = sample.latents, draw_noise(sample, rng)
        sigma = self.draw_sigma(sample, rng)
        x, clean = diffuse_noisy(self.schedule, x0, noise, sigma), self.clean_half(sample, rng, noise)
        has_portrait = sample.condition.reference is not None
        context = self.context(sample, roles.generator.portrait_frames(sample.condition) if has_portrait else 0)
        if has_portrait and self.config.distance == "drawn":
            context.reference = self.draw_reference(sample, rng)
        velocity = roles.generator(x, sigma, sample.condition, context, clean)
        error = (wide(velocity) - wide(noise - x0)).square().mean((2, 3, 4))
        weight = (sigma > 0).float()  # a clean frame has no velocity to learn
        if sample.frame_mask is not None:  # [B, F]: samples count alike, whatever the number of their frames that do
            weight = weight * sample.frame_mask / sample.frame_mask.float().mean(1, keepdim=True)
        if self.config.weight == "bell":
            weight = weight * self.schedule.weight(sigma)
        noisy = count_frames(sample, sigma > 0, lambda index: self.draw_sigma(sample, rng, index) > 0)
        loss = (weight * error).sum() / noisy
        return loss, {"loss": loss.detach(), "sigma": sigma.mean()}

    def draw_sigma(self, sample: Sample, rng, index: Sequence[int] | None = None) -> torch.Tensor:
        """Returns sigma [B, F] fp32: uniform per clip or per chunk, then shifted; some chunks clean.

        index: other samples of the same batch, by their numbers.
        """
        index, num_frames = sample.index if index is None else index, sample.latents.shape[1]
        device = sample.latents.device
        source = rng.at("sample", sample.step, "sigma")
        if self.config.mode in ("bidirectional", "same_step"):
            u = 1 - source.uniform_batch((1,), index)
            return self.schedule.rounded(shift_sigma(u, self.schedule.shift)).expand(-1, num_frames).to(device)
        count = len(sample.spans)
        u = 1 - source.uniform_batch((count,), index)  # (0, 1]
        sigma = self.schedule.rounded(shift_sigma(u, self.schedule.shift))
        if self.config.mode == "diffusion_forcing" and self.config.clean_chunks:
            coin = rng.at("sample", sample.step, "clean").uniform_batch((count,), index)
            coin[:, -1] = 1.0
            sigma = torch.where(coin < self.config.clean_chunks, torch.zeros_like(sigma), sigma)
        lengths = torch.tensor([len(s) for s in sample.spans])
        return sigma.repeat_interleave(lengths, 1).to(device)

    def draw_reference(self, sample: Sample, rng) -> int:
        """Returns the frame before which the reference does not stand, on all ranks: a chunk's start and a distance."""
        source, (least, most) = rng.shared(sample.step, "reference"), self.generation.portrait.distance
        chunk = sample.spans[int(source.integers(0, len(sample.spans), "chunk"))]
        return chunk.start + int(source.integers(least, most + 1, "distance"))

    def context(self, sample: Sample, portrait_frames: int = 0):
        """Returns what a frame may see in this mode; portrait_frames: of the tokens behind the video's."""
        if self.config.mode == "bidirectional":
            return Full()
        return masked_context(self.config.mode, sample.spans, self.generation.cache, portrait_frames)

    def clean_half(self, sample: Sample, rng, noise: torch.Tensor) -> RunInput | None:
        """Returns the clean half of teacher forcing, with some of the other half's noise if the knobs say so."""
        if self.config.mode != "teacher_forcing":
            return None
        if self.config.context_range:
            source = rng.at("sample", sample.step, "context sigma")
            low, high = (unshift_sigma(sigma, self.schedule.shift) for sigma in self.config.context_range)
            u = low + (high - low) * (1 - source.uniform_batch((len(sample.spans),), sample.index))
            drawn = self.schedule.rounded(shift_sigma(u, self.schedule.shift))
            sigma = drawn.repeat_interleave(torch.tensor([len(s) for s in sample.spans]), 1).to(noise.device)
        else:
            sigma = torch.full(sample.latents.shape[:2], self.config.context_sigma, device=noise.device)
        noisy = bool(self.config.context_sigma or self.config.context_range)
        clean = diffuse_noisy(self.schedule, sample.latents, noise, sigma) if noisy else sample.latents
        return RunInput(clean, sigma, "clean")


def diffuse_noisy(schedule: Schedule, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Mixes frames with noise at sigma [B, F]; frames at 0 stay x0, also under a table, which has no 0."""
    return torch.where((sigma > 0)[..., None, None, None], schedule.diffuse(x0, noise, sigma), x0)


def masked_context(mode: str, spans, cache: CacheConfig, portrait_frames: int = 0) -> Masked:
    """Returns the masked context of a mode over whole clips; portrait_frames: of the tokens behind the video's."""
    total = spans[-1].stop
    if cache.rope == "read" and not 0 < total <= cache.window_frames:
        raise ValueError(
            f"clips of {total} latent frames drop frames of a window of {cache.window_frames}, and with rope: read "
            "that is not one masked forward; take clips that fit the window, or rope: write"
        )
    return Masked(_mask(mode, tuple(spans), cache.window_frames, cache.sink_frames, portrait_frames))


@functools.lru_cache(maxsize=64)
def _mask(mode: str, spans, window_frames: int, sink_frames: int, portrait_frames: int):
    make = masks.teacher_forcing if mode == "teacher_forcing" else masks.causal
    return masks.with_portrait(make(list(spans), window_frames, sink_frames), portrait_frames)
