"""Adapters, unequal runs, orders of tokens and pinned runs on two ranks are those of one, in float64."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.architecture.source import ROOT
from tests.utils.parallel import tokens_worker

BOUNDS = dict.fromkeys(
    ("sharded_weights", "sparse_sharded_weights"), 1e-6
)  # gradients are added up in fp32, whose rounding is 6e-8 of the largest
TWINS = {"twin_of_the_order", "twin_of_the_adapter"}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each of two ranks measured: check -> quantity -> error. One launch for all checks."""
    folder = tmp_path_factory.mktemp("tokens")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.utils.parallel.tokens_worker", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.dist
@pytest.mark.parametrize("name", tokens_worker.CHECKS)
def test_two_ranks_are_one(found, name):
    for errors in (rank[name] for rank in found):
        assert len(errors) == 2
        if name in TWINS:
            assert all(error > 1e-2 for error in errors.values()), errors
        else:
            assert max(errors.values()) < BOUNDS.get(name, 1e-9), errors
