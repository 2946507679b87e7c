"""scripts/benchmark.py tpp on two real ranks: stages, rate and latency of the digit that speaks; what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from scripts import benchmark
from scripts.bench.tpp import stage
from tests.architecture.source import ROOT

TALK = ROOT / "prompts/digits_avatar/yellow_two"
WORDS = ["tpp", "--config_path", "configs/infer/digits_avatar_tpp.yaml", "--warmup", "1"]
INPUT = [f"data.image={TALK}.png", f"data.audio={TALK}.wav", "data.prompt=a two moves left"]


def test_a_stage_is_the_time_that_a_rank_did_not_wait():
    found = stage([(0.0, 0.0), (1.0, 0.4), (2.0, 0.8), (3.0, 1.1)])
    assert found["period"] == pytest.approx(1.0) and found["busy"] == pytest.approx(0.6)


def test_one_process_and_other_recipes_are_refused(capsys):
    assert benchmark.main([*WORDS, *INPUT]) == 2
    assert "torchrun" in capsys.readouterr().err
    assert benchmark.main(["tpp", "--config_path", "configs/infer/digits.yaml"]) == 2
    assert "avatar_tpp.yaml" in capsys.readouterr().err


@pytest.mark.dist
def test_two_ranks_are_measured(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["scripts/benchmark.py", *WORDS, "--output_folder", str(tmp_path), *INPUT]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "benchmark_tpp_digits_avatar_tpp.json").read_text())
    assert result["steps"] == [[0, 1], [2, 3]] and result["decoder"] == 1 and result["frames"] == 12
    assert all(seconds > 0 for seconds in result["stages"]) and all(0 <= share < 1 for share in result["bubble"])
    rate, latency = result["fps"], result["latency"]
    assert rate["predicted"] == pytest.approx(12 / max(result["stages"]))
    assert latency["total"] == pytest.approx(1.5 + latency["look-ahead"] + sum(result["stages"]))
    assert "| 1 | 2, 3 and decoder |" in (tmp_path / "benchmark_tpp_digits_avatar_tpp.md").read_text()
