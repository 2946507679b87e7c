"""A device that forbids what a real one punishes at random: reading before arrival, writing over what is still read."""

from __future__ import annotations

import torch


class FakeDevice:
    """A copier (`utils.offload`) of CPU tensors whose copies run no sooner than they must.

    Until it is waited for, the target of a copy is not-a-number. `use` says what the computation reads: it asserts that
    this has arrived, and a later copy into it must be queued behind that use.
    """

    def __init__(self):
        self.clock, self.queue, self.last_use, self.copies = 0, [], {}, 0

    def home(self, shape, dtype):
        """Returns zeros in CPU memory."""
        return torch.zeros(shape, dtype=dtype)

    def mark(self) -> int:
        """Returns the number of uses so far."""
        return self.clock

    def copy(self, target, source, after=None) -> int:
        """Queues a copy; what the target held is gone at once."""
        assert (after or 0) >= self.last_use.get(place(target), 0), "written over what the computation still reads"
        poison(target)
        self.queue.append((target, source))
        self.copies += 1
        return self.copies

    def wait(self, copied: int) -> None:
        """Runs the copies up to this one."""
        while self.queue and self.copies - len(self.queue) < copied:
            target, source = self.queue.pop(0)
            target.copy_(source)

    def finish(self) -> None:
        """Runs all copies."""
        self.wait(self.copies)

    def use(self, *tensors) -> None:
        """The computation reads these."""
        self.clock += 1
        for tensor in tensors:
            assert not is_poisoned(tensor), "used before it arrived"
            self.last_use[place(tensor)] = self.clock


def place(tensor) -> int:
    """Returns what tells two pieces of memory apart."""
    return tensor.untyped_storage().data_ptr()


def poison(tensor) -> None:
    """Makes all bytes 255: not-a-number in every floating dtype."""
    tensor.fill_(255 if tensor.dtype == torch.uint8 else torch.nan)


def is_poisoned(tensor) -> bool:
    """Whether a number of it is not one."""
    return bool(tensor.isnan().any()) if tensor.is_floating_point() else bool((tensor == 255).all())
