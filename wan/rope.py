"""Rotary positions over (frame, row, column), for any head width and length.

Head width E splits into E - 4(E//6) channels for time and 2(E//6) for rows and for columns;
neighbouring channels form one rotated pair. Angles are computed in float64 (in fp32 they are off
by 3.7e-5 at frame 1000), cosine and sine are stored and applied in fp32.
Source: Wan2.1, wan/modules/model.py.
"""

from __future__ import annotations

import torch

from wan.sequence import index
from wan.tokens import TokenLayout


class RotaryTable:
    """Cosines and sines of any positions, made when they are asked for: frame 3,000,000 costs what frame 3 does.

    Nothing that is kept grows with the video, so a video without end needs no more memory than a short one.
    """

    def __init__(self, head_dim: int, theta: float = 10000.0):
        side = 2 * (head_dim // 6)
        self.head_dim = head_dim
        self._theta = theta
        self._parts = (head_dim - 2 * side, side, side)
        self._grids: dict = {}  # of each size of a frame

    def angles(self, layout: TokenLayout, device, dtype=torch.float32):
        """Returns (cos, sin), each [L, E/2], of all tokens of a layout, in its order."""
        parts = [self(times, (rows, columns), device, dtype) for times, rows, columns in layout.same_grids()]
        cos, sin = parts[0] if len(parts) == 1 else (torch.cat(half) for half in zip(*parts, strict=True))
        if layout.order is None:
            return cos, sin
        places = index(layout, "permutation", device)
        return cos[places], sin[places]

    def __call__(self, positions, grid: tuple, device, dtype=torch.float32):
        """Returns (cos, sin), each [len(positions) * rows * columns, E/2], frame slowest.

        positions: of the frames. grid: (rows, columns) of a frame: their number, or the position of each. Positions
        are any numbers, in a `range` or a tuple.
        """
        time = self._axis(0, positions).to(device, dtype, non_blocking=True)
        space = self._space(grid, device, dtype)
        frames, cells = time.shape[1], space.shape[1]
        half = [
            torch.cat((time[i, :, None].expand(-1, cells, -1), space[i, None].expand(frames, -1, -1)), -1).flatten(0, 1)
            for i in (0, 1)
        ]
        return half[0], half[1]

    def _space(self, grid, device, dtype) -> torch.Tensor:
        key = (grid, str(device), dtype)
        if key not in self._grids:
            rows, columns = (range(places) if isinstance(places, int) else places for places in grid)
            row = self._axis(1, rows)[:, :, None].expand(-1, -1, len(columns), -1)
            column = self._axis(2, columns)[:, None].expand(-1, len(rows), -1, -1)
            self._grids[key] = torch.cat((row, column), -1).flatten(1, 2).to(device, dtype)
        return self._grids[key]

    def _axis(self, part: int, positions) -> torch.Tensor:
        """Returns [2, len(positions), pairs]: cosine and sine along one axis, in float64 on the CPU."""
        width = self._parts[part]
        rates = self._theta ** -(torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
        angles = torch.tensor(list(positions), dtype=torch.float64, device="cpu")[:, None] * rates
        return torch.stack((angles.cos(), angles.sin()))


def rotate(x_BLNE: torch.Tensor, cos_LP: torch.Tensor, sin_LP: torch.Tensor) -> torch.Tensor:
    """Rotates neighbouring channel pairs by the positions' angles, in fp32, and casts back."""
    pairs = x_BLNE.to(cos_LP.dtype).unflatten(-1, (-1, 2))
    a, b = pairs.unbind(-1)
    cos, sin = cos_LP[None, :, None], sin_LP[None, :, None]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x_BLNE.dtype)
