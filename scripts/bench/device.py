"""What a reader needs to compare timings: the device, its versions, its load, its peak."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

# Dense bf16 rates of the makers' data sheets, in tera-operations per second; the first name that fits counts.
GPU_PEAKS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312}
PEAK_SIZE, PEAK_TRIES = 4096, 3


def device_facts(device) -> dict:
    """Returns what a reader needs to compare numbers: device, versions, threads, load."""
    import torch

    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else cpu_name()
    facts = {"name": name, "torch": torch.__version__, "python": platform.python_version()}
    facts |= {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "load average": os.getloadavg()[0]}
    return facts | ({"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()} if cuda else {})


def cpu_name() -> str:
    """Returns the processor's name as Linux names it, or the platform's word."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_rate(device, given: float | None) -> tuple[float, str]:
    """Returns (operations per second, where the number is from).

    Errors: ValueError for a GPU that the table does not know.
    """
    import torch

    if given:
        return given * 1e12, "--peak_tflops"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, rate in GPU_PEAKS.items():
            if known in name:
                return rate * 1e12, f"dense bf16 of {known}"
        raise ValueError(f"the peak of {name!r} is not in the table; give its dense bf16 rate by --peak_tflops")
    a, b = torch.randn(2, PEAK_SIZE, PEAK_SIZE)
    out, seconds = torch.empty_like(a), []
    for _ in range(PEAK_TRIES):
        begin = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - begin)
    return 2 * PEAK_SIZE**3 / min(seconds), f"best of {PEAK_TRIES} fp32 products of {PEAK_SIZE}^3"
