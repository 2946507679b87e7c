"""What `scripts/benchmark.py train` measures: generator and critic updates of a distillation, on one process.

Timed is the method that trains (`trainer/distill.py`) on samples of its own source. Operations are those that torch
dispatches in one update (recomputation of checkpointed blocks included), counted in a run of its own.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from types import SimpleNamespace

import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.bench.infer import draw_zeros
from trainer.config import TrainConfig
from trainer.distill import Distill
from trainer.roles import Roles
from utils.config.field import values
from utils.log import memory
from utils.parallel.layout import ParallelLayout
from utils.rng import Rng
from wan.family import find_published

ROLES = ("generator", "teacher", "critic")
PARTS = {"generator update": "generator_step", "critic update": "critic_step"}


def build_method(config: TrainConfig, random_weights: bool, device: torch.device) -> Distill:
    """Returns the distillation. Random weights need no file: networks by `spec`, text drawn, no VAE."""
    layout, rng = ParallelLayout.single(), Rng(config.seed)
    if not random_weights:
        return config.trainer.build(config, rng, device, layout)
    knobs = config.trainer
    networks = {name: values(knobs)[name].build(rng, device, layout, name != "teacher") for name in ROLES}
    for network in networks.values():
        draw_zeros(network.transformer)
    spec = find_published(knobs.generator.spec)
    text, vae = partial(draw_text, spec.transformer, device), SimpleNamespace(strides=spec.strides)
    roles = Roles(text=text, device=device, layout=layout, vae=vae, **networks)
    return Distill(
        knobs, roles, knobs.source.build(config.generation), knobs.loss.build(config.generation), config, rng
    )


def draw_text(spec, device, prompts) -> torch.Tensor:
    """Returns what an encoder would: [B, T, width], drawn once for all."""
    drawn = Rng(0, "text").normal((1, spec.text_len, spec.text_dim)).to(device)
    return drawn.expand(len(prompts), -1, -1)


def measure(method: Distill, warmup: int, updates: int, peak: float) -> dict:
    """Returns seconds, operations and share of the peak of each kind of update, steps per second, peak memory."""
    device = method.roles.device
    calls = {name: vars(Distill)[step] for name, step in PARTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in PARTS}
    for number in range(warmup + updates):
        for name, call in calls.items():
            begin = now(device)
            call(method, number)
            if number >= warmup:
                seconds[name].append(now(device) - begin)
    used = memory()  # before the counting, which holds more
    numbers = range(warmup, warmup + updates)  # again: an update's work depends on the exit step it draws
    work = {name: sum(count(call, method, n) for n in numbers) / updates for name, call in calls.items()}
    mean = {name: statistics.mean(values) for name, values in seconds.items()}
    ratio = method.config.critic_updates_per_generator_update
    step = mean["critic update"] + mean["generator update"] / ratio
    done = work["critic update"] + work["generator update"] / ratio
    return {
        "seconds": {name: {"mean": mean[name], "all": values} for name, values in seconds.items()},
        "tera-operations": {name: value / 1e12 for name, value in work.items()},
        "MFU": {name: work[name] / mean[name] / peak for name in PARTS} | {"step": done / step / peak},
        "seconds per step": step,
        "steps per second": 1 / step,
        "ratio": ratio,
        "memory": used,
    }


def now(device: torch.device) -> float:
    """Returns the host's clock after the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def count(call, method: Distill, number: int) -> int:
    """Returns the operations of one update."""
    with FlopCounterMode(display=False) as counter:
        call(method, number)
    return counter.get_total_flops()


def describe(config: TrainConfig, method: Distill, weights: str) -> dict:
    """Returns what was run."""
    source, knobs = config.trainer.source, config.trainer
    return {
        "loss": knobs.loss.name,
        "blocks": method.roles.generator.spec.num_layers,
        "batch": source.batch,
        "frames": source.frames,
        "chunk": config.generation.chunk,
        "dtype": knobs.generator.dtype,
        "checkpointing": knobs.generator.checkpointing,
        "compile": knobs.generator.compile,
        "accumulate": knobs.accumulate,
        "weights": weights,
    }


def table(result: dict) -> list[str]:
    """Returns the markdown of one measurement."""
    from scripts.measure.markdown import table_head, table_row

    lines = table_head(["", "seconds (mean)", "tera-operations", "MFU"])
    for name in PARTS:
        cells = [f"{result['seconds'][name]['mean']:.3f}", f"{result['tera-operations'][name]:.4g}"]
        lines.append(table_row([name, *cells, f"{100 * result['MFU'][name]:.1f} %"]))
    step = f"{result['seconds per step']:.3f}"
    lines.append(
        table_row([f"a step (1 / {result['ratio']} generator)", step, "-", f"{100 * result['MFU']['step']:.1f} %"])
    )
    used = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in result["memory"].items())
    return [*lines, "", f"{result['steps per second']:.3f} steps/s; {used}"]
