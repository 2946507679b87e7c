"""The knobs of attention; no torch, so that a configuration is read at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from utils.bounds import bounded
from wan.attention import BACKENDS
from wan.config import LONGEST

PROBES = ("mean", "sampled", "drawn")
ORDERS = ("frame", "clip")
LAYERS = 1 << 12  # more is a mistake


@dataclass
class AttentionConfig:
    """backend: a name of `BACKENDS`, or `auto` = the first that can run, logged once."""

    backend: str = "auto"

    def problems(self) -> Iterator[str]:
        """Yields a backend that is not in the table."""
        if self.backend != "auto" and self.backend not in BACKENDS:
            yield f"attention.backend is {self.backend!r}; write auto or one of {', '.join(BACKENDS)}"


@dataclass
class NoSparsity:
    """Every query reads every key that it may see."""

    def problems(self) -> Iterator[str]:
        """Yields nothing."""
        yield from ()


@dataclass
class DensePartsConfig:
    """What a query over a cache reads whole: its own chunk, the sink, the newest frames before the chunk."""

    own: bool = True
    sink: bool = True
    newest: int = bounded(1, 0, LONGEST)


@dataclass
class AsaConfig:
    """Adaptive block-sparse attention: each block of queries chooses its blocks of keys, per layer and head.

    block: tokens of a block. order: the curve along which tokens are blocked, within each `frame` (for caches and one
    sigma per frame too) or over the `clip` (as published; whole clips of one sigma).
    probe: `mean` = pooled q . pooled k; `sampled` = the published map, of `samples` tokens of each block, evenly
    spread; `drawn` = of others in each pass and layer, from `seed`.
    threshold: share of the scores that is kept, by `min` to `max` of the blocks that may be chosen. count: `inclusive`
    keeps the block that reaches the threshold; `below` does not, as the published weights were trained.
    pool: every so many keys are also read as their mean, 0: not.
    dense: what is read whole over a cache. dense_layers: blocks of the network that read everything, -1 the last;
    dense_above, dense_below: so do sampling steps of a larger and of a smaller sigma.
    select: over a cache, each `step` chooses anew, or a `chunk` keeps what its first step chose.
    """

    block: int = bounded(128, 8, 1 << 12)
    order: str = "frame"  # frame | clip
    probe: str = "mean"  # mean | sampled | drawn
    samples: int = bounded(32, 1, 1 << 12)
    seed: int = bounded(0, 0, 2**31 - 1)
    threshold: float = bounded(0.95, 1e-6, 1)
    min: float = bounded(0.05, 0, 1)
    max: float = bounded(0.15, 0, 1)
    count: str = "inclusive"  # inclusive | below
    pool: int = bounded(0, 0, 1 << 12)
    dense: DensePartsConfig = field(default_factory=DensePartsConfig)
    dense_layers: list[int] = field(default_factory=list)
    dense_above: float = bounded(1.0, 0, 1)
    dense_below: float = bounded(0.0, 0, 1)
    select: str = "step"  # step | chunk

    def problems(self) -> Iterator[str]:
        """Yields unknown names, ratios that exclude each other, blocks that no kernel can run."""
        names = (("order", ORDERS), ("probe", PROBES), ("count", ("inclusive", "below")), ("select", ("step", "chunk")))
        for name, known in names:
            if getattr(self, name) not in known:
                yield f"sparse.{name} is {getattr(self, name)!r}; write one of {', '.join(known)}"
        if self.block & (self.block - 1):
            yield f"sparse.block is {self.block}; write a power of two of at least 8 (128 for the fastest kernels)"
        if not self.max or self.min > self.max:
            yield f"sparse.min is {self.min} and sparse.max {self.max}; write 0 <= min <= max and a max above 0"
        if self.probe != "mean" and self.samples > self.block:
            yield f"sparse.samples is {self.samples} of blocks of {self.block} tokens; write at most {self.block}"
        if self.dense_below >= self.dense_above:
            yield (
                f"sparse.dense_below is {self.dense_below} and sparse.dense_above {self.dense_above}: every step would "
                "be dense; write a smaller dense_below, or sparse.name=none"
            )
        if any(type(layer) is not int or abs(layer) >= LAYERS for layer in self.dense_layers):
            yield f"sparse.dense_layers is {self.dense_layers}; write numbers of the network's blocks"

    def causal_problems(self) -> Iterator[str]:
        """Yields what a cache cannot do."""
        if self.order == "clip":
            yield (
                "sparse.order is clip, a curve through the frames of a whole clip, and a cache keeps frames apart; "
                "write sparse.order=frame"
            )
        if self.pool > self.block:
            yield (
                f"sparse.pool is {self.pool} and sparse.block {self.block}: a mean over a cache stays within a block; "
                f"write at most {self.block}"
            )


SPARSE = {"none": NoSparsity, "asa": AsaConfig}
