"""Rotary positions: exact far out, any head width, distances only."""

from __future__ import annotations

import math

import pytest
import torch

from tests import tiny, tolerance
from tests.contract.oracle import rotate as rotate_slowly
from wan.rope import RotaryTable, rotate

GRID = (2, 3)
WIDTHS = [2, 4, 6, 8, 10, 12, 14, 16, 22, 64, 80, 128]


def reference_angles(positions, grid, width: int, theta: float = 10000.0) -> list[list[float]]:
    """Returns the angle of each token and pair by Python's own doubles."""
    side = 2 * (width // 6)
    parts = [(0, width - 2 * side), (1, side), (2, side)]
    places = [(f, r, c) for f in positions for r in range(grid[0]) for c in range(grid[1])]
    return [
        [place[axis] / math.pow(theta, 2 * i / size) for axis, size in parts for i in range(size // 2)]
        for place in places
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_any_head_width(width):
    cos, sin = RotaryTable(width)([0, 3, 1], GRID, "cpu", torch.float64)
    angles = torch.tensor(reference_angles([0, 3, 1], GRID, width), dtype=torch.float64)
    assert cos.shape == sin.shape == (3 * 6, width // 2)
    assert tiny.error(cos, angles.cos()) < 1e-14 and tiny.error(sin, angles.sin()) < 1e-14


@pytest.mark.parametrize("theta", [10000.0, 100.0])
def test_angles_are_exact_at_frame_5000(theta):
    positions = range(4999, 5001)
    cos, sin = RotaryTable(128, theta)(positions, GRID, "cpu")
    angles = reference_angles(positions, GRID, 128, theta)
    for given, function in ((cos, math.cos), (sin, math.sin)):
        wanted = torch.tensor([[function(a) for a in row] for row in angles], dtype=torch.float64)
        assert given.dtype == torch.float32
        assert tiny.error(given, wanted) < 2**-24, "half a unit in the last place of fp32"
    narrow = torch.tensor(positions, dtype=torch.float32)[:, None]
    narrow = narrow * torch.pow(torch.tensor(theta), -torch.arange(0, 44, 2, dtype=torch.float32) / 44)
    wide = cos.unflatten(0, (2, 6))[:, 0, :22]
    assert tiny.error(narrow.cos(), wide) > 1e-5, "angles in fp32 would show"


def test_far_positions_leave_the_near_ones_as_they_are():
    table, fresh = RotaryTable(16), RotaryTable(16)
    early = table(range(4), GRID, "cpu")
    late = table(range(3000, 3004), GRID, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(early, table(range(4), GRID, "cpu"), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(late, fresh(range(3000, 3004), GRID, "cpu"), strict=True))


def test_ranges_and_lists_agree():
    table = RotaryTable(16)
    pairs = zip(table(range(5, 9), GRID, "cpu"), table([5, 6, 7, 8], GRID, "cpu"), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    order = table([7, 5], GRID, "cpu")[0]
    assert torch.equal(order, torch.cat([table([p], GRID, "cpu")[0] for p in (7, 5)]))


def test_grids_do_not_mix():
    table = RotaryTable(24)
    tall, wide = (table(range(2), grid, "cpu")[0] for grid in ((3, 2), (2, 3)))
    assert tall.shape == wide.shape and tiny.error(tall, wide) > 0.1
    assert torch.equal(tall, RotaryTable(24)(range(2), (3, 2), "cpu")[0])


@pytest.mark.parametrize("width", WIDTHS)
def test_rotation_is_that_of_complex_numbers(width):
    x = tiny.draw("x", shape=(2, 2 * 6, 3, width), dtype=torch.float64)
    given = rotate(x, *RotaryTable(width)([2, 9], GRID, "cpu", torch.float64))
    wanted = rotate_slowly(x, (2, 9), GRID, 10000.0)
    assert tiny.error(given, wanted) < tolerance.EXACT
    assert tiny.error(given.norm(dim=-1), x.norm(dim=-1)) < tolerance.EXACT
    assert tiny.error(given, rotate_slowly(x, (2, 10), GRID, 10000.0)) > 1e-4


def test_scores_depend_on_distances_alone():
    q, k = (tiny.draw(name, shape=(1, 6, 2, 16), dtype=torch.float64) for name in "qk")
    table = RotaryTable(16)

    def scores(query: int, key: int) -> torch.Tensor:
        a, b = (rotate(x, *table([p], GRID, "cpu", torch.float64)) for x, p in ((q, query), (k, key)))
        return torch.einsum("blne,bsne->bnls", a, b)

    assert tiny.error(scores(3, 1), scores(103, 101)) < tolerance.EXACT
    assert tiny.error(scores(3, 1), scores(3, 2)) > 0.1


def test_half_precision_is_rotated_in_fp32():
    x = tiny.draw("x", shape=(1, 6, 2, 16)).bfloat16()
    table = RotaryTable(16)([900], GRID, "cpu")
    given = rotate(x, *table)
    assert given.dtype == torch.bfloat16
    assert torch.equal(given, rotate(x.float(), *table).bfloat16())
