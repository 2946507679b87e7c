"""Sources make samples: `source.next(step, roles, rng, with_grad=True, index=None) -> Sample`.

What a step sees is a function of the step and of a sample's index in the global batch, so a resumed
run, or one on another number of ranks, sees the same. `index`: which samples of the step, a part of
`source.index(step)` on a rank among others, by default all. `with_grad` is for sources that generate:
whether the latents carry gradient.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from model.base import Sample
from trainer.sources.config import LatentsConfig
from utils.data.prompts import read_prompts
from utils.data.store import open_clips
from wan.generation import GenerationConfig


class Source:
    """What all sources share: the numbers of a step's samples. `config.batch` is the global batch."""

    latest = -1  # the last step that was asked for
    config: Any  # of the arm; `batch` is the global one
    origin = (0, 0)  # a step, and the number of its first sample

    def index(self, step: int) -> range:
        """Returns the numbers of the step's samples, counted over the whole run."""
        begun, number = self.origin
        first = number + (step - begun) * self.config.batch
        return range(first, first + self.config.batch)

    def draw(self, step: int) -> range:
        """Returns the same, of a step that is taken now."""
        self.latest = step
        return self.index(step)

    def cursor(self) -> dict[str, int]:
        """Returns where the next step's samples begin, for a checkpoint."""
        return {"step": self.latest + 1, "sample": self.index(self.latest + 1).start}

    def go_on_from(self, cursor: dict[str, int]) -> None:
        """Takes back what `cursor` returned; with another batch size the next samples follow, and none comes twice."""
        self.origin, self.latest = (cursor["step"], cursor["sample"]), cursor["step"] - 1

    def state_dict(self) -> dict:
        """Returns what is kept between steps, for a checkpoint: nothing where a step is a function of its number."""
        return {}

    def load_state_dict(self, state: dict, shares: list[range], roles) -> None:
        """Takes back what `state_dict` returned. shares: this rank's places in the global batch, part by part."""


class Latents(Source):
    """Clean latents with their prompts; fills latents, condition and spans."""

    def __init__(self, config: LatentsConfig, generation: GenerationConfig):
        self.config, self.clips = config, open_clips(config.path, config.on_bad)
        self.spans = generation.spans(config.frames)
        check_length(config.path, self.clips.shortest, config.frames)

    def next(self, step: int, roles, rng, with_grad: bool = True, index: range | None = None) -> Sample:
        """Returns the batch of one step: clips drawn with replacement, some without their prompt."""
        config, index = self.config, self.index(step) if index is None else index
        if config.growing and step % 100 == 0:
            self.clips.refresh()
        picks = rng.at("sample", step, "clip").uniform_batch((), index)
        rows = [self.clips[int(u * len(self.clips))] for u in picks]
        drop = rng.at("sample", step, "dropout").uniform_batch((), index) < config.dropout
        prompts = ["" if dropped else prompt for (_, prompt), dropped in zip(rows, drop.tolist(), strict=True)]
        latents = torch.stack([clip[: config.frames] for clip, _ in rows]).float().to(roles.device)
        return Sample(step, latents, roles.condition(prompts, null=False), index, self.spans, prompts)


def check_length(path: str, shortest: int, frames: int) -> None:
    """Raises ValueError if the shortest clip of a store holds fewer latent frames than are asked for."""
    if shortest < frames:
        raise ValueError(f"{path} holds clips of {shortest} latent frames; frames is {frames}")


def read_pairs(prompts: str, switch_prompts: str) -> list[tuple[str, str]]:
    """Returns (prompt, what it switches to) of each line; the same twice without a file of the latter.

    Errors: ValueError for files that cannot be read, or whose lines do not belong together.
    """
    try:
        lines = read_prompts(prompts, switch_prompts or None)
    except ValueError as error:
        raise ValueError(str(error).replace("the extended prompts need", "switch_prompts needs")) from error
    return [(line.text, line.prompt) for line in lines]


def epoch_row(number: int, count: int, rng) -> int:
    """Returns which of `count` records sample `number` of the run sees: each once an epoch, in a new order each."""
    epoch, place = divmod(number, count)
    return _order(rng, epoch, count)[place]


@lru_cache(maxsize=2)  # a batch may touch two epochs
def _order(rng, epoch: int, count: int) -> list[int]:
    return rng.at("epoch", epoch).permutation(count).tolist()
