"""Ranks from the environment and from a group, and the split of work over them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.parallel import ranks


@given(count=st.integers(0, 20), world=st.integers(1, 30))
def test_split_covers_everything_once(count, world):
    parts = [ranks.split(range(count), rank, world) for rank in range(world)]
    assert sorted(sum(parts, [])) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_idle_ranks_say_so(caplog, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with caplog.at_level(logging.WARNING):
        assert ranks.split(["a", "b"]) == []
    assert "rank 3 of 4 has nothing to do: there are only 2 items" in caplog.text


def test_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (ranks.rank(), ranks.local_rank(), ranks.world_size()) == (0, 0, 1)
    monkeypatch.setenv("RANK", "-1")
    with pytest.raises(ValueError, match="RANK='-1'"):
        ranks.rank()
    with pytest.raises(ValueError, match="rank 2 of 2 cannot be"):
        ranks.split([], 2, 2)


def test_init_alone_does_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    ranks.init()
    ranks.barrier()
    assert ranks.cpu_group() is None
    assert ranks.first_text(None) is None and ranks.first_text("") == ""
    assert ranks.ask_any(True)() is True and ranks.ask_any(False)() is False
    ranks.shutdown()
    assert not ranks.is_initialised()


def test_init_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="RANK, MASTER_ADDR, MASTER_PORT not set; start with torchrun"):
        ranks.init()
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ValueError, match="backend is 'mpi'"):
        ranks.init("mpi")


def test_reading_the_rank_does_not_import_torch():
    code = "import sys; from utils.parallel import ranks; ranks.rank(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.dist
def test_two_processes_form_a_group(tmp_path):
    code = """
import os, pathlib, sys, time
from utils.parallel import ranks
ranks.init("gloo")
rank, world = ranks.rank(), ranks.world_size()
if rank == 0:
    time.sleep(0.5)
    pathlib.Path(sys.argv[1], "0").write_text("late")
ranks.barrier()
seen = pathlib.Path(sys.argv[1], "0").read_text()
pathlib.Path(sys.argv[1], f"done{rank}").write_text(f"{rank} {world} {seen} {ranks.split(range(3))}")
for mine in ((None, None), ("", "b"), (None, "two \\u00e9\\n"), ("zero", "a longer one"), (None, None)):
    told = ranks.first_text(mine[rank])
    assert told == next((text for text in mine if text is not None), None), (mine, told)
waiting = [ranks.ask_any(flag) for flag in (False, rank == 1, rank == 0, True)]  # all under way at once
assert [answer() for answer in waiting] == [False, True, True, True]
import torch
numbers = torch.ones(1)
torch.distributed.all_reduce(numbers, group=ranks.cpu_group())
assert numbers.item() == 2
ranks.barrier()
ranks.shutdown()
assert not ranks.is_initialised()
"""
    script = tmp_path / "group.py"
    script.write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path)], check=True, env=environment, timeout=120)
    assert (tmp_path / "done0").read_text() == "0 2 late [0, 2]"
    assert (tmp_path / "done1").read_text() == "1 2 late [1]"
