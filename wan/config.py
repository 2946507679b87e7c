"""Knobs of `wan` and the checks of their values, without torch: a configuration is read before anything heavy loads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module

from utils.bounds import bounded

ROUNDINGS = ("none", "integer", "table")
PRECISIONS = ("weights", "upstream")
DTYPES = ("fp32", "bf16")
LINEARS = ("weights", "fp8", "fp8_rows")
# Parts of the names of the linears that `model.linears` leaves alone: they run once a pass, in fp32 where published.
WIDE_LINEARS = (
    "text_embedding",
    "time_embedding",
    "time_projection",
    "head.head",
    "casual_audio_encoder.encoder.final_linear",
)
TOP = 1000  # of the published step lists

LONGEST = 1_000_000  # latent, of a video: days; more is a mistake, and its chunks would fill the memory
LARGEST_SIDE = 16384  # pixels
BATCH = 1 << 20  # at once: more is a mistake
SHIFTS = (1e-3, 1000)


@dataclass
class VAEConfig:
    """How to run the VAE. `frames_per_pass` latents are decoded together after the first.

    device: auto = with the model, chunk after chunk in turn | cpu, cuda:1, ... = there, where a generation decodes on a
    thread of its own while the next chunk is made.
    """

    dtype: str = "fp32"  # fp32 | bf16
    tiling: bool = False  # whole clips in overlapping tiles: little memory, not for streams
    slicing: bool = False  # one clip of a batch at a time
    frames_per_pass: int = bounded(1, 1, BATCH)  # >1 is faster on a GPU and agrees to 3e-6
    device: str = "auto"  # auto | cpu | cuda:N

    @property
    def apart(self) -> bool:
        """True if the VAE has a device of its own."""
        return self.device != "auto"

    def problems(self) -> Iterator[str]:
        if not re.fullmatch(r"auto|cpu|cuda:\d+", self.device):
            yield f"vae.device is {self.device!r}; write auto, cpu, or a GPU of its own, e.g. cuda:1"
        if self.dtype not in ("fp32", "bf16"):
            yield f"vae.dtype is {self.dtype!r}; write fp32 or bf16"


@dataclass
class TextConfig:
    """How to run the text encoder."""

    dtype: str = "bf16"  # fp32 | bf16; of the weights and of the result
    device: str = "auto"  # auto: with the model | cpu: saves 11 GB on the GPU
    batch_size: int = bounded(8, 1, BATCH)  # prompts encoded together

    def problems(self) -> Iterator[str]:
        if self.dtype not in DTYPES:
            yield f"text.dtype is {self.dtype!r}; write {' or '.join(DTYPES)}"
        if self.device not in ("auto", "cpu"):
            yield f"text.device is {self.device!r}; write auto or cpu"


class Buildable:
    """A configuration that names the class or function that takes it; that module is loaded on `build` and not before.

    consumer: "module:name", as in the registries.
    """

    consumer = ""

    def build(self, *args, **kwargs):
        """Returns what the consumer makes of this configuration and the arguments."""
        module, _, name = self.consumer.partition(":")
        return getattr(import_module(module), name)(self, *args, **kwargs)


def raise_first(problems: Iterable[str]) -> None:
    """Raises ValueError with the first problem, if there is one."""
    for text in problems:
        raise ValueError(text)


def clock_problems(shift: float, rounding: str) -> Iterator[str]:
    """Yields a shift that is not positive or an unknown way to look sigma up."""
    if rounding not in ROUNDINGS:
        yield f"rounding is {rounding!r}; write one of {ROUNDINGS}"
    if shift <= 0:
        yield f"shift is {shift}; write a positive number (1 = none)"


def step_problems(steps, name: str = "steps") -> Iterator[str]:
    """Yields an empty list of steps, values outside (0, 1000], or steps that do not descend."""
    steps = list(steps)
    if not steps or any(not 0 < s <= TOP for s in steps):
        yield f"{name} {steps} must lie in (0, {TOP}]; write for example [1000, 750, 500, 250]"
    if any(a <= b for a, b in zip(steps[:-1], steps[1:], strict=True)):
        yield f"{name} {steps} must descend"
