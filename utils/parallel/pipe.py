"""Messages along a chain of ranks: a header and tensors, sent without waiting, at most two under way.

Everything goes over gloo and through the host. A chunk's latents are half a megabyte even at full size, and a gloo
connection may be idle for days, backs up when the other side is busy, and fails at once when it is gone; an NCCL
receive that waits does none of the three.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from utils.parallel import ranks

UNDER_WAY = 2  # messages that may be sent before the oldest has arrived: one in transit, one behind it
PATIENCE = timedelta(days=365)  # how long a rank waits for work; a peer that is gone is noticed at once


@dataclass
class Message:
    """What goes from rank to rank. kind: what it asks for. facts: JSON values. tensors: by name."""

    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


def pipe_group():
    """Returns a new group for pipes, None where there is a single process; all ranks must call this together."""
    if ranks.world_size() == 1:
        return None
    ranks.init()
    return dist.new_group(backend="gloo", timeout=PATIENCE)


class Pipe:
    """This rank's place in a chain of ranks, and the way back from the last one to the first.

    members: the ranks of the chain, in order. device: where tensors that arrive are put.
    """

    def __init__(self, members: Sequence[int], device: torch.device | str = "cpu", group=None):
        self.members, self.device, self._group = list(members), device, group
        self.place = self.members.index(ranks.rank())
        self.last = len(self.members) - 1
        self._sending: dict[int, deque] = {}

    def send(self, message: Message, place: int | None = None) -> None:
        """Sends to a place of the chain, by default the next; waits only while two messages are under way there."""
        to = self.members[self.place + 1 if place is None else place]
        sending = self._sending.setdefault(to, deque())
        while len(sending) >= UNDER_WAY:
            _wait(sending.popleft())
        tensors = {name: t.detach().to("cpu").contiguous() for name, t in message.tensors.items()}
        shapes = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()}
        text = json.dumps([message.kind, message.facts, shapes]).encode()
        parts = [torch.tensor([len(text)]), torch.frombuffer(bytearray(text), dtype=torch.uint8)]
        parts += [t.flatten().view(torch.uint8) for t in tensors.values() if t.numel()]
        sending.append([(dist.isend(part, to, group=self._group), part) for part in parts])

    def receive(self, place: int | None = None) -> Message:
        """Returns the next message from a place of the chain, by default the one before; waits for it."""
        source = self.members[self.place - 1 if place is None else place]
        length = torch.zeros(1, dtype=torch.int64)
        dist.recv(length, source, group=self._group)
        text = torch.empty(int(length), dtype=torch.uint8)
        dist.recv(text, source, group=self._group)
        kind, facts, shapes = json.loads(bytes(text.tolist()))
        tensors = {}
        for name, (dtype, shape) in shapes.items():
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            if tensor.numel():
                dist.recv(tensor.flatten().view(torch.uint8), source, group=self._group)
            tensors[name] = tensor.to(self.device)
        return Message(kind, facts, tensors)

    def flush(self) -> None:
        """Waits until all that was sent has arrived."""
        for sending in self._sending.values():
            while sending:
                _wait(sending.popleft())


def _wait(message: list) -> None:
    for work, _ in message:
        work.wait()
