"""A rank that waits for the others hears the launcher."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.architecture.source import ROOT

RANK = """
from utils.parallel import ranks
from utils.signals import as_interrupts
import torch.distributed
with as_interrupts():
    print("joins", flush=True)
    ranks.init("gloo")
"""


@pytest.mark.dist
def test_a_rank_that_waits_for_one_that_never_comes_ends_at_sigterm():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with subprocess.Popen(
        [sys.executable, "-c", RANK], cwd=ROOT, env={**os.environ, **place}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "joins\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)  # it is waiting
            process.terminate()
            assert process.wait(20) == -signal.SIGTERM
        finally:
            process.kill()
