"""One generation run: requests in, files out. Ranks share the batches; nothing else depends on them."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline.batch.plan import VideoPlan, plan_video, read_latents, requested_length, select_rows
from pipeline.batch.request import KeyedNoise, Request, batches, check_grammar, read_requests
from pipeline.batch.resume import ResumeState, provenance, remove_stale, settings_hash, to_make, video_settings
from pipeline.batch.schedule import build_schedule, check_switches, switch_report
from pipeline.batch.start import image_pixels, video_pixels
from pipeline.batch.writer import SHEET_FRAMES, VideoBatchWriter, sidecar, video_path
from pipeline.bundle import ModelBundle, load_bundle
from pipeline.config import InferConfig
from pipeline.rollout import Chunk
from pipeline.track import PromptSchedule
from utils.digest import file_hash
from utils.log import VideoProgress
from utils.media.image import contact_sheet
from utils.media.video import read_strip
from utils.parallel import ranks
from utils.rng import Rng
from wan.condition import Condition
from wan.geometry import Geometry

logger = logging.getLogger(__name__)
SHEET_CLIPS = 16
MAKING = ("model", "pipeline", "sampler", "vae", "decoder", "text")  # sections that make a video what it is,
MAKING_KNOBS = {"output": ("fps", "crf"), "data": ("i2v", "noise", "initial_latents")}  # and knobs of the others


def run(config: InferConfig) -> list[Path]:
    """Generates every request that is not finished; returns the paths of this rank's videos.

    Errors: ValueError for bad input, before any video is begun; with `data.keep_going` one for the bad lines of a
    script when the other videos are done.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    suffix, refused = "ema" if config.model.use_ema else "", [] if config.data.keep_going else None
    requests = read_requests(config.data, config.output, config.num_samples, suffix, refused)  # before any weight
    for line in refused or ():
        logger.warning("left out: %s", line)
    groups = batches(requests, config.batch)
    mine = ranks.split(list(range(len(groups))))
    own, folder = [groups[number] for number in mine], config.output.folder
    videos = [request for group in own for request in group]
    for group in own:
        remove_stale(group, folder)
    wanted = [new for group in own for new in to_make(group, config.output)]
    report_finished([r for r, new in zip(videos, wanted, strict=True) if not new], len(videos), config)
    if not any(wanted):
        paths = [video_path(r, folder) for r in videos]
    else:
        made = Run(config, load_bundle(config.model, config.vae, config.text, config.decoder))
        paths = made.writer(made.usable(groups, mine, refused))
    if refused:
        lines = "\n".join(refused)
        raise ValueError(f"{len(paths)} videos are in {folder}; these lines of the script were left out:\n{lines}")
    return paths


def report_finished(there: list[Request], total: int, config: InferConfig) -> None:
    """Says how many videos are there already, and warns of those that were asked for in another way."""
    folder = config.output.folder
    for request in there:
        try:
            facts = json.loads(sidecar(request, folder).read_text(encoding="utf-8"))
            if not isinstance(facts, dict):
                raise ValueError(f"it holds {facts!r:.40}")
            texts = [switch["text"] for switch in facts.get("switches", ())]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{sidecar(request, folder)} is damaged ({error}); remove it") from error
        facts = {"prompt": None, "seed": None, "start": None} | facts
        now = {"prompt": request.prompt, "seed": get_seed(request, config)}
        now |= {"start": str(request.start) if request.start else None, "asked": requested_facts(request, config)}
        if request.script:
            facts["prompts"], now["prompts"] = texts, request.prompts
        if other := _changed(facts, now):
            name = video_path(request, folder)
            logger.warning("%s is kept though it was made with %s; --overwrite makes it anew", name, other)
    if there:
        logger.info("%d of %d videos are finished and are skipped", len(there), total)


class Run:
    """A configured model that turns batches of requests into files."""

    def __init__(self, config: InferConfig, bundle: ModelBundle):
        self.config, self.bundle = config, bundle
        self.sampler = config.sampler.build()
        self.rng = Rng(config.seed)
        self._plans: dict[tuple, VideoPlan] = {}
        self._content = functools.cache(file_hash)  # most files serve all batches
        self._start: tuple = ()  # (video, take, latents) of the latest batch: mostly one video serves all
        shape = Geometry.of(bundle.spec, config.height, config.width).latent_shape(1)[1:]
        self.noise = read_latents(config.data.noise, "noise", shape)
        self.initial = read_latents(config.data.initial_latents, "latents", shape)

    def usable(self, groups: list[list[Request]], mine: list[int], refused: list[str] | None) -> list[list[Request]]:
        """Returns my batches, by their numbers, after checking all; `refused` takes what is said of a script's lines.

        Errors: ValueError for what the model cannot do, before the first video is begun.
        """
        bad = set()
        for group in groups:
            for request in group:
                try:
                    self.check(request)
                except ValueError as error:
                    if refused is None or request.script is None:
                        raise
                    if request.script.line not in bad:
                        logger.warning("left out: %s", error)
                        refused.append(str(error))
                    bad.add(request.script.line)
        kept = [[r for r in group if not (r.script and r.script.line in bad)] for group in groups]
        if not any(kept):
            raise ValueError("\n".join(refused))
        own = [kept[number] for number in mine if kept[number]]
        for group in own:
            for request in group:
                self.images([request])
        return own

    def writer(self, groups: list[list[Request]]) -> list[Path]:
        """Writes the videos of all batches; a finished one is computed again only for another of its batch."""
        output, videos = self.config.output, [r for group in groups for r in group]
        strips: dict[str, np.ndarray] = {}
        with VideoProgress(len(videos), sum(self.take(group[0]).num_chunks for group in groups)) as bar:
            for group in groups:
                wanted = to_make(group, output)
                shown = self.batch(group, wanted, bar).shown if any(wanted) else {}
                for row, request in enumerate(group):
                    if row in shown:
                        if request in videos[:SHEET_CLIPS]:
                            strips[request.stem] = shown[row]
                        bar.video()
                    else:
                        bar.skip(0 if shown or row else self.take(request).num_chunks)
        if output.sheet and videos:
            self.sheet(videos[:SHEET_CLIPS], strips)
        return [video_path(r, output.folder) for r in videos]

    def check(self, request: Request) -> None:
        """Raises ValueError for prompts, a length, given noise or latents that do not make this video."""
        if self.bundle.joins_image and not request.image:
            name = self.bundle.spec.name
            raise ValueError(f"{name} starts from images: give --start_image, or --i2v and a folder as --data_path")
        if self.initial is not None and (request.image or request.video):
            raise ValueError(f"{request.script.where}: data.initial_latents are given too; drop one of the starts")
        check_grammar([request], self.bundle.spec.name)
        try:
            take = self.take(request)
            if request.script:  # a line's own picture; those of a folder are opened by the rank that needs them
                self.images([request])
        except ValueError as error:
            if request.script is None or str(error).startswith(request.script.where):
                raise
            raise ValueError(f"{request.script.where}: {error}") from error
        if request.script:
            check_switches(request.script, take.requested, take.spans)
        if self.noise is not None and self.noise.shape[1] < take.total:
            have = self.noise.shape[1]
            raise ValueError(
                f"{self.config.data.noise} has {have} latent frames and the videos {take.total}; ask for fewer"
            )
        for tensor, path in ((self.noise, self.config.data.noise), (self.initial, self.config.data.initial_latents)):
            select_rows(tensor, [request], path)
            if tensor is not None and tensor.shape[2:] != take.geometry.latent_shape(1)[1:]:
                raise ValueError(
                    f"{path} holds latents of another size than {take.geometry.height} x {take.geometry.width}"
                )

    def take(self, request: Request) -> VideoPlan:
        """Returns how the request's video, and all of its schedule, is made."""
        if request.schedule not in self._plans:
            given = 0 if self.initial is None else self.initial.shape[1]
            self._plans[request.schedule] = plan_video(request, self.config, self.bundle, self.sampler, given)
        return self._plans[request.schedule]

    def sheet(self, videos: list[Request], strips: dict[str, np.ndarray]) -> None:
        """Writes the contact sheet of this rank's first videos; finished ones are read back."""
        folder = Path(self.config.output.folder)
        clips = [
            strips[r.stem] if r.stem in strips else read_strip(video_path(r, folder), SHEET_FRAMES) for r in videos
        ]
        name = "contact_sheet.png" if ranks.world_size() == 1 else f"contact_sheet_{ranks.rank()}.png"
        contact_sheet(folder / name, clips, [", then ".join(r.prompts) for r in videos], num_frames=SHEET_FRAMES)

    def batch(self, group: list[Request], wanted: list[bool], bar) -> VideoBatchWriter:
        """Generates, decodes and writes one batch; returns what was written."""
        begin, take = time.perf_counter(), self.take(group[0])
        images, given = self.images(group), None
        track = self.track(group, take)
        if images is not None and self.bundle.joins_image:
            track = self.bundle.with_image(track, images, take.geometry.pixel_frames(take.total))
        else:
            given = self.given(group, images, take)
        noise = KeyedNoise(
            self.rng,
            group,
            take.geometry.latent_shape(1)[1:],
            self.bundle.dtype,
            select_rows(self.noise, group, "noise"),
        )
        output = self.config.output
        writer = VideoBatchWriter(
            self.bundle.decoder, group, wanted, output, self.bundle.spec.fps, take.geometry, take.total
        )
        facts = provenance(self.config, self.bundle.weights_hash, group, take.requested, take.total, self._content)
        resume_state = ResumeState(group, output.folder, facts)
        resumed = resume_state.go_on(writer, take, track) if output.resume else None
        if resumed is None:
            resume_state.remove()
            state, before = take.pipeline.start(len(group), take.total, take.given), {}
        else:
            state, before = resumed
            bar.passed(sum(span.stop <= writer.next_frame for span in take.pipeline.spans(take.total, take.given)))
        begin, recaches = begin - before.get("seconds", 0), before.get("recaches", [])

        def save() -> None:
            spent = {"seconds": time.perf_counter() - begin, "recaches": recaches}
            resume_state.write(state, writer, spent)

        chunks = take.pipeline.generate(track, noise, len(group), take.total, given, state)
        with resume_state:
            writer.write(_noted(chunks, recaches), bar.chunk, save)
        self.report(writer, take, time.perf_counter() - begin, track, recaches)
        resume_state.remove()
        return writer

    def report(
        self,
        writer: VideoBatchWriter,
        take: VideoPlan,
        seconds: float,
        track: Condition | PromptSchedule,
        recaches: list[float],
    ):
        """Writes the JSON beside each video; seconds: that it took."""
        # Decoding on a thread of its own takes no time of the loop.
        inline, group = writer.seconds if self.bundle.decoder.own_device is None else {}, writer.requests
        each = [{"seed": get_seed(r, self.config), "asked": requested_facts(r, self.config)} for r in group]
        for own, request in zip(each, group, strict=True):
            own |= {"start": str(request.start)} if request.start else {}
            own |= {"switches": switch_report(request.script, track, recaches)} if request.script else {}
        writer.sidecars(
            {
                "model": self.bundle.spec.name,
                "config_hash": settings_hash(self.config),
                "weights_hash": self.bundle.weights_hash,
                "latent_frames": take.total,
                "given_frames": take.given,
                "seconds": {
                    "total": seconds,
                    **writer.seconds,
                    "denoise": seconds - sum(inline.values()),
                },
            },
            each,
        )

    def track(self, group: list[Request], take: VideoPlan) -> Condition | PromptSchedule:
        """Returns the batch's condition, or the track of its scripts."""
        negatives = [get_negative_prompt(r, self.config) for r in group]
        negative = None if self.sampler.guidance == 1 else negatives[0] if len(set(negatives)) == 1 else negatives
        if group[0].script is None:
            return self.bundle.condition([r.prompt for r in group], negative)
        return build_schedule(
            [r.script for r in group], take.requested, lambda prompts: self.bundle.condition(prompts, negative)
        )

    def images(self, group: list[Request]) -> torch.Tensor | None:
        """Returns the start images [B, 3, H, W] in [-1, 1] of the batch, or None."""
        if not group[0].image:
            return None
        geometry, mode = self.take(group[0]).geometry, "stretch" if self.config.data.i2v else "crop"
        return torch.cat([image_pixels(r.image, geometry, mode) for r in group])

    def given(self, group: list[Request], images: torch.Tensor | None, take: VideoPlan) -> torch.Tensor | None:
        """Returns the clean latents [B, F, C, h, w] before the generated ones: given ones, or those of the starts."""
        if self.initial is not None:
            return select_rows(self.initial, group, "initial_latents")
        if video := group[0].video:  # one for all, or they would not be made together
            if self._start[:2] != (video, take):
                pixels, _ = video_pixels(video, take.pipeline, take.geometry, take.fps, take.given)
                self._start = (video, take, self.bundle.vae.encode(pixels[None].to(self.bundle.device)))
            return self._start[2].expand(len(group), -1, -1, -1, -1)
        return None if images is None else self.bundle.vae.encode(images[:, None].to(self.bundle.device))


def get_seed(request: Request, config: InferConfig) -> int:
    """Returns the seed of the request's noise: its script's own, or the run's."""
    own = request.script.seed if request.script else None
    return config.seed if own is None else own


def get_negative_prompt(request: Request, config: InferConfig) -> str:
    """Returns the request's negative prompt: its script's own, or the run's."""
    own = request.script.negative_prompt if request.script else None
    return config.negative_prompt if own is None else own


def requested_facts(request: Request, config: InferConfig) -> dict:
    """Returns what makes the video beside prompts, seed and start, as a plain tree for its JSON.

    As it is told, so that a later run can compare before any weight is read; without what changes no video: devices,
    formats, the folder.
    """
    script, tree = request.script, video_settings(config)
    knobs = {section: {name: tree[section][name] for name in names} for section, names in MAKING_KNOBS.items()}
    return {
        "length": str(requested_length(script, config)[1]),
        "ends": [str(cue.end) for cue in script.cues[:-1]] if script else [],
        "negative_prompt": get_negative_prompt(request, config),
        "height": (script and script.height) or config.height,
        "width": (script and script.width) or config.width,
        "start_seconds": request.start_seconds,
        "config": {name: tree[name] for name in MAKING} | knobs,
    }


def _changed(was, now, name: str = "") -> dict[str, object]:
    """Returns dotted name -> value then of what two plain trees both tell, and not alike."""
    if isinstance(was, dict) and isinstance(now, dict):
        parts = [_changed(was[key], now[key], f"{name}.{key}" if name else key) for key in now if key in was]
        return {key: value for part in parts for key, value in part.items()}
    return {} if was == now else {name: was}


def _noted(chunks: Iterable[Chunk], recaches: list[float]) -> Iterator[Chunk]:
    """Yields the chunks; notes the seconds of each recache."""
    for chunk in chunks:
        if chunk.recache_seconds is not None:
            recaches.append(chunk.recache_seconds)
        yield chunk
