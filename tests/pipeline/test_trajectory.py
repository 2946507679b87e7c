"""A teacher's trajectory holds exactly the student's noise levels."""

from __future__ import annotations

import pytest
import torch

from pipeline.trajectory import grid_with, trajectory
from tests import tiny
from wan.schedule import step_sigmas

STUDENT = step_sigmas([1000, 750, 500, 250], 5.0)


def test_grid_holds_the_students_levels_once():
    walk = grid_with(STUDENT, 48, 8.0)
    assert walk[0] == 1 and walk[-1] == 0 and walk == sorted(set(walk), reverse=True)
    assert all(s in walk for s in STUDENT)
    assert len(walk) == 49 + 3, "1.0 is on both grids, the other three are inserted"
    assert len(grid_with((0.5,), 2, 1.0)) == 3, "a level of the grid is not doubled"


@pytest.mark.parametrize("sigmas, steps, shift", [((), 4, 1.0), ((1.2,), 4, 1.0), ((0.5,), 0, 1.0), ((0.5,), 4, 0.0)])
def test_wrong_grids_are_refused(sigmas, steps, shift):
    with pytest.raises(ValueError):
        grid_with(sigmas, steps, shift)


def test_straight_flow_is_exact():
    """A velocity that is noise - x0 everywhere has straight lines: each state is their mixture at its sigma."""
    clean, noise = tiny.latents(2, batch=2), tiny.latents(2, batch=2, seed=1)
    kept = (1.0, 0.8, 0.3)
    states = trajectory(lambda x, sigma: noise - clean, noise, grid_with(kept, 5, 3.0), kept)
    assert states.shape == (2, 4, *clean.shape[1:])
    for state, sigma in zip(states.unbind(1), (*kept, 0.0), strict=True):
        assert torch.allclose(state, sigma * noise + (1 - sigma) * clean, atol=1e-5)


def test_network_is_told_the_sigma_of_the_state():
    message = []

    def predict(x, sigma):
        message.append(sigma)
        return torch.zeros_like(x)

    walk = grid_with(STUDENT, 4, 8.0)
    trajectory(predict, tiny.latents(1), walk, STUDENT)
    assert message == walk[:-1]
