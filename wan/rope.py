"""Rotary positions over (frame, row, column), for any head width and length.

Head width E splits into E - 4(E//6) channels for time and 2(E//6) for rows and for columns;
neighbouring channels form one rotated pair. Angles are computed in float64 (in fp32 they are off
by 3.7e-5 at frame 1000), cosine and sine are stored and applied in fp32.
Source: Wan2.1, wan/modules/model.py.
"""

from __future__ import annotations

import torch


class RotaryTable:
    """Cosines and sines of all positions used so far; grows on demand, knows no limit."""

    def __init__(self, head_dim: int, theta: float = 10000.0):
        side = 2 * (head_dim // 6)
        self.head_dim = head_dim
        self._theta = theta
        self._parts = (head_dim - 2 * side, side, side)
        self._frames: dict = {}
        self._grids: dict = {}

    def __call__(self, positions, grid: tuple[int, int], device, dtype=torch.float32):
        """Returns (cos, sin), each [len(positions) * rows * columns, E/2], frame slowest.

        positions: frame positions, a `range` or a list of ints; grid: (rows, columns) of a frame.
        """
        time = self._time(positions, device, dtype)
        space = self._space(grid, device, dtype)
        frames, cells = time.shape[1], space.shape[1]
        half = [
            torch.cat((time[i, :, None].expand(-1, cells, -1), space[i, None].expand(frames, -1, -1)), -1).flatten(0, 1)
            for i in (0, 1)
        ]
        return half[0], half[1]

    def _time(self, positions, device, dtype) -> torch.Tensor:
        """Returns [2, F, pairs of time] by slicing (a range) or gathering (a list) the grown table."""
        need = max(positions) + 1 if len(positions) else 1
        key = (str(device), dtype)
        table = self._frames.get(key)
        if table is None or table.shape[1] < need:
            length = 1 << max(8, (need - 1).bit_length())
            table = self._frames[key] = self._axis(0, length).to(device, dtype)
        if isinstance(positions, range) and positions.step == 1:
            return table[:, positions.start : positions.stop]
        return table[:, torch.tensor(list(positions), device=device)]

    def _space(self, grid, device, dtype) -> torch.Tensor:
        key = (grid, str(device), dtype)
        if key not in self._grids:
            rows, columns = grid
            row = self._axis(1, rows)[:, :, None].expand(-1, -1, columns, -1)
            column = self._axis(2, columns)[:, None].expand(-1, rows, -1, -1)
            self._grids[key] = torch.cat((row, column), -1).flatten(1, 2).to(device, dtype)
        return self._grids[key]

    def _axis(self, part: int, length: int) -> torch.Tensor:
        """Returns [2, length, pairs]: cosine and sine of one axis in float64."""
        width = self._parts[part]
        rates = self._theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
        return torch.stack((angles.cos(), angles.sin()))


def rotate(x_BLNE: torch.Tensor, cos_LP: torch.Tensor, sin_LP: torch.Tensor) -> torch.Tensor:
    """Rotates neighbouring channel pairs by the positions' angles, in fp32, and casts back."""
    pairs = x_BLNE.to(cos_LP.dtype).unflatten(-1, (-1, 2))
    a, b = pairs.unbind(-1)
    cos, sin = cos_LP[None, :, None], sin_LP[None, :, None]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x_BLNE.dtype)
