"""The only face of a network: `denoiser(x, sigma, condition, context) -> velocity`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from wan.condition import Condition
from wan.tokens import Run, TokenLayout
from wan.transformer import RunInput, WanTransformer


class Denoiser(nn.Module):
    """One Wan transformer as a velocity field."""

    def __init__(self, transformer: WanTransformer):
        super().__init__()
        self.transformer = transformer

    @property
    def spec(self):
        """Sizes of the transformer."""
        return self.transformer.spec

    @property
    def cache_heads(self) -> int:
        """How many heads a cache of this denoiser holds; fewer than it has where its sequence is split."""
        return self.spec.num_heads // self.transformer.sequence.size

    def frame_tokens(self, grid: tuple[int, int]) -> int:
        """Returns how many tokens a cache keeps of a frame of (rows, columns): more where blocks are filled up."""
        return self._arranged((Run("video", range(1), range(grid[0]), range(grid[1]), cached=True),)).num_tokens

    def pinned_tokens(self, grid: tuple[int, int]) -> int:
        """Returns how many tokens a cache keeps of all pinned runs."""
        runs = tuple(replace(run, cached=True) for run in self.pinned_runs(grid))
        return self._arranged(runs).num_tokens if runs else 0

    def _arranged(self, runs: tuple[Run, ...]) -> TokenLayout:
        return self.transformer.sequence.arrange(TokenLayout(runs))

    def forward(self, x_BFCHW, sigma, condition: Condition, context, clean: RunInput | None = None) -> torch.Tensor:
        """Returns the velocity [B, F, C, H, W].

        sigma: a float (one for all, no device is asked), or a tensor [B] or [B, F].
        clean: the clean run of teacher forcing, placed before x. A portrait follows, unless the cache holds it.
        """
        level = sigma if isinstance(sigma, float) else None
        video = RunInput(x_BFCHW, sigma_rows(sigma, x_BFCHW), level=level)
        portrait = () if context.cached else context.place(self.transformer.portrait(condition))
        return self.transformer((video, *portrait) if clean is None else (clean, video, *portrait), condition, context)

    def pinned_runs(self, grid: tuple[int, int]) -> tuple[Run, ...]:
        """Returns the runs that a cache of this denoiser pins, for frames of (rows, columns) tokens; often none."""
        return self.transformer.pinned_runs(grid)

    def portrait_frames(self, condition: Condition) -> int:
        """Returns how many frames of tokens a portrait adds to a whole clip's sequence, behind the video's."""
        return sum(len(run.positions[0]) for run in self.transformer.portrait(condition) if run.positions)

    def prefill(self, condition: Condition, context) -> None:
        """Runs the pass that writes the pinned runs (the portrait of the condition) into the caches of `context`."""
        self.transformer(self.transformer.portrait(condition), condition, context)


class ExpertDenoiser(nn.Module):
    """Two experts of Wan 2.2 A14B: `high` from `boundary` sigma upward, `low` below. Bidirectional only."""

    def __init__(self, low: Denoiser, high: Denoiser, boundary: float):
        super().__init__()
        self.low, self.high, self.boundary = low, high, boundary

    @property
    def spec(self):
        """Sizes of one expert (both are alike)."""
        return self.low.spec

    def expert(self, sigma: float) -> int:
        """Returns 0 for the low-noise expert, 1 for the high-noise one."""
        return int(sigma >= self.boundary)

    def forward(self, x_BFCHW, sigma: float, condition: Condition, context, clean=None) -> torch.Tensor:
        """Returns the velocity; sigma must be a float, so that choosing asks no device."""
        if not isinstance(sigma, float):
            raise ValueError("two experts are chosen by one sigma: give a float (sampling), not a tensor")
        chosen = self.high if self.expert(sigma) else self.low
        return chosen(x_BFCHW, sigma, condition, context, clean)


def sigma_rows(sigma, like_BFCHW: torch.Tensor) -> torch.Tensor:
    """Returns sigma as a tensor [B, 1] or [B, F] on the device of x; floats stay exact in float64."""
    batch = like_BFCHW.shape[0]
    if isinstance(sigma, (int, float)):
        return torch.full((batch, 1), float(sigma), dtype=torch.float64, device=like_BFCHW.device)
    return sigma[:, None] if sigma.ndim == 1 else sigma
