"""A role's attention is put on its network, as generation's is on its own."""

from __future__ import annotations

import pytest
import torch

from pipeline.bundle import set_knobs
from pipeline.config import ModelConfig
from tests import tiny
from trainer.config import RoleConfig
from utils.parallel.layout import ParallelLayout
from utils.rng import Rng
from wan.attention.config import AttentionConfig


def backends(transformer) -> list[str]:
    """Returns the backend of every attention of the blocks."""
    return [a.config.backend for block in transformer.blocks for a in (block.self_attn, block.cross_attn)]


@pytest.mark.parametrize("backend", ["sdpa", "auto"])
def test_each_network_attends_as_it_is_configured(backend):
    attention = AttentionConfig(backend)
    role = RoleConfig(spec="digits", attention=attention)
    network = role.build(Rng(0), torch.device("cpu"), ParallelLayout.single(), trained=True)
    for transformer in (network.transformer, set_knobs(tiny.transformer(), ModelConfig(attention=attention))):
        assert set(backends(transformer)) == {backend}


def test_an_unknown_backend_is_a_problem_of_the_role():
    assert list(AttentionConfig("flash9").problems()) == [
        "attention.backend is 'flash9'; write auto or one of flash3, flash2, flash4, flex, gather, sdpa"
    ]
