"""Counts bytes copied and memory allocated by a region of code."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Each writes a new place with values that exist already. `contiguous` and a `reshape` that cannot be a view
# arrive as clone, a cast as _to_copy; either is dispatched only where bytes really move.
COPIES = {"aten::copy_", "aten::clone", "aten::_to_copy", "aten::cat", "aten::stack", "aten::index"}
OTHER = "other"


class CopiedBytes(TorchDispatchMode):
    """A context that adds up the bytes written by copying operations, by the scope they ran in.

    Seen is what passes torch's dispatcher; copies that a kernel makes inside itself are not.
    `bytes`: scope -> bytes (the innermost open scope counts; none is `other`); `operators`: name -> how often it ran;
    `kernels`: attention operations seen.
    """

    def __init__(self):
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self.kernels: set[str] = set()
        self._scopes: list[str] = []

    @contextlib.contextmanager
    def scope(self, name: str):
        """A context: what is copied inside counts for `name`."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def scoped(self, name: str, function: Callable) -> Callable:
        """Returns the function as it is, run in a scope."""

        @functools.wraps(function)
        def run(*args, **kwargs):
            with self.scope(name):
                return function(*args, **kwargs)

        return run

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operators[func.name()] += 1
        name = func.name().split(".")[0]
        if name in COPIES:
            self.bytes[self._scopes[-1] if self._scopes else OTHER] += out.numel() * out.element_size()
        elif "attention" in name or "flash_attn" in name:
            self.kernels.add(name.removeprefix("aten::"))
        return out


def count_allocations(call: Callable, device: torch.device) -> tuple[object, dict[str, int]]:
    """Returns (what `call()` returned, {"number", "bytes"} of the memory it asked for, freed or not).

    CUDA: requests to the caching allocator. CPU: allocations that torch's profiler records.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_stats(device)
        result = call()
        after = torch.cuda.memory_stats(device)
        keys = {"number": "allocation.all.allocated", "bytes": "allocated_bytes.all.allocated"}
        return result, {name: after[key] - before[key] for name, key in keys.items()}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    sizes = [event["args"]["Bytes"] for event in events if event.get("name") == "[memory]"]
    return result, {"number": sum(size > 0 for size in sizes), "bytes": sum(size for size in sizes if size > 0)}
