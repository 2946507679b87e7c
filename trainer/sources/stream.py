"""The source of streaming long tuning: videos that go on from one update to the next.

Each update, of generator or critic, takes the next stretch of the same videos. Caches, last latents and prompts stay in
between, so that a step costs what a short rollout costs and the model learns from frames as late as it will make.
The generator's stretch carries gradient, but for chunks before a prompt switch inside it; the loss sees the last
`loss_frames` frames and counts the new ones.
Source: LongLive (arXiv 2509.22622) section 3.3; LongLive, model/streaming_training.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

import torch

from model.base import Sample
from pipeline.executor import PlainExecutor
from pipeline.sampler import RandomExit
from pipeline.track import PromptSchedule
from trainer.config import OLD_KEYS
from trainer.sources.config import StreamConfig
from trainer.sources.latents import epoch_row, read_pairs
from trainer.sources.rollout import Generating
from trainer.sources.running import RunningVideos
from trainer.sources.window import loss_window
from utils.config.renamed import fill, rename
from utils.config.text import to_dict
from wan.generation import GenerationConfig
from wan.geometry import Span, chunks

logger = logging.getLogger(__name__)


class StreamSource(Generating):
    """Rollout segments of long videos. Each part of a rank's share has its own, so parts and ranks change nothing."""

    def __init__(self, config: StreamConfig, generation: GenerationConfig):
        self.config, self.generation = config, generation
        self.lines = read_pairs(config.prompts, config.switch_prompts)
        self.prompts = [line[0] for line in self.lines]
        self.videos: dict[range, RunningVideos] = {}  # places in the global batch -> what runs there
        self.first = 0  # number of the video that a place without one begins

    def next(self, step: int, roles, rng, with_grad: bool = True, index: range | None = None) -> Sample:
        """Goes on by one stretch; `step` counts stretches, so that generator and critic never share one."""
        config, index = self.config, self.index(step) if index is None else index
        base = self.index(step).start
        places = range(index.start - base, index.stop - base)
        video = self.videos.get(places)
        if video is None or not self.goes_on(video):
            number = video.number + 1 if video else self.first
            video = self.videos[places] = self.begin(places, number, roles, rng)
            if not config.train_first_chunk:
                self.extend(video, step, config.loss_frames, roles, rng, index, with_grad=False)
        return self.extend(video, step, self.new_frames(video, step, rng), roles, rng, index, with_grad)

    def goes_on(self, video: RunningVideos) -> bool:
        """True if the video has room for another stretch."""
        return video.length + self.config.min_new_frames <= video.max_frames

    def begin(self, places: range, number: int, roles, rng) -> RunningVideos:
        """Returns the next video of these places; length and switch are equal on all ranks."""
        lengths = self.config.lengths
        length = lengths[int(rng.shared(number, "video length").integers(0, len(lengths)))]
        choices = [frame for frame in self.config.switches(self.generation.chunk) if frame < length]
        switch = choices[int(rng.shared(number, "video switch").integers(0, len(choices)))] if choices else None
        rows = [epoch_row(number * self.config.batch + place, len(self.lines), rng) for place in places]
        return self.video(number, length, switch, rows, roles)

    def video(self, number: int, max_frames: int, switch: int | None, rows: list[int], roles) -> RunningVideos:
        """Returns a video at its start, of these lines of the prompt files."""
        knobs = self.generation
        prompts = [[self.lines[row][cue] for row in rows] for cue in range(1 if switch is None else 2)]
        cues = zip((0, switch), map(roles.condition, prompts), strict=False)
        rollout = self.generator_rollout(roles, self.few_steps(), self.geometry(roles))
        state = rollout.start(len(rows), knobs.chunk, max_frames)
        return RunningVideos(number, max_frames, switch, rows, prompts, PromptSchedule(list(cues)), rollout, state)

    def new_frames(self, video: RunningVideos, step: int, rng) -> int:
        """Returns the length of the video's next stretch, equal on all ranks."""
        config, chunk = self.config, self.generation.chunk
        if not video.length:
            return config.loss_frames
        most = min(video.max_frames - video.length, config.loss_frames - chunk)
        choices = range(config.min_new_frames, most + 1, chunk)
        return choices[int(rng.shared(step, "new frames").integers(0, len(choices)))]

    def extend(self, video: RunningVideos, step: int, count: int, roles, rng, index: range, with_grad: bool) -> Sample:
        """Generates the next `count` frames, which alone enter the loss; none before a prompt switch has gradient."""
        config, chunk = self.config, self.generation.chunk
        spans = chunks(count, chunk, start=video.length)
        begins = not video.length
        exits = self.exits(step, count // chunk, rng, video.length, first=begins)
        first = video.entry(spans) or 0
        exit_step = dict(zip(spans, exits, strict=True)).__getitem__
        sampler = RandomExit(self.few_steps(), exit_step, lambda span: span.start >= first)
        executor = PlainExecutor(replace(video.rollout, sampler=sampler))
        noise = self.noise(step, index, video.rollout.geometry, rng)
        with torch.set_grad_enabled(with_grad):
            made = [chunk.latents for chunk in executor.run(video.state, video.track, spans, noise)]
            whole = torch.cat(made if video.previous is None else [video.previous, *made], 1)
        latents, mask = loss_window(whole, config.loss_frames, roles.vae, config.loss_frames - count)
        video.previous = whole[:, -config.loss_frames :].detach().clone()
        prompts = video.prompts[video.track.cursor]
        seen = chunks(latents.shape[1], chunk)
        scored = video.condition.cut(Span(video.length - latents.shape[1], video.length))
        return Sample(step, latents, scored, index, seen, prompts, mask, self.exit_range(exits, begins))

    def state_dict(self) -> dict:
        """Returns the running videos, each rank's own, with what they fit."""
        videos = [self.videos[places] for places in sorted(self.videos, key=lambda places: places.start)]
        state = {"number": videos[0].number if videos else self.first, "running": bool(videos)}
        if not videos or not self.config.save_videos:
            return state
        fits = self._fits(list(self.videos), videos[0].rollout.denoiser)
        return state | {"fits": fits, "films": [video.state_dict() for video in videos]}

    def load_state_dict(self, state: dict, shares: list[range], roles) -> None:
        """Goes on with the saved videos, to the bit on the same machine.

        On another number of ranks or with other knobs they begin anew.
        """
        self.videos, self.first = {}, state.get("number", 0)
        saved = state.get("films", [])
        if saved and saved[0]["rows"] is None:
            why = "the checkpoint is of another number of ranks"
        elif saved and update_fits(state["fits"]) != self._fits(shares, roles.generator):
            why = "knobs of the source, its prompts or the shares of the batch have changed"
        else:
            why = "the checkpoint does not hold them"
            for places, saved_video in zip(shares, saved, strict=True) if saved else ():
                saved_rows = saved_video["rows"].tolist()
                self.videos[places] = self.video(
                    self.first, saved_video["max_frames"], saved_video["switch"], saved_rows, roles
                )
                self.videos[places].load_state_dict(saved_video)
        if state.get("running") and not self.videos:
            logger.warning("the running videos begin anew, with video %d of each place: %s", self.first, why)

    def _fits(self, shares: Sequence[range], generator) -> dict:
        """Returns what must be the same where videos go on: knobs, prompts, how batch and heads are shared."""
        lines = blake2b(repr(self.lines).encode(), digest_size=16).hexdigest()
        rows = [len(share) for share in shares]
        knobs = {"source": to_dict(self.config), "generation": to_dict(self.generation)}
        return {**knobs, "lines": lines, "rows": rows, "heads": generator.cache_heads}


def update_fits(fits: dict) -> dict:
    """Returns what a checkpoint's videos fit under the keys of today; knobs that are newer have their defaults."""
    old = {"generation": fits["generation"]} if "generation" in fits else {}
    tree = rename({"trainer": {"source": fits["source"]}, **old}, OLD_KEYS)
    source = fill(tree["trainer"]["source"], to_dict(StreamConfig()))
    return fits | {"source": source, "generation": fill(tree["generation"], to_dict(GenerationConfig()))}
