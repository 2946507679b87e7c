"""Weights and tensors in CPU memory that come to the device when they are needed, ahead of their use.

Applied to finished modules from outside: `BlockSwap` keeps at most three of a network's blocks on the device,
`Visiting` brings a module there for a call. Where the device is the CPU the same code runs, with the same bits.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

RESIDENT = 3  # blocks: the one that computes, the one that arrives, and the one whose work may still be queued
ALIGNED = 256  # bytes


class InlineCopier:
    """Copies at once, where the device is the CPU: nothing to wait for."""

    def home(self, shape, dtype: torch.dtype) -> torch.Tensor:
        """Returns zeros in CPU memory."""
        return torch.zeros(shape, dtype=dtype)

    def mark(self) -> Any:
        """Returns what stands for the computation that was queued so far."""
        return None

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Any = None) -> Any:
        """Copies; returns what `wait` takes."""
        target.copy_(source)

    def wait(self, copied: Any) -> None:
        """Lets the computation wait for a copy."""

    def finish(self) -> None:
        """Returns when all copies are done."""


class StreamCopier(InlineCopier):
    """Copies on a stream of its own of a GPU, to and from pinned memory, in the order in which they were queued."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def home(self, shape, dtype: torch.dtype) -> torch.Tensor:
        """Returns zeros in pinned CPU memory, from which copies run next to the computation."""
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def mark(self) -> torch.cuda.Event:
        """Returns an event behind the computation that was queued so far."""
        return torch.cuda.current_stream(self.device).record_event()

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Any = None) -> torch.cuda.Event:
        """Queues a copy behind the computation `after`; returns the event behind it."""
        if after is not None:
            self.stream.wait_event(after)
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
            for tensor in (target, source):
                if tensor.is_cuda:  # the allocator must not give its memory away before
                    tensor.record_stream(self.stream)
            return self.stream.record_event()

    def wait(self, copied: Any) -> None:
        """Lets the computation that is queued from now on wait for a copy."""
        torch.cuda.current_stream(self.device).wait_event(copied)

    def finish(self) -> None:
        """Returns when all copies are done."""
        self.stream.synchronize()


def copier(device: torch.device | str) -> InlineCopier:
    """Returns what copies between CPU memory and a device."""
    device = torch.device(device)
    return StreamCopier(device) if device.type == "cuda" else InlineCopier()


class Packed:
    """The weights and buffers of a module as one piece of bytes in CPU memory, of which the module holds views.

    One copy brings them all. Modules of equal layout may take turns in the same memory of a device.
    """

    def __init__(self, module: nn.Module, copier: InlineCopier):
        self.tensors = [*module.parameters(), *module.buffers()]
        self.layout = [(tuple(t.shape), t.dtype) for t in self.tensors]
        self.places, size = [], 0
        for tensor in self.tensors:
            self.places.append(size)
            size += -(-tensor.numel() * tensor.element_size() // ALIGNED) * ALIGNED
        self.size = size
        self.bytes = copier.home((size,), torch.uint8)
        for tensor, view in zip(self.tensors, self.views(self.bytes), strict=True):
            view.copy_(tensor.detach())
        self.point_to(self.bytes)

    def views(self, memory: torch.Tensor) -> list[torch.Tensor]:
        """Returns the tensors as they lie in a piece of memory."""
        made = []
        for place, (shape, dtype) in zip(self.places, self.layout, strict=True):
            count = torch.Size(shape).numel() * dtype.itemsize
            made.append(memory[place : place + count].view(dtype).view(shape))
        return made

    def point_to(self, memory: torch.Tensor) -> None:
        """Makes the module read its weights from a piece of memory."""
        for tensor, view in zip(self.tensors, self.views(memory), strict=True):
            tensor.data = view


class BlockSwap:
    """Modules that run in turn, over and over, with at most `resident` of them on the device.

    Before a module runs, its weights have arrived and the copy of the next one has begun, in memory whose last user's
    work is done. After it ran, the module's weights are those in CPU memory again (for state dicts and copies).
    Errors: ValueError for modules of different layout, trained weights, or fewer than two places.
    """

    def __init__(
        self, modules: Sequence[nn.Module], device: torch.device | str, copier: InlineCopier, resident: int = RESIDENT
    ):
        if not 2 <= resident <= RESIDENT:
            raise ValueError(f"{resident} resident blocks given; write 2 to {RESIDENT}")
        if any(p.requires_grad for module in modules for p in module.parameters()):
            raise ValueError("blocks with trained weights are not offloaded; freeze the network first")
        self.copier = copier
        self.packed = [Packed(module, copier) for module in modules]
        if any(packed.layout != self.packed[0].layout for packed in self.packed):
            raise ValueError("the blocks have weights of different shapes and cannot take turns in the same memory")
        slots = min(resident, len(modules))
        self.slots = [torch.zeros(self.packed[0].size, dtype=torch.uint8, device=device) for _ in range(slots)]
        self.turn = 0  # the slot that is filled next
        self.arriving: dict[int, tuple[int, Any]] = {}  # module's number -> its slot, its copy
        self.used: list[Any] = [None] * slots  # the computation that last read a slot
        for number, module in enumerate(modules):
            module.register_forward_pre_hook(lambda *_, n=number: self._enter(n))
            module.register_forward_hook(lambda *_, n=number: self._leave(n), always_call=True)

    def _fetch(self, number: int, kept: int | None = None) -> int:
        """Queues the copy of a module, unless it is there or on its way; returns its slot, which is not `kept`."""
        if number not in self.arriving:
            slot = self.turn if self.turn != kept else (self.turn + 1) % len(self.slots)
            self.turn = (slot + 1) % len(self.slots)
            self.arriving = {n: place for n, place in self.arriving.items() if place[0] != slot}
            self.arriving[number] = slot, self.copier.copy(self.slots[slot], self.packed[number].bytes, self.used[slot])
        return self.arriving[number][0]

    def _enter(self, number: int) -> None:
        slot = self._fetch(number)
        self._fetch((number + 1) % len(self.packed), slot)
        self.copier.wait(self.arriving[number][1])
        self.packed[number].point_to(self.slots[slot])

    def _leave(self, number: int) -> None:
        self.packed[number].point_to(self.packed[number].bytes)
        self.used[self.arriving[number][0]] = self.copier.mark()


class Visiting:
    """A module in CPU memory that comes to the device for a call and leaves it afterwards; called like the module."""

    def __init__(self, module: nn.Module, device: torch.device | str):
        self.module, self.device = module.to("cpu"), torch.device(device)
        self._alone = threading.RLock()  # a second thread would take the visitor for one that lives there

    def __call__(self, *args, **kwargs):
        with self.there():
            return self.module(*args, **kwargs)

    @contextlib.contextmanager
    def there(self):
        """The module on the device; its tensors in CPU memory stay as they are and are used again."""
        with self._alone:
            tensors = [*self.module.parameters(), *self.module.buffers()]
            homes = [tensor.data for tensor in tensors]
            try:
                for tensor, home in zip(tensors, homes, strict=True):
                    tensor.data = home.to(self.device, copy=True)
                yield
            finally:
                for tensor, home in zip(tensors, homes, strict=True):
                    tensor.data = home

    def __getattr__(self, name: str):
        return getattr(self.__dict__["module"], name)


def place(module: nn.Module, name: str, device: torch.device | str) -> BlockSwap:
    """Moves a frozen module to a device, but for the list of blocks of this name, which take turns there."""
    parent, _, last = name.rpartition(".")
    owner = module.get_submodule(parent)
    blocks = getattr(owner, last)
    setattr(owner, last, nn.ModuleList())
    module.to(device)
    setattr(owner, last, blocks)
    return BlockSwap(blocks, device, copier(device))
