"""Makes the jobs of a service with one loaded model, by the code of the command line: one process, or all ranks.

The first rank takes the jobs and tells the others over gloo, which may wait for days. One process outlives every job
that fails; ranks outlive what a user can mend, and end together at any other fault.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import torch

from pipeline.batch.listing import Batches
from pipeline.batch.request import check_avatars, check_words, read_requests
from pipeline.batch.run import Run
from pipeline.batch.staged import StagedRun, load_stage
from pipeline.batch.writer import video_path
from pipeline.bundle import ModelBundle, load_bundle
from pipeline.config import AudioDrivenConfig, InferConfig, TPPConfig, load_recipe
from pipeline.memory import advised, check_memory
from pipeline.service.controls import Controls
from pipeline.service.jobs import Job, Jobs
from pipeline.tpp import Stages
from pipeline.trained import fetch
from utils import hub
from utils.config.text import format_value
from utils.door import explain
from utils.log import VideoProgress
from utils.parallel import ranks
from utils.parallel.pipe import Message, Pipe, pipe_group
from wan.checkpoint import tensor_file
from wan.checkpoint.lora import lora_file

logger = logging.getLogger(__name__)
ALWAYS = ("output.sheet=false", "output.save_every_seconds=0", "output.resume=false", "num_samples=1", "batch=1")


class JobFailed(RuntimeError):
    """What a user is told of a job that failed; the error itself is its cause. fault: of the program."""

    def __init__(self, text: str | None):
        super().__init__(text or "a fault of the program; its log tells more")
        self.fault = text is None


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turns whatever goes wrong with a job into a `JobFailed`."""
    try:
        yield
    except Exception as error:
        raise JobFailed(explain(error)) from error


class JobProgress(VideoProgress):
    """Counts the chunks of a job where its user sees them."""

    def __init__(self, job: Job, num_videos: int, num_chunks: int):
        super().__init__(num_videos, num_chunks)
        self.job = job
        job.num_chunks = num_chunks

    def chunk(self, num_frames: int) -> None:
        """As in `VideoProgress`."""
        super().chunk(num_frames)
        self.job.chunks, self.job.frames = self.chunks, self.frames


class Worker:
    """One process that holds a whole model."""

    def __init__(self, recipe: str, overrides: list[str]):
        """recipe: a file of configs/infer/. Errors: ValueError for one that makes no talking videos."""
        self.recipe, self.given = recipe, list(overrides)
        self.config = self.read(())
        if not isinstance(self.config.pipeline, AudioDrivenConfig):
            raise ValueError(f"{recipe} makes no talking videos; take one with pipeline.name=audio_driven")
        self.bundle: ModelBundle | None = None
        self.model_name = ""
        self._loaded: tuple = ()
        tensor_file.verify_archives.set(self.config.verify_archives)
        if self.config.threads:
            torch.set_num_threads(self.config.threads)

    @staticmethod
    def build(recipe: str, overrides: list[str]) -> Worker:
        """Returns the worker of this process: with several ranks one that shares every video with the others.

        Errors: ValueError for several ranks and a recipe that cannot use them.
        """
        if ranks.world_size() == 1:
            return Worker(recipe, overrides)
        return StagedWorker(recipe, overrides)

    def read(self, overrides) -> InferConfig:
        """Returns the recipe's configuration with what a job changes. Errors: as `load_recipe`."""
        return load_recipe(self.recipe, [*self.given, *ALWAYS, *overrides])[0]

    def controls(self) -> Controls:
        """Returns what a page offers; the model must be loaded."""
        assert self.bundle is not None, "load() comes first"
        return Controls.of(self.config, self.bundle.spec.fps)

    def check(self, job: Job) -> None:
        """Gives a job its folder and raises ValueError for what can be seen to be wrong without the model."""
        folder = Path(self.config.output.folder) / f"{datetime.now():%Y%m%d_%H%M%S}_{job.id[:6]}"
        job.overrides = [*job.overrides, f"output.folder={format_value(str(folder))}"]
        config = self.read(job.overrides)
        if not job.loads_only:
            request = self.groups(config).at(0)[0]
            check_words(request.prompt, self.model_name)
            job.path = video_path(request, folder)

    def groups(self, config: InferConfig) -> Batches:
        """Returns the one batch of a job. Errors: ValueError for a portrait or a sound that cannot be used."""
        requests = read_requests(config.data, config.output, 1)
        check_avatars(requests, config.pipeline.size)
        return Batches.cut(requests, 1)

    def load(self, config: InferConfig | None = None) -> None:
        """Loads the model of a configuration (the recipe's), unless it is there already.

        The old one goes first, for two do not fit; where that fails, the next job loads. Errors: as `load_bundle`.
        """
        config = config or self.config
        wanted = (config.model, config.vae, config.text, config.decoder)
        if self.bundle is not None and wanted == self._loaded:
            return
        check_files(config)
        check_memory(config)
        self.bundle, self._loaded = None, ()
        free()
        with advised(config):
            self.bundle = self._load(config)
        self._loaded, self.model_name = wanted, self.bundle.spec.name

    def serve(self, jobs: Jobs) -> None:
        """Makes jobs as they come, until an interrupt."""
        while True:
            if (job := jobs.take(timeout=1.0)) is None:  # a wait without end could not be interrupted everywhere
                continue
            try:
                with told():
                    self.make(job, partial(jobs.should_stop, job))
            except JobFailed as failed:
                logger.warning("job %s failed: %s", job.id, failed, exc_info=failed.__cause__ if failed.fault else None)
                jobs.finish(job, str(failed))
                if not self.survives(failed.__cause__):
                    raise failed.__cause__ from None
            else:
                jobs.finish(job)
            free()

    def survives(self, error: BaseException | None) -> bool:
        """True if the next job can be made after this error."""
        return True

    def make(self, job: Job, stopped: Callable[[], bool]) -> None:
        """Makes one job. Errors: whatever is wrong with it."""
        config = self.read(job.overrides)
        self.load(config)
        if not job.loads_only:
            run = Run(config, self.bundle, partial(JobProgress, job), stopped)
            groups = self.groups(config)
            with advised(config):
                run.writer(run.usable(groups, groups.numbers, None))

    def _load(self, config: InferConfig) -> ModelBundle:
        return load_bundle(config.model, config.vae, config.text, config.decoder)


class StagedWorker(Worker):
    """One of several ranks, each of which runs its steps of every video (`pipeline/tpp.py`)."""

    def __init__(self, recipe: str, overrides: list[str]):
        super().__init__(recipe, overrides)
        if not isinstance(self.config.executor, TPPConfig):
            raise ValueError(f"{ranks.world_size()} ranks share a video only with executor.name=tpp; start one process")
        self._stages(self.config)
        self.group = pipe_group()
        self.told = False  # the others are at a job, and its end is theirs

    def make(self, job: Job, stopped: Callable[[], bool]) -> None:
        """Makes one job as the first rank. What a user can mend is found before the others hear of it."""
        self.told = False
        config = self.read(job.overrides)
        stages = self._stages(config)
        self.load(config)
        pipe, run, usable = self._pipe(), None, None
        if not job.loads_only:
            run = StagedRun(config, self.bundle, stages, pipe, partial(JobProgress, job), stopped)
            groups = self.groups(config)
            usable = run.usable(groups, groups.numbers, None)
        facts = {"overrides": list(job.overrides), "loads_only": job.loads_only, "hash": self.bundle.weights_hash}
        self.told = True
        pipe.send(Message("job", facts))
        if run is not None:
            run.lead(usable)
        pipe.flush()

    def survives(self, error: BaseException | None) -> bool:
        """True for what the other ranks have not heard of, or have ended too."""
        return not self.told or isinstance(error, OSError | ValueError)

    def follow(self) -> None:
        """Does what the first rank asks for, until it ends."""
        pipe = self._pipe()
        while True:
            message = pipe.receive()
            if pipe.place < pipe.last:
                pipe.send(message)
            config = self.read(message.facts["overrides"])
            self.load(config)
            self.bundle.weights_hash = message.facts["hash"]
            if not message.facts["loads_only"]:
                run = StagedRun(config, self.bundle, self._stages(config), pipe, stopped=lambda: False)
                groups = self.groups(config)
                run.follow(run.usable(groups, groups.numbers, None))
            pipe.flush()
            free()

    def _stages(self, config: InferConfig) -> Stages:
        return Stages.plan(config.num_steps, ranks.world_size(), config.executor.decoder_rank)

    def _pipe(self) -> Pipe:
        return Pipe(range(ranks.world_size()), self.bundle.device, self.group)

    def _load(self, config: InferConfig) -> ModelBundle:
        return load_stage(config, self._stages(config))


def check_files(config: InferConfig) -> None:
    """Raises ValueError for a model or a LoRA that is not there, while the one that is loaded is still in use."""
    paths = [entry.path for entry in config.model.loras]
    fetch([config.model.path, config.model.checkpoint, *paths])
    for path in paths:
        lora_file(hub.resolve(path))


def free() -> None:
    """Gives back what a job that is over, or a model that is replaced, still holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
