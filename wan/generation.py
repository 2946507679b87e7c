"""How a model generates: the chunks a video is cut into, the noise levels, the cache, the context pass; without torch.

One noun for all that reads it. A training recipe writes it once (`generation`); sources, losses, previews and preflight
read it; it is exported with the weights as `generation_config.json`, which generation takes as its defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from utils.bounds import bounded
from wan.config import LONGEST, SHIFTS, TOP, clock_problems, step_problems
from wan.geometry import Span, check_chunks, chunks
from wan.ledger import CacheConfig, Plan
from wan.tokens import Run

FILE = "generation_config.json"  # next to the weights
CLOCKS = ("flow", "vp")
FOLLOWS = ("reference", "all")
AUDIO_CONTEXTS = ("video", "block")


@dataclass
class StepsConfig:
    """Noise levels of a model, noisiest first, on the 1000-scale; empty = it was not distilled to few steps.

    first_steps: those of a video's first chunk, which has no past to lean on; empty = the same. Students of one or two
    steps are published with more of them there.
    eta: how much of the noise of a step is kept for the next: 0 = fresh noise, as the published students are re-noised;
    1 = all of it, so a chunk has no randomness but its start (same-step models: Euler).
    shift, rounding: of its schedule, also where a solver runs. warp: the list indexes the shifted table, as the
    published models were trained.
    """

    steps: tuple[float, ...] = bounded((), 1e-3, TOP)
    shift: float = bounded(5.0, *SHIFTS)
    warp: bool = True
    rounding: str = "none"  # none | integer | table
    first_steps: tuple[float, ...] = bounded((), 1e-3, TOP)
    eta: float = bounded(0.0, 0, 1)
    clock: str = "flow"  # flow | vp (CogVideoX: `shift` is that of signal to noise; steps and solvers take its times)

    def problems(self) -> Iterator[str]:
        yield from clock_problems(self.shift, self.rounding)
        if self.clock not in CLOCKS:
            yield f"steps.clock is {self.clock!r}; write one of {', '.join(CLOCKS)}"
        if self.steps:
            yield from step_problems(self.steps)
        if self.first_steps:
            yield from step_problems(self.first_steps, "first_steps")
            if not self.steps:
                yield "first_steps are given and steps are empty; write the steps of the later chunks, too"

    def problems_if_none(self, what: str) -> Iterator[str]:
        """Yields that `what` needs the steps of a few-step model, where there are none."""
        if not self.steps:
            yield f"{what} needs generation.steps.steps, the noise levels; write e.g. [1000, 750, 500, 250]"


@dataclass
class ContextConfig:
    """The context pass: `sigma` is passed to the network as noise level, `renoise` mixes x0 to it first.

    The ancestors' training passes 0 and mixes (their table's last sigma is not 0); ours does neither.
    """

    sigma: float = bounded(0.0, 0, 1)
    renoise: bool = False
    rounding: str = "none"
    shift: float = bounded(5.0, *SHIFTS)

    def problems(self) -> Iterator[str]:
        yield from clock_problems(self.shift, self.rounding)


@dataclass
class PortraitConfig:
    """Where the pinned runs of a portrait stand while a video goes on, and what its sound is heard with.

    distance: latent frames from a chunk's start to the reference, which stands ahead of it: drawn anew for each chunk
    and step within [least, most], or fixed where both are equal; never nearer than where it was pinned.
    follow: `reference` = motion stays where it was pinned, before the video's start (as published); `all` = it moves
    with the oldest frame that is read. refresh: the chunk before which the video's own first frame becomes the
    reference; 0 = the portrait stays.
    audio_context: `video` = a frame hears what was before it; `block` = only its chunk (as Live-Avatar was trained).
    """

    distance: tuple[int, int] = bounded((4, 30), 0, LONGEST)
    follow: str = "reference"  # reference | all
    refresh: int = bounded(0, 0, LONGEST)
    audio_context: str = "video"  # video | block

    def problems(self) -> Iterator[str]:
        if len(self.distance) != 2 or self.distance[0] > self.distance[1]:
            yield f"portrait.distance is {list(self.distance)}; write the least and the most, e.g. [4, 30]"
        if self.follow not in FOLLOWS:
            yield f"portrait.follow is {self.follow!r}; write one of {', '.join(FOLLOWS)}"
        if self.audio_context not in AUDIO_CONTEXTS:
            yield f"portrait.audio_context is {self.audio_context!r}; write one of {', '.join(AUDIO_CONTEXTS)}"

    def place(self, pinned: Sequence[Run], plan: Plan, distance: int) -> tuple[Run, ...]:
        """Returns the pinned runs at the positions that they have in a pass over the frames of `plan`."""
        start, oldest = plan.positions[0], min((*plan.read_positions, plan.positions[0]))
        runs = []
        for run in pinned:
            if run.kind == "reference":
                runs.append(replace(run, times=tuple(max(time, start + distance) for time in run.times)))
            elif self.follow == "all":
                runs.append(replace(run, times=tuple(time + oldest for time in run.times)))
            else:
                runs.append(run)
        return tuple(runs)


@dataclass
class GenerationConfig:
    """How a model generates. chunk: latent frames denoised together; first_chunk: length of the first, 0 = the same."""

    chunk: int = bounded(3, 1, LONGEST)
    first_chunk: int = bounded(0, 0, LONGEST)
    steps: StepsConfig = field(default_factory=StepsConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    portrait: PortraitConfig = field(default_factory=PortraitConfig)

    def problems(self) -> Iterator[str]:
        yield from self.cache.chunk_problems(self.largest_chunk)
        if self.cache.content == "same_step" and self.context != ContextConfig():
            yield "cache.content is same_step: the steps fill the caches and no context pass runs; leave out context"
        if self.cache.content == "same_step" and self.steps.first_steps:
            yield "cache.content is same_step: a cache for each of the steps; write generation.steps.first_steps=[]"

    @property
    def audio_chunk(self) -> int:
        """Latent frames of which a frame hears those before it; 0 = all (`Condition.audio_chunk`)."""
        return self.chunk if self.portrait.audio_context == "block" else 0

    @property
    def head(self) -> int:
        """Latent frames of the first chunk."""
        return self.first_chunk or self.chunk

    @property
    def largest_chunk(self) -> int:
        """Latent frames of the longest chunk."""
        return max(self.chunk, self.first_chunk)

    def spans(self, total: int, given: int = 0) -> list[Span]:
        """Returns the chunks to generate of a video of `total` frames whose first `given` are given.

        Errors: ValueError for frames that do not fill whole chunks.
        """
        if given:
            if total <= given:
                raise ValueError(f"{given} latent frames are given and the video has {total}; ask for a longer one")
            return chunks(total, self.chunk, given)[1:]
        return chunks(total, self.chunk, self.first_chunk or None)

    def check_length(self, total: int) -> None:
        """Raises ValueError for a video whose frames do not fill whole chunks."""
        check_chunks(total, self.chunk, self.first_chunk or None)

    def given_spans(self, given: int) -> list[Span]:
        """Returns the chunks of so many given first frames; the last one may be short."""
        borders = [0, *range(self.head, given, self.chunk), given] if given else []
        return [Span(a, b) for a, b in zip(borders[:-1], borders[1:], strict=True)]

    def next_span(self, start: int) -> Span:
        """Returns the chunk that begins at a frame."""
        return Span(start, start + (self.chunk if start else self.head))

    def round_up(self, total: int, given: int = 0) -> int:
        """Returns the least length of at least `total` frames that fills whole chunks, one at least behind `given`."""
        head = given or self.first_chunk
        rest = max(total - head, 1 if given else 0)
        return head + -(-rest // self.chunk) * self.chunk

    def round_down(self, frames: int) -> int:
        """Returns how many of so many first frames fill whole chunks."""
        return 0 if frames < self.head else self.head + (frames - self.head) // self.chunk * self.chunk
