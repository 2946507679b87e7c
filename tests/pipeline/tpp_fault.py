"""inference.py on ranks of which the second meets a fault of the program; started by torchrun from test_tpp.py.

torchrun --nproc_per_node=3 -m tests.pipeline.tpp_fault FLAGS OF inference.py
"""

from __future__ import annotations

import sys
import time

import inference
from pipeline.tpp import TPPExecutor

FAULT, FRAME = "steps of the second rank went wrong", 6


class Faulty:
    """What `TPPExecutor` does with a chunk that arrived, up to a frame."""

    whole = staticmethod(TPPExecutor._continue)

    @staticmethod
    def part(executor, state, message, noise):
        if executor.pipe.place == 1 and message.facts["span"][0] >= FRAME:
            raise RuntimeError(f"{FAULT} at {time.time()}")
        return Faulty.whole(executor, state, message, noise)


if __name__ == "__main__":
    TPPExecutor._continue = Faulty.part
    sys.exit(inference.main())
