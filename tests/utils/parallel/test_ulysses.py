"""A sample shared by several ranks is the sample of one: outputs, gradients, rollouts, and what twins break."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from tests import tiny, tolerance
from tests.architecture.source import ROOT
from tests.utils.parallel import ulysses_worker as sequence_worker
from utils.parallel import ulysses
from utils.parallel.ulysses import SharedSequence
from wan.sequence import WholeSequence

ROUNDED = {  # what is not in float64: passes of the network, forward and back
    "whole_clip fp32": tiny.rounding(2),
    "training_rollout fp32": tiny.rounding(2 * 3 * len(sequence_worker.LENGTHS)),
    "sharded_weights fp32": tiny.rounding(2 * 3 * 3),
    "half_precision fp32": tiny.rounding(2, torch.bfloat16),
}
NAMES = [name for name in sequence_worker.CHECKS if name != "half_precision"] + list(ROUNDED)
TWINS = {  # what each must break; the rest stays right
    "twin_without_the_sum": {"inputs", "weights"},
    "twin_without_the_other_tokens": {"inputs"},
    "twin_of_the_discriminator": {"output"},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each of four ranks measured: check -> quantity -> error. One launch for all checks."""
    folder = tmp_path_factory.mktemp("sequence")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4"]
    command += ["-m", "tests.utils.parallel.ulysses_worker", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(4)]


@pytest.mark.dist
@pytest.mark.parametrize("name", NAMES)
def test_shared_is_alone(found, name):
    allowed, broken = ROUNDED.get(name, tolerance.EXACT), TWINS.get(name, set())
    assert set(NAMES) == found[0].keys()
    for errors in (rank[name] for rank in found):
        assert errors and broken <= errors.keys()
        right = {quantity: error for quantity, error in errors.items() if quantity not in broken}
        assert max(right.values(), default=0) <= allowed, right
        assert all(errors[quantity] > 1e-2 for quantity in broken), errors


def sequence(size: int = 2) -> SharedSequence:
    return SharedSequence(None, 1, size, WholeSequence())


def test_a_rank_takes_its_part_of_every_frame():
    tokens = torch.arange(2 * 3 * 4.0).reshape(2, 3 * 4, 1)
    layout = tiny.layout(3, 4)
    assert sequence().split(tokens, layout)[0, :, 0].tolist() == [2, 3, 6, 7, 10, 11]
    assert sequence().local(layout).frame_of_token == (0, 0, 1, 1, 2, 2)


def test_heads_must_divide():
    transformer = tiny.transformer(num_heads=4)
    with mock.patch.object(ulysses.dist, "get_world_size", return_value=3):
        with pytest.raises(ValueError, match=r"3 ranks cannot share 4 heads; .* one of \[1, 2, 4\]"):
            ulysses.apply(transformer, None)
    assert transformer.sequence.size == 1


def test_tokens_of_a_frame_must_divide():
    with pytest.raises(ValueError, match=r"6 tokens cannot be shared by 4 ranks; .* one of \[1, 2, 3, 6\]"):
        sequence(4).local(tiny.layout(2, 6))


def test_sharing_twice_is_refused_and_one_rank_shares_nothing():
    transformer = SimpleNamespace(spec=tiny.SPEC, sequence=SimpleNamespace(size=1))
    alone = transformer.sequence
    with mock.patch.multiple(ulysses.dist, get_world_size=lambda group: group, get_rank=lambda group: 0):
        assert ulysses.apply(transformer, 1).sequence is alone
        assert ulysses.apply(transformer, 2).sequence.size == 2
        with pytest.raises(ValueError, match="shared by 2 ranks already"):
            ulysses.apply(transformer, 2)
