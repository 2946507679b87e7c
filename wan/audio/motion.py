"""The portrait as tokens: a reference latent, and nineteen motion latents packed the coarser the older they are.

Source: Wan2.2, wan/modules/s2v/motioner.py (FramePackMotioner); places in the rotary table: model_s2v.py.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from wan.spec import S2VSpec
from wan.tokens import Run, spread

REFERENCE_TIME = 30  # of the reference in the pass that pins it
MOTION_FRAMES = 19
# Newest first: (latent frames, how often the patch is enlarged in rows and columns, and in frames).
BUCKETS = ((1, 1, 1), (2, 2, 2), (16, 4, 4))


class FramePacker(nn.Module):
    """One patch embedding for each bucket of motion latents."""

    def __init__(self, spec: S2VSpec):
        super().__init__()
        self.proj, self.proj_2x, self.proj_4x = (
            nn.Conv3d(spec.out_dim, spec.dim, kernel_size=patch, stride=patch) for patch in patches(spec)
        )

    def embedding(self, patch: tuple[int, int, int]) -> nn.Conv3d:
        """Returns the embedding of patches of this size."""
        return next(conv for conv in (self.proj, self.proj_2x, self.proj_4x) if conv.kernel_size == patch)


def patches(spec: S2VSpec) -> list[tuple[int, int, int]]:
    """Returns the patch size of each bucket, newest first."""
    _, rows, columns = spec.patch_size
    return [(frames, rows * side, columns * side) for _, side, frames in BUCKETS]


def motion_runs(grid: tuple[int, int]) -> list[Run]:
    """Returns the runs of the buckets for frames of (rows, columns) tokens, at their published positions.

    Times are negative. Coarse tokens are spread over the fine grid.
    Errors: ValueError for a grid that the coarsest patches do not tile.
    """
    coarsest = max(side for _, side, _ in BUCKETS)
    if grid[0] % coarsest or grid[1] % coarsest:
        raise ValueError(
            f"frames of {grid[0]} x {grid[1]} tokens do not fill the coarsest motion patches ({coarsest} x {coarsest} "
            "tokens); take a height and width that are multiples of 64 pixels"
        )
    runs, newer = [], 0
    for frames, side, together in BUCKETS:
        newer += frames
        rows, columns = (spread(size // side, size) for size in grid)
        runs.append(Run("motion", spread(frames // together, frames, -newer), rows, columns))
    return runs


def last_motion(motion_BFCHW: torch.Tensor) -> torch.Tensor:
    """Returns the last nineteen latents, with zeros before them where there are fewer."""
    missing = MOTION_FRAMES - motion_BFCHW.shape[1]
    return functional.pad(motion_BFCHW, (0, 0) * 3 + (max(missing, 0), 0))[:, -MOTION_FRAMES:]


def buckets(motion_BFCHW: torch.Tensor) -> list[torch.Tensor]:
    """Returns the latents of each bucket [B, F, C, h, w], newest first."""
    parts, end = [], MOTION_FRAMES
    for frames, _, _ in BUCKETS:
        parts.append(motion_BFCHW[:, end - frames : end])
        end -= frames
    return parts
