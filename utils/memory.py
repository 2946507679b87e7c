"""How much memory there is, and a refusal of what cannot fit before anything is read."""

from __future__ import annotations

import sys
from pathlib import Path

GIGA = 1e9
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def available() -> tuple[float, str]:
    """Returns (bytes, what they are of) that a process can have at most; (inf, "") where the system does not tell."""
    if on_gpu():
        return float(sys.modules["torch"].cuda.mem_get_info()[1]), "the GPU"
    return min(_limits(), default=(float("inf"), ""))


def on_gpu() -> bool:
    """Returns whether a model runs on a GPU: torch is loaded and has one."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available()


def _limits() -> list[tuple[float, str]]:
    found: list[tuple[float, str]] = []
    try:
        rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        sizes = {row[0].rstrip(":"): float(row[1]) * 1024 for row in rows if len(row) > 1}
        found.append((sizes["MemTotal"] + sizes.get("SwapTotal", 0), "this machine"))
    except (OSError, KeyError, ValueError):
        pass  # not Linux
    for path in CGROUPS:
        try:
            found.append((float(Path(path).read_text()), "this container"))
        except (OSError, ValueError):
            pass  # no such group, or "max"
    if "linux" in sys.platform:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            found.append((float(limit), "this process (ulimit -v)"))
    return found


def check_fits(parts: dict[str, float], advice: str) -> None:
    """Raises ValueError if parts (what -> bytes at the least) are more than there can be; names the largest ones."""
    room, where = available()
    if (total := sum(parts.values())) <= room:
        return
    largest = sorted(parts, key=parts.__getitem__, reverse=True)[:3]
    listed = ", ".join(f"{name} {parts[name] / GIGA:,.1f} GB" for name in largest)
    has = f"{where} has {room / GIGA:,.1f} GB"
    raise ValueError(f"at least {total / GIGA:,.1f} GB of memory are needed ({listed}) and {has}; {advice}")
