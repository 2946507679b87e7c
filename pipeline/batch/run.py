"""One generation run: requests in, files out. Ranks share the batches; no file depends on how many there are."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch

from pipeline.batch.listing import Batch, Batches, Requests
from pipeline.batch.plan import VideoPlan, plan_video, read_latents, select_rows
from pipeline.batch.provenance import (
    batch_facts,
    get_negative_prompt,
    model_facts,
    resume_facts,
    video_facts,
)
from pipeline.batch.request import (
    KeyedNoise,
    Request,
    check_avatars,
    check_grammar,
    check_words,
    prompt_places,
    read_requests,
    warn_unused_negatives,
)
from pipeline.batch.resume import ResumeState, snapshot_path, to_make
from pipeline.batch.schedule import build_schedule, check_switches
from pipeline.batch.start import image_pixels, speaker_masks, video_pixels
from pipeline.batch.survey import LOOKED_AT, Kept, Survey, report, survey
from pipeline.batch.writer import VideoBatchWriter, finished, noted, sidecar, video_path, write_sheet
from pipeline.bundle import ModelBundle, load_bundle
from pipeline.config import AudioDrivenConfig, InferConfig, TPPConfig
from pipeline.memory import advised, check_memory
from pipeline.rollout import Chunk
from pipeline.track import PromptSchedule
from utils.claims import claimed
from utils.data.prompts import warn_cut
from utils.digest import known_hash
from utils.log import VideoProgress
from utils.parallel import ranks
from utils.rng import Rng
from wan.checkpoint import tensor_file
from wan.condition import Condition
from wan.geometry import Geometry

logger = logging.getLogger(__name__)
SHEET_CLIPS = 16
NAMED = 5  # videos in one line of the log


def run(config: InferConfig) -> list[Path]:
    """Generates every request that is not finished; returns the paths of this rank's videos.

    Errors: ValueError for bad input, before any video is begun; with `data.keep_going`, for the bad lines of a prompt
    schedule after all other videos are finished.
    """
    tensor_file.verify_archives.set(config.verify_archives)
    if config.threads:
        torch.set_num_threads(config.threads)
    suffix = "ema" if config.model.use_ema else ""
    refused: list[str] | None = [] if config.data.keep_going else None
    requests = read_requests(config.data, config.output, config.num_samples, suffix, refused)  # before any weight
    for line in refused or ():
        logger.warning("left out: %s", line)
    if isinstance(config.pipeline, AudioDrivenConfig):
        check_avatars(requests, config.pipeline.size)
    warn_unused_negatives(requests, config.negative_prompt, config.build_sampler().guidance)
    groups = Batches.cut(requests, config.batch)
    if isinstance(config.executor, TPPConfig) and ranks.world_size() > 1:
        return config.executor.build(config, groups, refused)
    own, folder = groups.choose(ranks.split(groups.numbers)), config.output.folder
    found = survey(config, own)
    if not found.wanted:
        paths = [video_path(r, folder) for r in own.videos()]
    else:
        check_memory(config)
        with advised(config):
            made = Run(config, load_bundle(config.model, config.vae, config.text, config.decoder))
            paths = made.writer(made.usable(groups, own.numbers, refused), found)
    tell_refused(refused, len(paths), folder)
    return paths


def tell_refused(refused: list[str] | None, count: int, folder: str) -> None:
    """Raises ValueError with the lines of a prompt schedule that were left out, if there are any."""
    if refused:
        lines = "\n".join(refused)
        raise ValueError(f"{count} videos are in {folder}; these lines of the script were left out:\n{lines}")


class Run:
    """Turns batches of requests into files with one loaded model."""

    def __init__(self, config: InferConfig, bundle: ModelBundle, progress=VideoProgress, stopped=None):
        """progress: makes what counts chunks. stopped: asked after each chunk if the video ends there; None: no."""
        self.config, self.bundle, self.progress, self.stopped = config, bundle, progress, stopped
        self.sampler = config.build_sampler()
        self.rng = Rng(config.seed)
        self._plans: dict[tuple, VideoPlan] = {}
        self._content = functools.cache(known_hash)  # most files are used by every batch
        self._model = functools.cache(lambda: model_facts(bundle))  # reads all weights: for snapshots alone
        self._before: dict[str, object] = {}
        self._kept, self._told = Kept(config), sys.maxsize  # the last batch whose prompts were looked at beforehand
        self._start: tuple = ()  # (video, plan, latents) of the latest batch: often one video is the start of all
        shape = Geometry.of(bundle.spec, config.height, config.width).latent_shape(1)[1:]
        self.noise = read_latents(config.data.noise, "noise", shape)
        self.initial = read_latents(config.data.initial_latents, "latents", shape)

    def usable(self, groups: Batches, mine: Sequence[int], refused: list[str] | None) -> Batches:
        """Checks all batches and returns those of this rank. mine: their numbers.

        refused: collects the errors of a prompt schedule's lines, which are then left out; None raises them.
        Errors: ValueError for a request that the model cannot fulfil, before the first video is begun.
        """
        bad, requests = set(), groups.requests
        assert isinstance(requests, Requests)
        for request in [requests[0], requests[-1]] if requests.uniform else requests.each_line():
            try:
                self.check(request)
            except ValueError as error:
                if refused is None or request.script is None:
                    raise
                logger.warning("left out: %s", error)
                refused.append(str(error))
                bad.add(request.script.line)
        for prompt in dict.fromkeys(line.prompt for line in requests.lines if requests.uniform):
            check_words(prompt, self.bundle.spec.name)
        own = groups.choose(mine)
        if bad:
            own = own.without(bad)
            if len(bad) == len(requests.lines):
                raise ValueError("\n".join(refused))
        if requests[0].image or not requests.uniform:
            for request in own.videos():
                self.images([request])
        now = own.choose(own.numbers[:LOOKED_AT])  # of a million, each takes its time to be cut into tokens
        self._told = now.numbers[-1] if len(now) else 0
        self.warn_cut(now.videos(), "" if self.sampler.guidance == 1 else self.config.negative_prompt)
        return own

    def warn_cut(self, requests: Iterable[Request], negative: str = "") -> None:
        """Warns of prompts of which the text encoder does not read all."""
        find = getattr(self.bundle.text, "find_cut", None)
        if find:
            warn_cut(prompt_places(requests, self.config.data, negative), find, self.bundle.spec.transformer.text_len)

    def writer(self, groups: Batches, found: Survey | None = None) -> list[Path]:
        """Writes the videos of all batches; returns their paths.

        A finished video is computed again only where another one of its batch is not finished.
        found: of these batches, from `survey`; None: nothing is known of them.
        """
        output, folder = self.config.output, self.config.output.folder
        replaces = output.overwrite or output.resume  # of finished videos nothing is made otherwise
        before = {r.stem: _stamp(sidecar(r, folder)) for r in groups.videos()} if replaces else {}
        self._before, found = before, found or Survey()
        chunks = sum(self.plan(first).num_chunks * count for first, count in groups.schedules())
        with self.progress(groups.num_videos, chunks) as bar:
            left = [group.number for group in found.order(groups) if not self.share(group, bar, found)]
            left = [number for number in left if not self.share(groups.at(number), bar)]  # meanwhile they may be free
        busy = set(left)
        done = groups.choose(number for number in groups.numbers if number not in busy)
        if left:
            names = [r.stem for r in groups.choose(left[:NAMED]).videos()]
            others = ", ..." if groups.choose(left).num_videos > NAMED else ""
            logger.warning(
                "%d of %d videos are left to another run that is making them: %s%s",
                *(groups.choose(left).num_videos, groups.num_videos, ", ".join(names[:NAMED]), others),
            )
        if output.sheet and done:
            self.sheet(list(itertools.islice(groups.videos(), SHEET_CLIPS)))
        return [video_path(r, folder) for r in done.videos()]

    def share(self, group: Batch, bar: VideoProgress, found: Survey | None = None) -> bool:
        """Makes what is not finished of a batch; returns False, and makes nothing, if another run is at one of them.

        What another run has finished since this one began is not made again.
        """
        late = found is not None and found.is_late(group.number)
        wanted = report(group, self.config, self._kept) if late else to_make(group, self.config.output)
        with self.claims(group) if any(wanted) else contextlib.nullcontext(True) as mine:
            if not mine:
                return False
            if any(wanted):  # it may have been made before it was claimed
                wanted = [
                    new and not self.is_fresh(r)
                    for r, new in zip(group, to_make(group, self.config.output), strict=True)
                ]
            if any(wanted):
                if group.number > self._told:
                    self.warn_cut(group)
                self.batch(group, wanted, bar)
        for row, made in enumerate(wanted):
            if made:
                bar.video()
            else:
                bar.skip(0 if any(wanted) or row else self.plan(group[0]).num_chunks)
        return True

    def is_fresh(self, request: Request) -> bool:
        """True if another run has finished the video since this one began."""
        folder = self.config.output.folder
        if request.stem not in self._before:
            return False
        return _stamp(sidecar(request, folder)) != self._before[request.stem] and finished(request, folder)

    def claims(self, group: list[Request]) -> contextlib.AbstractContextManager[bool]:
        """Returns the context that claims the videos of a batch for this process (`utils.claims`)."""
        return claimed([video_path(r, self.config.output.folder) for r in group])

    def check(self, request: Request) -> None:
        """Raises ValueError if prompts, length, given noise or latents do not fit the model or one another."""
        if self.bundle.joins_image and not request.image:
            name = self.bundle.spec.name
            raise ValueError(f"{name} starts from images: give --start_image, or --i2v and a folder as --data_path")
        if self.initial is not None and (request.image or request.video):
            raise ValueError(f"{request.script.where}: data.initial_latents are given too; drop one of the starts")
        check_grammar([request], self.bundle.spec.name)
        try:
            plan = self.plan(request)
            if request.script:  # a line's own image; those of a folder are opened by the rank that needs them
                self.images([request])
        except ValueError as error:
            if request.script is None or str(error).startswith(request.script.where):
                raise
            raise ValueError(f"{request.script.where}: {error}") from error
        if request.script:
            check_switches(request.script, plan.requested, plan.spans)
        if self.noise is not None and self.noise.shape[1] < plan.total:
            have = self.noise.shape[1]
            raise ValueError(
                f"{self.config.data.noise} has {have} latent frames and the videos {plan.total}; ask for fewer"
            )
        for tensor, path in ((self.noise, self.config.data.noise), (self.initial, self.config.data.initial_latents)):
            select_rows(tensor, [request], path)
            if tensor is not None and tensor.shape[2:] != plan.geometry.latent_shape(1)[1:]:
                raise ValueError(
                    f"{path} holds latents of another size than {plan.geometry.height} x {plan.geometry.width}"
                )

    def plan(self, request: Request) -> VideoPlan:
        """Returns the plan of the request's video, and of all that share its schedule."""
        if request.schedule not in self._plans:
            given = 0 if self.initial is None else self.initial.shape[1]
            self._plans[request.schedule] = plan_video(request, self.config, self.bundle, self.sampler, given)
        return self._plans[request.schedule]

    def sheet(self, videos: list[Request]) -> None:
        """Writes the contact sheet of the finished ones of this rank's first videos."""
        folder = Path(self.config.output.folder)
        alone = ranks.world_size() == 1 or isinstance(self.config.executor, TPPConfig)
        path = folder / ("contact_sheet.png" if alone else f"contact_sheet_{ranks.rank()}.png")
        with claimed([path], wait=True):  # the run that ends last writes the last sheet
            if there := [r for r in videos if finished(r, folder)]:
                write_sheet(path, there, folder)

    def batch(self, group: Batch, wanted: list[bool], bar) -> VideoBatchWriter:
        """Generates, decodes and writes one batch; returns its writer."""
        begin, plan = time.perf_counter(), self.plan(group[0])
        images, given = self.images(group), None
        track, decoder, sounds = self.track(group, plan), self.bundle.decoder, None
        if group[0].avatar:
            voice = self.voice(group, plan, track)
            track, decoder, sounds = voice.track, voice.decoder, [r.avatar.play() for r in group]
        elif images is not None and self.bundle.joins_image:
            track = self.bundle.with_image(track, images, plan.geometry.pixel_frames(plan.total))
        else:
            given = self.given(group, images, plan)
        noise, output, fps = self.draws(group, plan), self.config.output, self.bundle.spec.fps
        may_end = self.stopped is not None
        writer = VideoBatchWriter(decoder, group, wanted, output, fps, plan.geometry, plan.total, sounds, may_end)
        needed = writer.may_save or (output.resume and snapshot_path(group, output.folder).is_file())
        resume_state = ResumeState(group, output.folder, self.facts(group, plan) if needed else {})
        resumed = resume_state.resume(writer, plan, track) if output.resume else None
        before: dict = {}
        if resumed is None:
            resume_state.remove()
            state = plan.pipeline.start(len(group), plan.total, plan.given)
        else:
            state, before = resumed
            bar.passed(sum(span.stop <= writer.next_frame for span in plan.pipeline.spans(plan.total, plan.given)))
        begin, recaches = begin - before.get("seconds", 0), before.get("recaches", [])

        def save() -> None:
            spent = {"seconds": time.perf_counter() - begin, "recaches": recaches}
            resume_state.write(state, writer, spent)

        chunks = self.until_stopped(plan.pipeline.generate(track, noise, len(group), plan.total, given, state))
        with resume_state:
            writer.write(noted(chunks, recaches), bar.chunk, save)
        self.report(writer, plan, time.perf_counter() - begin, track, recaches)
        resume_state.remove()
        return writer

    def until_stopped(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Yields the chunks, at least one, and leaves the video there when it is stopped."""
        with contextlib.closing(cast(Generator[Chunk, None, None], chunks)):
            for chunk in chunks:
                yield chunk
                if self.stopped and self.stopped():
                    return

    def draws(self, group: list[Request], plan: VideoPlan) -> KeyedNoise:
        """Returns the noise of a batch."""
        given = select_rows(self.noise, group, "noise")
        return KeyedNoise(self.rng, group, plan.geometry.latent_shape(1)[1:], self.bundle.dtype, given)

    def facts(self, group: list[Request], plan: VideoPlan) -> dict:
        """Returns what a snapshot of the batch must have in common with the run that goes on from it."""
        weights = self.bundle.weights_hash
        return resume_facts(self.config, weights, group, plan.requested, plan.total, self._content, self._model())

    def report(
        self,
        writer: VideoBatchWriter,
        plan: VideoPlan,
        seconds: float,
        track: Condition | PromptSchedule,
        recaches: list[float],
    ):
        """Writes the sidecar of each video. seconds: wall clock of the batch; recaches: of each recache."""
        # Decoding on a thread of its own takes no time of the loop.
        inline = writer.seconds if self.bundle.decoder.own_device is None else {}
        spent = {"total": seconds, **writer.seconds, "denoise": seconds - sum(inline.values())}
        each = [video_facts(request, self.config, track, recaches) for request in writer.requests]
        writer.sidecars(batch_facts(self.config, self.bundle, plan, spent), each)

    def track(self, group: list[Request], plan: VideoPlan) -> Condition | PromptSchedule:
        """Returns the batch's condition, or the track of its prompt schedules."""
        negatives = [get_negative_prompt(r, self.config) for r in group]
        negative = None if self.sampler.guidance == 1 else negatives[0] if len(set(negatives)) == 1 else negatives
        if group[0].script is None:
            return self.bundle.condition([r.prompt for r in group], negative)
        return build_schedule(
            [r.script for r in group], plan.requested, lambda prompts: self.bundle.condition(prompts, negative)
        )

    def images(self, group: list[Request]) -> torch.Tensor | None:
        """Returns the start images [B, 3, H, W] in [-1, 1] of the batch, or None."""
        if not group[0].image:
            return None
        geometry, mode = self.plan(group[0]).geometry, "stretch" if self.config.data.i2v else "crop"
        return torch.cat([image_pixels(r.image, geometry, mode) for r in group])

    def portraits(self, group: list[Request], plan: VideoPlan) -> torch.Tensor:
        """Returns the portraits [B, 3, H, W] of talking videos."""
        return torch.cat([image_pixels(r.avatar.image, plan.geometry) for r in group])

    def voice(self, group: list[Request], plan: VideoPlan, track):
        """Returns track and decoder of talking videos."""
        portraits = self.portraits(group, plan)
        masks = speaker_masks(group[0].avatar, plan.geometry)
        masks = None if masks is None else masks.expand(len(group), -1, -1, -1)
        sounds, pose = [r.avatar.open() for r in group], group[0].avatar.pose
        return plan.pipeline.voice(track, portraits, sounds, plan.fps, masks, pose)

    def given(self, group: list[Request], images: torch.Tensor | None, plan: VideoPlan) -> torch.Tensor | None:
        """Returns the conditioning latents [B, F, C, h, w], given or encoded from the starts, or None."""
        if self.initial is not None:
            return select_rows(self.initial, group, "initial_latents")
        if video := group[0].video:  # the same for the whole batch, since batches share their schedule
            if self._start[:2] != (video, plan):
                pixels, _ = video_pixels(video, plan.pipeline, plan.geometry, plan.fps, plan.given)
                self._start = (video, plan, self.bundle.vae.encode(pixels[None].to(self.bundle.device)))
            return self._start[2].expand(len(group), -1, -1, -1, -1)
        return None if images is None else self.bundle.vae.encode(images[:, None].to(self.bundle.device))


def _stamp(path: Path) -> object:
    """Returns what tells a file from one that replaced it, or None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
