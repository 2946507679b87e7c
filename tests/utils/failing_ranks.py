"""A door under torchrun whose one rank fails while the others wait for it: `failing_ranks.py RANK`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.door import door  # noqa: E402
from utils.parallel import ranks  # noqa: E402


@door("tool.py")
def main(failing: int) -> None:
    """Ends by the error of one rank."""
    import torch
    import torch.distributed as dist

    ranks.init("gloo")
    for _ in range(3):
        dist.all_reduce(torch.ones(4))
    if ranks.rank() == failing:
        raise ValueError("the shard of clip 12 is damaged; write it again")
    dist.all_reduce(torch.ones(4))


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1])))
