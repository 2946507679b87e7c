"""Ranks and process groups: who am I, which part is mine, start and stop.

Everything works in a single process that torchrun did not start: rank 0 of 1, and no group is needed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from utils.signals import ending_at_once

logger = logging.getLogger(__name__)

BOTH = "cpu:gloo,cuda:nccl"
LOST_PEER = ("gloo", "connection closed", "connection reset", "nccl", "socket", "broken pipe")
PATIENCE = 5.0  # seconds in which ranks that lost a peer say so, before the one that failed is heard
_stores: list = []  # the one through which ranks say that they failed


def is_initialised() -> bool:
    """True inside a process group; does not import torch."""
    module = sys.modules.get("torch.distributed")
    return module is not None and module.is_available() and module.is_initialized()


def rank() -> int:
    """Returns this process' number, from the group or else from torchrun's environment (0 without either)."""
    return sys.modules["torch.distributed"].get_rank() if is_initialised() else _environment("RANK", 0)


def local_rank() -> int:
    """Returns this process' number on its machine, which picks the device."""
    return _environment("LOCAL_RANK", 0)


def world_size() -> int:
    """Returns the number of processes, from the group or else from torchrun's environment (1 without either)."""
    return sys.modules["torch.distributed"].get_world_size() if is_initialised() else _environment("WORLD_SIZE", 1)


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"the environment says {name}={text!r}; it must be a whole number (torchrun sets it)")
    return int(text)


def split(items: Sequence, here: int | None = None, world: int | None = None) -> list:
    """Returns the part of `items` of rank `here` (this one): every world-th item, so that none is dropped or padded.

    With more ranks than items the last ranks get an empty list and say so; they must still join collectives.
    """
    here = rank() if here is None else here
    world = world_size() if world is None else world
    if not 0 <= here < world:
        raise ValueError(f"rank {here} of {world} cannot be; ranks run from 0 to {world - 1}")
    part = list(items)[here::world]
    if not part and world > 1:
        logger.warning("rank %d of %d has nothing to do: there are only %d items", here, world, len(items))
    return part


def init(backend: str | None = None, timeout_minutes: float = 30) -> None:
    """Joins the process group torchrun prepared; does nothing for a single process or a second time.

    backend: nccl or gloo; by default nccl where CUDA is at hand, else gloo. With nccl the group has gloo too, for
    tensors on the CPU: checkpoints and signals are agreed on without waiting for the GPU.
    """
    if world_size() == 1 or is_initialised():
        return
    missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing:
        raise ValueError(f"WORLD_SIZE={world_size()} but {', '.join(missing)} not set; start with torchrun")
    import torch
    import torch.distributed as dist

    backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    if backend not in ("nccl", "gloo"):
        raise ValueError(f"backend is {backend!r}; write 'nccl' or 'gloo'")
    if backend == "nccl":
        torch.cuda.set_device(local_rank())
        backend = BOTH
    with ending_at_once():  # a rank that died before the others met it: they would wait on, deaf to the launcher
        store, here, world = next(dist.rendezvous("env://", timeout=timedelta(minutes=timeout_minutes)))
        _stores[:] = [dist.PrefixStore("failures", store)]
        group = dist.PrefixStore("default_pg", store)
        dist.init_process_group(
            backend, store=group, rank=here, world_size=world, timeout=timedelta(minutes=timeout_minutes)
        )


def make_mesh(device_type: str, sizes: tuple[int, ...], names: tuple[str, ...]):
    """Returns a device mesh over all ranks, the last axis of neighbours; a lone process gets a group of one."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if not is_initialised():
        backend = BOTH if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh(device_type, sizes, mesh_dim_names=names)


def cpu_group():
    """Returns a new group of all ranks for the CPU, None where there is no group; all ranks must call this together.

    A thread that talks to other ranks needs a group of its own: messages of one group are matched by their order.
    """
    return sys.modules["torch.distributed"].new_group(backend="gloo") if is_initialised() else None


def first_text(text: str | None) -> str | None:
    """Returns, on all ranks alike, the text of the lowest rank that has one, or None; all ranks call this together."""
    if not is_initialised():
        return text
    import torch

    dist = sys.modules["torch.distributed"]
    content = torch.tensor(list(f"{text}.".encode("utf-8", "replace")), dtype=torch.uint8)  # ".": so it is never empty
    lengths = torch.zeros(world_size(), dtype=torch.int64)
    lengths[rank()] = 0 if text is None else len(content)
    dist.all_reduce(lengths)
    if not lengths.any():
        return None
    speaker = int(lengths.nonzero()[0])
    if rank() != speaker:
        content = torch.empty(int(lengths[speaker]), dtype=torch.uint8)
    dist.broadcast(content, speaker)
    return bytes(content.tolist()).decode()[:-1]


def ask_any(flag: bool) -> Callable[[], bool]:
    """Asks all ranks, without waiting; returns a function that waits for the answer: whether any rank's flag is set."""
    if not is_initialised():
        return lambda: flag
    import torch

    dist, vote = sys.modules["torch.distributed"], torch.tensor([int(flag)])
    work = dist.all_reduce(vote, dist.ReduceOp.MAX, async_op=True)

    def answer() -> bool:
        work.wait()
        return bool(vote)

    return answer


def barrier() -> None:
    """Waits until every rank is here; returns at once without a group."""
    if is_initialised():
        sys.modules["torch.distributed"].barrier()


def shutdown() -> None:
    """Leaves the process group, if there is one."""
    if is_initialised():
        sys.modules["torch.distributed"].destroy_process_group()


def total(number: int) -> int:
    """Returns the sum over the ranks that torchrun started; each waits for the others, a week at most.

    A rank that nobody started together with others (no MASTER_ADDR) returns its own number.
    """
    if world_size() == 1 or not (is_initialised() or "MASTER_ADDR" in os.environ):
        return number
    init("gloo", timeout_minutes=7 * 24 * 60)
    import torch

    summed = torch.tensor([number])
    torch.distributed.all_reduce(summed)
    return int(summed)


def is_lost_peer(error: Exception) -> bool:
    """True for the error of a collective whose other side is gone: the cause is another rank's."""
    kind = type(error).__name__.startswith("Dist")
    return kind or (isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST_PEER))


def declare_failure(text: str, lost_peer: bool = False) -> tuple[bool, str]:
    """Tells all ranks that this one failed; returns (True, "") for the first, else (False, which one that was).

    lost_peer: this rank only lost another one, which may not have said so yet.
    """
    if not _stores:
        return True, ""
    store, here = _stores[0], rank()
    try:
        if lost_peer and not _wait(lambda: store.check(["cause"]), PATIENCE):
            return False, "another rank is gone without a word (was it killed, or out of memory?)"
        cause = store.compare_set("cause", "", f"{here}:{text}").decode()
    except RuntimeError:  # the process that held the store is gone
        return not lost_peer, "another rank is gone"
    speaker = cause.partition(":")[0]
    if int(speaker) == here:
        _write_error_file(text)
        return True, ""
    return False, f"rank {speaker} failed"


def wait_for_others() -> None:
    """Waits a moment until the other ranks have said that they end, so that this one is heard last."""
    if _stores and world_size() > 1:
        if not sys.modules["torch"].cuda.is_available():  # NCCL would wait for what is under way
            sys.modules["torch.distributed"].destroy_process_group()  # what the others wait for fails now
        with contextlib.suppress(RuntimeError):
            _wait(lambda: _stores[0].add("ended", 0) >= _environment("WORLD_SIZE", 1) - 1, PATIENCE)


def wait_for_end() -> None:
    """Says that this rank has been heard, then waits a moment to be ended by torchrun.

    It reports the first process that ends as the cause.
    """
    import signal

    if _stores:
        with contextlib.suppress(RuntimeError):  # the process that held the store is gone
            _stores[0].add("ended", 1)
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(2 * PATIENCE)


def _wait(is_true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (found := is_true()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def _write_error_file(text: str) -> None:
    """Leaves the text where torchrun looks for what its report, which it prints last, calls the cause."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": text, "extraInfo": extra}}, file)


def mean(values: Sequence[float]) -> list[float]:
    """Returns each number's mean over the ranks; all ranks call this together with as many numbers."""
    if not is_initialised() or world_size() == 1 or not values:
        return list(values)
    import torch

    total = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(total)
    return (total / world_size()).tolist()
