"""The layout of one forward's token sequence: runs of tokens, each with its frames, grid, positions and sigma.

Made once per forward from plain integers; whoever needs to know where a token lies asks it: patch embedding,
modulation, rotary table, masks, sequence parallelism, caches, adapters, the head. No torch.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

KINDS = ("video", "clean", "reference", "motion", "text")

Order = Callable[[int, int, int], Sequence[int]]


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens of one kind: frame slowest, then rows, then columns.

    kind: `video` is denoised and predicted; `clean` are its clean frames (teacher forcing); others only condition.
    times, rows, columns: rotary positions of the frames, and of the rows and columns of a frame: any numbers,
    negative ones and gaps too. Their lengths are the run's size.
    sigma: the row of the sigma table for each frame. cached: its keys are written to a cache, or come from it.
    """

    kind: str
    times: Sequence[float]
    rows: Sequence[float]
    columns: Sequence[float]
    sigma: Sequence[int] = ()
    cached: bool = False

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is not a kind of token run; write one of {KINDS}")
        for name in ("times", "rows", "columns", "sigma"):
            if not isinstance(vars(self)[name], (range, tuple)):  # what can be hashed
                object.__setattr__(self, name, tuple(vars(self)[name]))

    @property
    def num_frames(self) -> int:
        """Latent frames (1 for text)."""
        return len(self.times)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of tokens in a frame."""
        return len(self.rows), len(self.columns)

    @property
    def frame_tokens(self) -> int:
        """Tokens of one frame."""
        return len(self.rows) * len(self.columns)

    @property
    def num_tokens(self) -> int:
        """Tokens of all frames."""
        return len(self.times) * len(self.rows) * len(self.columns)

    @property
    def size(self) -> tuple:
        """(kind, frames, grid): what does not change when the run moves to other positions."""
        return self.kind, self.num_frames, self.grid

    @property
    def plain(self) -> Run:
        """The same run at positions 0, 1, 2 ...: a key for what depends on sizes alone."""
        return replace(self, times=range(self.num_frames), rows=range(len(self.rows)), columns=range(len(self.columns)))


@dataclass(frozen=True)
class TokenLayout:
    """The runs of a sequence, in order; immutable and hashable.

    order: `order(frames, rows, columns)` lists a run's tokens in the order in which they are processed, or None
    as they are. A token that it names again right behind itself is a pad: processed like any other, seen by none,
    and left out of the result. Cached runs are ordered frame by frame, because a cache keeps and drops frames.
    share: (rank, number of ranks): each rank works on an equal part of every `unit` tokens.
    unit: processed tokens that always have one sigma: the greatest common divisor of the runs' tokens per frame.
    """

    runs: tuple[Run, ...]
    order: Order | None = None
    share: tuple[int, int] = (0, 1)
    unit: int = 0

    def __post_init__(self):
        if not self.unit:
            object.__setattr__(self, "unit", math.gcd(*(self._unit(run) for run in self.runs)))

    @property
    def num_frames(self) -> int:
        """Frames of all runs."""
        return sum(run.num_frames for run in self.runs)

    @property
    def num_tokens(self) -> int:
        """Processed tokens of all runs, on all ranks."""
        return sum(self.lengths)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Processed tokens of each run, pads included."""
        return tuple(map(self._length, self.runs))

    @property
    def padded(self) -> bool:
        """True if some processed tokens are pads."""
        return self.order is not None and self.num_tokens > sum(run.num_tokens for run in self.runs)

    @property
    def num_units(self) -> int:
        """Into how many equal stretches the sequence is cut for modulation and for the ranks."""
        return self.num_tokens // self.unit

    @property
    def output(self) -> int | None:
        """Number of the run that the head predicts: the video; None if there is none (a prefill pass)."""
        return next((number for number, run in enumerate(self.runs) if run.kind == "video"), None)

    @property
    def is_even(self) -> bool:
        """True if all frames have the same number of tokens."""
        return all(run.frame_tokens == self.runs[0].frame_tokens for run in self.runs)

    @functools.cached_property
    def plain(self) -> TokenLayout:
        """The same sizes without positions: a key for what depends on sizes alone."""
        return replace(self, runs=tuple(run.plain for run in self.runs))

    def only(self, number: int) -> TokenLayout:
        """Returns the layout of one run alone, cut as it is cut here."""
        return replace(self, runs=(self.runs[number],))

    def tokens(self, number: int) -> slice:
        """Returns where a run's tokens lie among this rank's."""
        start = sum(self.lengths[:number])
        return slice(start // self.share[1], (start + self.lengths[number]) // self.share[1])

    def same_grids(self) -> Iterator[tuple[list[float], Sequence[float], Sequence[float]]]:
        """Yields (times, rows, columns) of neighbouring runs, joined where rows and columns are the same."""
        times: list[float] = []
        for number, run in enumerate(self.runs):
            times += run.times
            following = self.runs[number + 1 : number + 2]
            if not following or (following[0].rows, following[0].columns) != (run.rows, run.columns):
                yield times, run.rows, run.columns
                times = []

    @property
    def permutation(self) -> tuple[int, ...] | None:
        """Which token is processed at each place, on all ranks; None if they are processed as they lie."""
        return None if self.order is None else _permutation(self.plain)

    @property
    def inverse(self) -> tuple[int, ...]:
        """At which place each token is processed: of one that is repeated, the first."""
        places = [place for place, real in enumerate(self.real) if real]
        return tuple(sorted(places, key=self.permutation.__getitem__))

    @property
    def real(self) -> tuple[bool, ...]:
        """Of each place, on all ranks, whether it is no pad."""
        found = self.permutation or range(self.num_tokens)
        return tuple(not place or token != found[place - 1] for place, token in enumerate(found))

    @property
    def real_places(self) -> tuple[int, ...]:
        """The places that are no pads, in order."""
        return tuple(place for place, real in enumerate(self.real) if real)

    @property
    def frame_of_token(self) -> tuple[int, ...]:
        """The frame, counted over all runs, of each of this rank's tokens."""
        return _frame_of_token(self.plain)

    @property
    def mixes_frames(self) -> bool:
        """True if the order takes tokens out of their frame."""
        return self.order is not None and _mixes_frames(self.plain)

    @property
    def modulation_rows(self) -> tuple[int, ...] | None:
        """The sigma row of each equal stretch of this rank's tokens.

        None where the rows fit as they are: one for all, or one per frame and all frames alike.
        """
        rows = [row for run in self.runs for row in run.sigma]
        if not any(rows) or (self.is_even and not self.mixes_frames):
            return None
        if self.mixes_frames:
            return tuple(rows[frame] for frame in self.frame_of_token)
        stretches = [self._unit(run) // self.unit for run in self.runs]
        return tuple(
            row for run, count in zip(self.runs, stretches, strict=True) for row in run.sigma for _ in range(count)
        )

    def _length(self, run: Run) -> int:
        """Processed tokens of one run."""
        return run.num_tokens if self.order is None else len(_ordered(self.order, *run.size[1:], run.cached))

    def _unit(self, run: Run) -> int:
        """Processed tokens of one of its frames; of the whole run, where pads follow its mixed frames."""
        length = self._length(run)
        return length if length % run.num_frames else length // run.num_frames


def spread(count: int, over: int, start: int = 0) -> tuple[int, ...]:
    """Returns `count` whole positions spread evenly over [start, start + over): coarse tokens over a fine grid.

    Truncated in float64, as the published models were trained (in fp32 some are off by one).
    """
    step = (over - 1) / (count - 1) if count > 1 else 0.0
    return tuple(start + int(i * step) for i in range(count))


@functools.lru_cache(maxsize=256)
def _ordered(order: Order, frames: int, grid: tuple[int, int], by_frame: bool) -> tuple[int, ...]:
    """Returns the tokens of one run in the order in which they are processed, pads included."""
    pieces, inner = (frames, 1) if by_frame else (1, frames)
    found = list(order(inner, *grid))
    size = inner * grid[0] * grid[1]
    once = [token for place, token in enumerate(found) if not place or token != found[place - 1]]
    if sorted(once) != list(range(size)):
        raise ValueError(
            f"the order of {inner} x {grid} tokens must name each of them once, pads right behind what they repeat"
        )
    return tuple(piece * size + token for piece in range(pieces) for token in found)


@functools.lru_cache(maxsize=64)
def _permutation(plain: TokenLayout) -> tuple[int, ...]:
    found: list[int] = []
    start = 0
    for run in plain.runs:
        found += [start + token for token in _ordered(plain.order, *run.size[1:], run.cached)]
        start += run.num_tokens
    return tuple(found)


@functools.lru_cache(maxsize=64)
def _frame_of_token(plain: TokenLayout) -> tuple[int, ...]:
    sizes = [run.frame_tokens for run in plain.runs for _ in range(run.num_frames)]
    frames = [frame for frame, size in enumerate(sizes) for _ in range(size)]
    if plain.order is not None:
        frames = [frames[token] for token in plain.permutation]
    rank, ranks = plain.share
    part = plain.unit // ranks
    starts = range(rank * part, len(frames), plain.unit)
    return tuple(frame for start in starts for frame in frames[start : start + part])


@functools.lru_cache(maxsize=64)
def _mixes_frames(plain: TokenLayout) -> bool:
    frames = replace(plain, share=(0, 1)).frame_of_token
    return any(after < before for before, after in itertools.pairwise(frames))
