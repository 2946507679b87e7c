"""The source of streaming long tuning: films that go on from one update to the next.

Each update, of generator or critic, takes the next stretch of the same films. Caches, last latents and prompts stay in
between, so that a step costs what a short rollout costs and the model learns from frames as late as it will make.
The generator's stretch carries gradient, but for chunks before a prompt switch inside it; the loss sees the last
`loss_frames` frames and counts the new ones.
Source: LongLive (arXiv 2509.22622) section 3.3; LongLive, model/streaming_training.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import torch

from model.base import Sample
from pipeline.options import ContextConfig, FewStepConfig
from pipeline.rollout import Rollout
from pipeline.sampler import RandomExit
from pipeline.track import Script
from trainer.film import Film
from trainer.rollout_source import Generating
from trainer.source import epoch_row, read_pairs
from trainer.window import loss_window
from utils.config import to_dict
from utils.data.scripts import frame_list
from wan.condition import Condition
from wan.geometry import chunks
from wan.ledger import CacheConfig, Ledger

logger = logging.getLogger(__name__)


@dataclass
class StreamConfig:
    """Films of up to `max_frames` (a list: one of them is drawn for each film), in stretches; lengths in latent frames.

    prompts: a text file, one per line. switch_prompts: another one, line by line: what the film changes to, at a frame
    that is drawn for each film from switch_frames, or from switch_range (first, last) in steps of a chunk; the switch
    comes with the first chunk that starts there or later, and not at all in a film that ends before.
    loss_frames: length of the first stretch and of the loss window. min_new_frames: the shortest later stretch; each
    is drawn from there to a chunk below loss_frames. train_first_chunk: false = a film's first stretch is not scored.
    save_films: whether a checkpoint holds the running films with their caches (for Wan-1.3B 2.6 GB each); false:
    they begin anew at a resume.
    """

    prompts: str = ""
    switch_prompts: str = ""
    switch_frames: Any = ()  # [21, 39], "21, 39" or 21
    switch_range: tuple[int, ...] = ()
    batch: int = 8
    max_frames: Any = 240  # or a list
    loss_frames: int = 21
    min_new_frames: int = 18
    train_first_chunk: bool = True
    chunk: int = 3
    height: int = 0
    width: int = 0
    sampler: FewStepConfig = field(default_factory=FewStepConfig)
    exit_per_chunk: bool = False  # an exit step for each chunk instead of one for all
    last_step_only: bool = False
    cache: CacheConfig = field(default_factory=CacheConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    save_films: bool = True

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of which each film has one."""
        return frame_list("max_frames", self.max_frames)

    @property
    def frames(self) -> int:
        """The longest film: the length of a preview."""
        return max(self.lengths)

    @property
    def switches(self) -> tuple[int, ...]:
        """The frames of which each film's switch has one; none without switch_prompts."""
        if self.switch_range:
            return tuple(range(self.switch_range[0], self.switch_range[1] + 1, self.chunk))
        return frame_list("switch_frames", self.switch_frames)

    def check(self):
        if not self.prompts:
            raise ValueError("prompts is empty; write a text file with one prompt per line")
        if self.batch < 1:
            raise ValueError("batch must be at least 1")
        named = [("loss_frames", self.loss_frames), ("min_new_frames", self.min_new_frames)]
        for name, length in [*named, *(("max_frames", length) for length in self.lengths)]:
            try:
                chunks(length, self.chunk)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        if self.min_new_frames >= self.loss_frames:
            raise ValueError(
                f"min_new_frames {self.min_new_frames} leaves no overlap in a loss window of {self.loss_frames}; write "
                f"at most {self.loss_frames - self.chunk}"
            )
        shortest = self.loss_frames + (0 if self.train_first_chunk else self.min_new_frames)
        if min(self.lengths, default=0) < shortest:
            raise ValueError(
                f"max_frames is {self.max_frames}; write at least {shortest}, the first scored stretch's end"
            )
        self._check_switches()
        Ledger(self.cache, self.chunk, self.frames)  # raises for a window that holds no chunk

    def _check_switches(self) -> None:
        given = bool(self.switch_frames) + bool(self.switch_range)
        if given != bool(self.switch_prompts):
            raise ValueError(
                "a switch needs switch_prompts (a text file, line by line with prompts) and one of switch_frames and "
                "switch_range; write these two, or none of the three"
            )
        if self.switch_range and (len(self.switch_range) != 2 or self.switch_range[0] > self.switch_range[1]):
            raise ValueError(f"switch_range is {list(self.switch_range)}; write [first, last], e.g. [21, 201]")
        if given and not 1 <= min(self.switches) <= self.frames - self.chunk:
            raise ValueError(
                f"no film reaches a switch: the first is asked for at frame {min(self.switches)}; write frames from 1 "
                f"to {self.frames - self.chunk}, where the last chunk of {self.frames} frames starts"
            )

    def build(self) -> StreamSource:
        """Returns the source."""
        return StreamSource(self)


class StreamSource(Generating):
    """Stretches of long films. Each part of a rank's share has films of its own, so parts and ranks change nothing."""

    fills = frozenset({"latents", "condition", "null", "spans"})

    def __init__(self, config: StreamConfig):
        self.config = config
        self.lines = read_pairs(config.prompts, config.switch_prompts)
        self.prompts = [line[0] for line in self.lines]
        self.films: dict[range, Film] = {}  # places in the global batch -> what runs there
        self.first = 0  # number of the film that a place without one begins

    def next(self, step: int, roles, rng, graded: bool = True, index: range | None = None) -> Sample:
        """Goes on by one stretch; `step` counts stretches, so that generator and critic never share one."""
        config, index = self.config, self.index(step) if index is None else index
        base = self.index(step).start
        places = range(index.start - base, index.stop - base)
        film = self.films.get(places)
        if film is None or not self.goes_on(film):
            number = film.number + 1 if film else self.first
            film = self.films[places] = self.begin(places, number, roles, rng)
            if not config.train_first_chunk:
                self.stretch(film, step, config.loss_frames, roles, rng, index, graded=False)
        return self.stretch(film, step, self.new_frames(film, step, rng), roles, rng, index, graded)

    def goes_on(self, film: Film) -> bool:
        """True if the film has room for another stretch."""
        return film.length + self.config.min_new_frames <= film.max_frames

    def begin(self, places: range, number: int, roles, rng) -> Film:
        """Returns the next film of these places; length and switch are equal on all ranks."""
        lengths = self.config.lengths
        length = lengths[int(rng.shared(number, "film length").integers(0, len(lengths)))]
        choices = [frame for frame in self.config.switches if frame < length]
        switch = choices[int(rng.shared(number, "film switch").integers(0, len(choices)))] if choices else None
        rows = [epoch_row(number * self.config.batch + place, len(self.lines), rng) for place in places]
        return self.film(number, length, switch, rows, roles)

    def film(self, number: int, max_frames: int, switch: int | None, rows: list[int], roles) -> Film:
        """Returns a film at its start, of these lines of the prompt files."""
        config = self.config
        prompts = [[self.lines[row][cue] for row in rows] for cue in range(1 if switch is None else 2)]
        null = roles.text([roles.negative_prompt]).expand(len(rows), -1, -1)
        cues = zip((0, switch), (Condition(roles.text(texts), null) for texts in prompts), strict=False)
        few, size = config.sampler.build(), self.geometry(roles)
        rollout = Rollout(roles.generator, few, size, config.cache, config.context, training=True, device=roles.device)
        rollout.begin(len(rows), config.chunk, max_frames)
        return Film(number, max_frames, switch, rows, prompts, Script(list(cues)), rollout)

    def new_frames(self, film: Film, step: int, rng) -> int:
        """Returns the length of the film's next stretch, equal on all ranks."""
        config = self.config
        if not film.length:
            return config.loss_frames
        most = min(film.max_frames - film.length, config.loss_frames - config.chunk)
        choices = range(config.min_new_frames, most + 1, config.chunk)
        return choices[int(rng.shared(step, "new frames").integers(0, len(choices)))]

    def stretch(self, film: Film, step: int, count: int, roles, rng, index: range, graded: bool) -> Sample:
        """Makes the film's next `count` frames; only these count, those before a switch among them have no gradient."""
        config = self.config
        spans = chunks(count, config.chunk, start=film.length)
        exits = self.exits(step, count // config.chunk, rng, film.length)
        first = film.entry(spans) or 0
        exit_of = dict(zip(spans, exits, strict=True)).__getitem__
        film.rollout.sampler = RandomExit(config.sampler.build(), exit_of, lambda span: span.start >= first)
        noise = self.noise(step, index, film.rollout.geometry, rng)
        with torch.set_grad_enabled(graded):
            made = [film.rollout.make(film.track, span, noise).latents for span in spans]
            whole = torch.cat(made if film.previous is None else [film.previous, *made], 1)
        latents, mask = loss_window(whole, config.loss_frames, roles.vae, config.loss_frames - count)
        film.previous, film.length = whole[:, -config.loss_frames :].detach().clone(), film.length + count
        prompts = film.prompts[film.track.cursor]
        seen = chunks(latents.shape[1], config.chunk)
        return Sample(step, latents, film.condition, index, seen, prompts, mask, self.exit_range(exits))

    def state_dict(self) -> dict:
        """Returns the running films, each rank's own, with what they fit."""
        films = [self.films[places] for places in sorted(self.films, key=lambda places: places.start)]
        state = {"number": films[0].number if films else self.first, "running": bool(films)}
        if not films or not self.config.save_films:
            return state
        fits = self._fits(list(self.films), films[0].rollout.denoiser)
        return state | {"fits": fits, "films": [film.state_dict() for film in films]}

    def load_state_dict(self, state: dict, shares: list[range], roles) -> None:
        """Goes on with the saved films to the bit; on another number of ranks or with other knobs they begin anew."""
        self.films, self.first = {}, state.get("number", 0)
        saved = state.get("films", [])
        if saved and saved[0]["rows"] is None:
            why = "the checkpoint is of another number of ranks"
        elif saved and state["fits"] != self._fits(shares, roles.generator):
            why = "knobs of the source, its prompts or the shares of the batch have changed"
        else:
            why = "the checkpoint does not hold them"
            for places, told in zip(shares, saved, strict=True) if saved else ():
                told_rows = told["rows"].tolist()
                self.films[places] = self.film(self.first, told["max_frames"], told["switch"], told_rows, roles)
                self.films[places].load_state_dict(told)
        if state.get("running") and not self.films:
            logger.warning("the running films begin anew, with film %d of each place: %s", self.first, why)

    def _fits(self, shares: Sequence[range], generator) -> dict:
        """Returns what must be the same where films go on: knobs, prompts, how batch and heads are shared."""
        lines = blake2b(repr(self.lines).encode(), digest_size=16).hexdigest()
        rows = [len(share) for share in shares]
        return {"source": to_dict(self.config), "lines": lines, "rows": rows, "heads": generator.cache_heads}
