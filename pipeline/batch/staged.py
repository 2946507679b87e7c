"""A generation run whose ranks share every video: the first asks, all run their steps, the last decodes and writes.

All ranks read the requests. The first one says which batch comes next, as it goes from rank to rank behind the last
chunk of the batch before: no rank waits for the others between two batches. It holds the claims until all is written.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from pipeline.batch.listing import Batch, Batches
from pipeline.batch.plan import VideoPlan
from pipeline.batch.request import Request
from pipeline.batch.run import SHEET_CLIPS, Run, tell_refused
from pipeline.batch.schedule import dry_schedule
from pipeline.batch.survey import Survey, survey
from pipeline.batch.writer import VideoBatchWriter, noted, video_path
from pipeline.bundle import ModelBundle, load_bundle
from pipeline.config import InferConfig, TPPConfig
from pipeline.memory import check_memory
from pipeline.rollout import Chunk
from pipeline.tpp import Stages, TPPExecutor
from utils.log import VideoProgress
from utils.parallel import ranks
from utils.parallel.pipe import Message, Pipe, pipe_group
from wan.codec.still import PrimedDecoder


def run_staged(executor: TPPConfig, config: InferConfig, groups: Batches, refused: list[str] | None) -> list[Path]:
    """Generates what is not finished, all ranks together; returns the paths of the videos on the first rank.

    Errors: as `run`; ValueError for ranks that the steps cannot use, before any weight is read.
    """
    here, world = ranks.rank(), ranks.world_size()
    stages = Stages.plan(config.build_sampler().num_steps, world, executor.decoder_rank)
    group = pipe_group()
    found = survey(config, groups) if here == 0 else Survey()
    if ranks.first_text(None if here else str(found.wanted)) == "True":
        check_memory(config)
        bundle = load_stage(config, stages)
        bundle.weights_hash = ranks.first_text(bundle.weights_hash if here == 0 else None)
        made = StagedRun(config, bundle, stages, Pipe(range(world), bundle.device, group))
        usable = made.usable(groups, groups.numbers, refused)
        paths = made.lead(usable, found) if here == 0 else made.follow(usable)
    else:
        paths = [] if here else [video_path(r, config.output.folder) for r in groups.videos()]
    if here == 0:
        tell_refused(refused, len(paths), config.output.folder)
    return paths


def load_stage(config: InferConfig, stages: Stages) -> ModelBundle:
    """Returns what this rank needs of the model. `weights_hash` is the first rank's alone."""
    here = ranks.rank()
    roles = {"denoise"} if stages.steps(here) else set()
    roles |= {"text"} if here == 0 else set()
    roles |= {"decode"} if here == stages.world - 1 else set()
    return load_bundle(config.model, config.vae, config.text, config.decoder, roles)


class StagedRun(Run):
    """One rank's part of the batches. With `stopped` a video may end early, and one that the last rank cannot write
    (a full disk) is told by the first one, and ends no rank."""

    def __init__(self, config: InferConfig, bundle, stages: Stages, pipe: Pipe, progress=VideoProgress, stopped=None):
        super().__init__(config, bundle, progress, stopped)
        self.stages, self.pipe, self._failure = stages, pipe, ""
        self._claims = contextlib.ExitStack()

    def plan(self, request: Request) -> VideoPlan:
        """Returns the plan, whose pipeline runs this rank's steps."""
        plan = super().plan(request)
        if not isinstance(plan.pipeline.executor, TPPExecutor):
            plan.pipeline.executor = TPPExecutor.build(plan.pipeline.rollout, self.stages, self.pipe)
            plan.pipeline.rollout = plan.pipeline.executor.rollout
        return plan

    def lead(self, groups: Batches, found: Survey | None = None) -> list[Path]:
        """Makes all batches as the first rank, and waits until they are written; returns the videos' paths.

        Errors: ValueError for videos that the last rank could not write, where ranks outlive that.
        """
        with self._claims:
            try:
                paths = self.writer(groups, found)
            except (OSError, ValueError):
                if self.stopped is not None:
                    self._finish()
                raise
            if failure := self._finish():
                raise ValueError(failure)
        return paths

    def _finish(self) -> str:
        """Ends a run as the first rank; returns what the last one could not do, once it has written everything."""
        self.pipe.send(Message("stop"))
        while (message := self.pipe.receive(self.pipe.last)).kind != "written":
            pass  # the first latent of a video that ended before it was asked for
        self.pipe.flush()
        return message.facts["failure"]

    def claims(self, group: list[Request]) -> contextlib.AbstractContextManager[bool]:
        """As `Run.claims`; held until everything is written, for the batch is when this rank is done with it."""
        return contextlib.nullcontext(self._claims.enter_context(super().claims(group)))

    def sheet(self, videos: list[Request]) -> None:
        """Leaves the sheet to the rank that writes the videos."""
        if self.pipe.place == self.pipe.last:
            super().sheet(videos)

    def batch(self, group: Batch, wanted: list[bool], bar: VideoProgress) -> None:
        """Makes the first rank's part of one batch, and announces it to the others."""
        plan = self.plan(group[0])
        images = self.images(group)
        given, track = self.given(group, images, plan), self.track(group, plan)
        if group[0].avatar:
            track = self.voice(group, plan, track).track
            track.ask_first = lambda: self.pipe.receive(self.pipe.last).tensors["x"]
        self.pipe.send(Message("batch", {"number": group.number, "wanted": wanted}))
        state = plan.pipeline.start(len(group), plan.total, plan.given)
        made = plan.pipeline.generate(track, self.draws(group, plan), len(group), plan.total, given, state)
        for chunk in self.until_stopped(made):
            if not chunk.given:
                bar.chunk(plan.geometry.pixel_frames(chunk.span.stop) - plan.geometry.pixel_frames(chunk.span.start))

    @torch.no_grad()
    def follow(self, groups: Batches) -> list[Path]:
        """Does what the ranks before ask for, until the first one stops."""
        done = 0
        while (message := self.pipe.receive()).kind == "batch":
            group, wanted = groups.at(message.facts["number"]), message.facts["wanted"]
            if self.pipe.place < self.pipe.last:
                self.pipe.send(message)
            self.take_part(group, wanted)
            done += len(group)
        if self.pipe.place < self.pipe.last:
            self.pipe.send(message)
        else:
            if self.config.output.sheet and done:
                self.sheet(list(itertools.islice(groups.videos(), SHEET_CLIPS)))
            self.pipe.send(Message("written", {"failure": self._failure}), 0)
        self.pipe.flush()
        return []

    def take_part(self, group: list[Request], wanted: list[bool]) -> None:
        """Runs this rank's steps of one batch; the last rank writes the videos."""
        begin, plan = time.perf_counter(), self.plan(group[0])
        executor, lengths = plan.pipeline.executor, [len(span) for span in plan.spans]
        state = executor.start(len(group), max(lengths), plan.total)
        chunks = executor.run(state, None, (), self.draws(group, plan))
        if self.pipe.place < self.pipe.last:
            for _ in chunks:
                pass
            return
        spec, recaches, decoder, sounds = self.bundle.spec, list[float](), self.bundle.decoder, None
        if group[0].avatar:
            decoder = PrimedDecoder(decoder, plan.pipeline.still(self.portraits(group, plan)))
            sounds, chunks = [r.avatar.play() for r in group], self.send_first(chunks, plan)
        output, geometry, may_end = self.config.output, plan.geometry, self.stopped is not None
        writer = VideoBatchWriter(decoder, group, wanted, output, spec.fps, geometry, plan.total, sounds, may_end)
        try:
            writer.write(noted(chunks, recaches))
        except (OSError, ValueError) as error:
            if not may_end:
                raise
            self._failure = str(error)
            for _ in chunks:  # what is under way still comes
                pass
            return
        self.report(writer, plan, time.perf_counter() - begin, dry_schedule(plan.requested, plan.spans), recaches)

    def send_first(self, chunks: Iterable[Chunk], plan: VideoPlan) -> Iterator[Chunk]:
        """Yields the chunks; the video's first latent frame goes back to the first rank where that will ask for it."""
        number, total = plan.pipeline.generation.portrait.refresh, plan.num_chunks
        for chunk in chunks:
            if not chunk.span.start and 0 < number < total:
                self.pipe.send(Message("first", {}, {"x": chunk.latents[:, :1]}), 0)
            yield chunk
