"""What `scripts/benchmark.py tpp` measures: the stages of a generation whose ranks share every video.

Timed is the run that generates (`pipeline/batch/staged.py`), with a chain that notes how long each rank waits for its
neighbours. What is left of a rank's time per chunk is its stage; the video then comes at frames / max(stage), and a
sound is seen after its chunk is full, the look-ahead, and all stages once.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace

from pipeline.batch.listing import Batches
from pipeline.batch.request import read_requests
from pipeline.batch.run import check_avatars
from pipeline.batch.staged import StagedRun, load_stage
from pipeline.config import AudioDrivenConfig, InferConfig, TPPConfig
from pipeline.tpp import Stages, TPPExecutor
from scripts.measure.markdown import table_head, table_row
from utils.log import VideoProgress
from utils.parallel import ranks
from utils.parallel.pipe import Message, Pipe, pipe_group


class TimedPipe(Pipe):
    """A chain that adds up how long it waited to receive and to send."""

    waited = 0.0

    def receive(self, place: int | None = None) -> Message:
        """As `Pipe.receive`."""
        begin = time.perf_counter()
        message = super().receive(place)
        self.waited += time.perf_counter() - begin
        return message

    def send(self, message: Message, place: int | None = None) -> None:
        """As `Pipe.send`; it waits while the next rank is busy with two messages."""
        begin = time.perf_counter()
        super().send(message, place)
        self.waited += time.perf_counter() - begin


@dataclass(frozen=True)
class MarkingExecutor(TPPExecutor):
    """Notes of each chunk when this rank was done with it, and how long it had waited until then."""

    marks: list[tuple[float, float]] = field(default_factory=list)

    def run(self, state, track, spans, noise, given=()):
        """As `TPPExecutor.run`."""
        for chunk in super().run(state, track, spans, noise, given):
            yield chunk  # the last rank decodes and writes here
            self.marks.append((time.perf_counter(), self.pipe.waited))


class TimedRun(StagedRun):
    """A run whose executor notes its chunks in `marks`."""

    def plan(self, request):
        """As `StagedRun.plan`."""
        plan = super().plan(request)
        if not isinstance(plan.pipeline.executor, MarkingExecutor):
            plan.pipeline.executor = MarkingExecutor(**vars(plan.pipeline.executor))
        self.marks = plan.pipeline.executor.marks
        return plan


def check(config: InferConfig) -> None:
    """Raises ValueError for a recipe or a start without ranks that share a video, or without a portrait and a sound."""
    if not isinstance(config.executor, TPPConfig) or not isinstance(config.pipeline, AudioDrivenConfig):
        raise ValueError("tpp measures ranks that share a talking video; take configs/infer/*_avatar_tpp.yaml")
    if ranks.world_size() == 1:
        raise ValueError("tpp needs ranks: torchrun --standalone --nproc_per_node=3 scripts/benchmark.py tpp ...")
    if not (config.data.image and config.data.audio):
        raise ValueError("tpp needs a portrait and a sound: write data.image=FILE data.audio=FILE data.prompt=...")


def measure(config: InferConfig, warmup: int) -> dict:
    """Returns the stages of all ranks, the rate that they allow and the measured one, and the latency.

    All ranks call it. warmup: chunks that do not count. Errors: ValueError for a video without more chunks.
    """
    here, world = ranks.rank(), ranks.world_size()
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, output=replace(config.output, folder=folder, sheet=False, save_every_seconds=0.0))
        requests = read_requests(config.data, config.output, 1, "", None)
        check_avatars(requests)
        stages = Stages.plan(config.build_sampler().num_steps, world, config.executor.decoder_rank)
        group, groups = pipe_group(), Batches.cut(requests, 1)
        bundle = load_stage(config, stages)
        bundle.weights_hash = ranks.first_text(bundle.weights_hash if here == 0 else None)
        pipe = TimedPipe(range(world), bundle.device, group)
        run = TimedRun(config, bundle, stages, pipe, VideoProgress)
        plan = run.plan(groups.at(0)[0])
        if plan.num_chunks < warmup + 2:
            raise ValueError(f"the sound lasts {plan.num_chunks} chunks and {warmup} do not count; take a longer one")
        run.lead(groups) if here == 0 else run.follow(groups)
        own = stage(run.marks[warmup:])
    text = f"{own['period']} {own['busy']}"
    found = [ranks.first_text(text if here == place else None) for place in range(world)]
    periods, busy = zip(*([float(word) for word in text.split()] for text in found), strict=True)
    frames, fps = bundle.spec.strides[0] * config.generation.chunk, bundle.spec.fps
    latency = {"chunk": frames / fps, "look-ahead": config.pipeline.audio.look_ahead, "stages": sum(busy)}
    return {
        "steps": [list(stages.steps(place)) for place in range(world)],
        "decoder": world - 1,
        "frames": frames,
        "stages": list(busy),
        "bubble": [1 - b / max(periods) for b in busy],
        "fps": {"predicted": frames / max(busy), "measured": frames / periods[-1], "wanted": fps},
        "latency": {**latency, "total": sum(latency.values())},
        "chunks": len(run.marks) - warmup,
    }


def stage(marks: list[tuple[float, float]]) -> dict[str, float]:
    """Returns the seconds from chunk to chunk, and of them those in which the rank did not wait: medians."""
    pairs = list(zip(marks, marks[1:], strict=False))
    busy = [(b[0] - a[0]) - (b[1] - a[1]) for a, b in pairs]
    period = (marks[-1][0] - marks[0][0]) / len(pairs)
    return {"period": period, "busy": statistics.median(busy)}


def table(result: dict) -> list[str]:
    """Returns the result as markdown."""
    lines = table_head(["rank", "steps", "stage", "bubble"])
    for place, steps in enumerate(result["steps"]):
        holds = ", ".join(map(str, steps)) + (" and decoder" if steps and place == result["decoder"] else "")
        seconds, bubble = result["stages"][place], result["bubble"][place]
        lines.append(table_row([place, holds or "decoder", f"{1e3 * seconds:.0f} ms", f"{bubble:.0%}"]))
    fps, latency = result["fps"], result["latency"]
    parts = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in latency.items() if name != "total")
    return [
        *lines,
        "",
        f"{fps['measured']:.2f} frames a second measured, {fps['predicted']:.2f} = frames / max(stage); real time is "
        f"{fps['wanted']}. From a sound to its first frame: {1e3 * latency['total']:.0f} ms ({parts}).",
    ]
