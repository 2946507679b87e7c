"""How the ranks of a training are laid out: who shares a sample, who shares a copy of the weights.

Ranks are numbered so that a sequence group (one sample, Ulysses) is a run of neighbours, and so is a
shard group (one copy of the weights, FSDP); with 8 GPUs a node both then stay inside a node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.bounds import bounded
from utils.parallel import ranks

if TYPE_CHECKING:
    import torch


@dataclass
class LayoutConfig:
    """shard: ranks that share one copy of the weights, 0 = all (FSDP); fewer = a copy per group (hybrid; 1 = every
    rank holds all). sequence: ranks that share one sample (Ulysses), a divisor of the heads.
    keep_gathered: weights stay whole between forward and backward: faster, more memory. shard_text: the text
    encoder lies in parts on the ranks too, which saves 10 GB a GPU and encodes every prompt each time."""

    shard: int = bounded(0, 0, 1 << 20)
    sequence: int = bounded(1, 1, 1 << 20)
    keep_gathered: bool = False
    shard_text: bool = False

    def build(self, device: torch.device) -> ParallelLayout:
        """Returns the layout of this process. Errors: ValueError if the ranks do not divide."""
        world, shard = ranks.world_size(), self.shard or ranks.world_size()
        for name, size in (("shard", shard), ("sequence", self.sequence)):
            if world % size:
                raise ValueError(f"layout.{name} {size} does not divide the {world} ranks")
        return ParallelLayout(ranks.rank(), world, shard, self.sequence, device.type, self)


class ParallelLayout:
    """The place of one rank. Groups are made once, on first use, by all ranks together."""

    def __init__(self, rank: int, world: int, shard: int, sequence: int, device_type: str, config: LayoutConfig):
        self.rank, self.world, self.shard, self.sequence = rank, world, shard, sequence
        self.device_type, self.config = device_type, config
        self._weights = self._samples = None

    @classmethod
    def single(cls) -> ParallelLayout:
        """Returns the layout of a process without others."""
        import torch

        return cls(0, 1, 1, 1, "cuda" if torch.cuda.is_available() else "cpu", LayoutConfig())

    @property
    def weights_mesh(self):
        """The device mesh of the weights: (shard,), or (replicate, shard) where there are several copies."""
        if self._weights is None:
            copies = self.world // self.shard
            sizes, names = ((self.shard,), ("shard",)) if copies == 1 else ((copies, self.shard), ("copy", "shard"))
            self._weights = ranks.make_mesh(self.device_type, sizes, names)
        return self._weights

    @property
    def sequence_group(self):
        """The process group of the ranks that share this rank's sample."""
        if self._samples is None:
            sizes = (self.world // self.sequence, self.sequence)
            self._samples = ranks.make_mesh(self.device_type, sizes, ("data", "sequence"))
        return self._samples.get_group("sequence")

    def check_batch(self, batch: int, accumulate: int) -> None:
        """Raises ValueError unless a global batch can be split evenly."""
        data = self.world // self.sequence
        if batch % (data * accumulate):
            raise ValueError(
                f"a global batch of {batch} cannot be split over {data} data ranks x {accumulate} accumulated parts; "
                f"write a multiple of {data * accumulate}"
            )

    def shares(self, index: range, accumulate: int = 1) -> list[range]:
        """Returns the runs of sample numbers that this rank takes of a global batch, one per accumulated part.

        Equal parts, so the mean over ranks of means over parts is the mean over the batch.
        """
        self.check_batch(len(index), accumulate)
        data = self.world // self.sequence
        own = len(index) // data
        begin, part = index.start + (self.rank // self.sequence) * own, own // accumulate
        return [range(begin + i * part, begin + (i + 1) * part) for i in range(accumulate)]
