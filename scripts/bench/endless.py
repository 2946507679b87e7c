"""What `scripts/benchmark.py endless` measures: whether the two-thousandth chunk of a video costs what the first did.

The video is a session's, as a live server runs it: rollout, streaming decode, pixels as uint8 on the host. Chunks are
numbered from 1 after the window is full. Two of them, far apart, are counted: operations and copied bytes in one,
allocations in the next; these four are not timed. Memory is what a tenth of the chunks between the counts held, by the
median: behind the first count, and before the second, for torch's profiler keeps some 35 MB each time it is used.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import numpy as np
import torch

from pipeline.bundle import ModelBundle
from pipeline.session import Session
from utils.counter import CopiedBytes, count_allocations
from utils.log import memory, progress
from utils.media.image import to_uint8
from utils.rng import Rng
from wan.geometry import Geometry

PROMPT = "a red three moves right"  # of the digits' grammar; every other model takes it too
COUNTED = 100  # number of the early chunk that is counted; the late one is as far from the end
LEAST_CHUNKS = 10  # of a video: fewer have no tenth
SLOWER, GROWTH, GROWTH_BYTES = 1.05, 0.01, 5e6  # limits: time, share of the memory, bytes


class EndlessVideo:
    """A session's video; `advance` makes its next chunk."""

    def __init__(self, config, bundle: ModelBundle):
        if bundle.text is None:  # random weights
            spec, rng = bundle.spec.transformer, Rng(config.seed, "text")
            bundle = replace(bundle, text=lambda prompts: rng.normal((len(prompts), spec.text_len, spec.text_dim)))
        geometry = Geometry.of(bundle.spec, config.height, config.width)
        self.session = Session(config.pipeline.build(config.generation, bundle, config.build_sampler(), geometry))
        self.session.start(PROMPT, config.seed, config.negative_prompt)
        self.device = bundle.device
        while self.session.next_frame < config.generation.cache.window_frames:
            self.advance()

    def advance(self) -> np.ndarray:
        """Returns the next chunk's pixels, uint8 [1, P, H, W, 3] on the host."""
        return to_uint8(self.session.step().pixels)

    def timed(self) -> tuple[float, float]:
        """Makes a chunk; returns its milliseconds by the clock, and those that this process had a processor."""
        begin, used = time.perf_counter(), time.process_time()
        self.advance()
        return 1e3 * (time.perf_counter() - begin), 1e3 * (time.process_time() - used)

    def counted(self) -> dict:
        """Makes a chunk; returns its operators and the bytes that they copied."""
        copies = CopiedBytes()
        with copies:
            self.advance()
        return {"operators": dict(sorted(copies.operators.items())), "bytes copied": copies.bytes.total()}


def measure(config, bundle: ModelBundle, chunks: int, runs: int) -> dict:
    """Returns what each of several videos cost from its beginning to its end, and whether that stayed within limits.

    Errors: ValueError for videos that are too short to compare anything.
    """
    if chunks < LEAST_CHUNKS:
        raise ValueError(f"--chunks is {chunks}; write {LEAST_CHUNKS} or more (the published measurement: 2000)")
    early = min(COUNTED, chunks // 3)
    with progress(total=chunks * runs, label="endless", unit="chunk") as bar:
        found = [measure_run(EndlessVideo(config, bundle), chunks, early, bar) for _ in range(runs)]
    frames = config.generation.chunk * chunks
    facts = {"measured": chunks, "latent frames": frames, "counted": [early, chunks - early], "runs": runs}
    return {"chunks": facts, "runs": found, "criteria": check_criteria(found)}


def measure_run(video: EndlessVideo, chunks: int, early: int, bar) -> dict:
    """Makes the chunks of one video; returns their times, the counts of two of them, memory early and at the end."""
    if video.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(video.device)  # a peak that was higher before would hide what grows
    times, counts, held, late = {}, {}, [], chunks - early
    for number in range(1, chunks + 1):
        if number in (early, late):
            counts[number] = video.counted()
        elif number - 1 in counts:
            counts[number - 1]["allocations"] = count_allocations(video.advance, video.device)[1]
        else:
            times[number] = video.timed()
            if early < number < late:
                held.append(memory())
        bar.update()
    clock, processor = (tenths({number: both[i] for number, both in times.items()}, chunks) for i in (0, 1))
    parts = min(10, len(held))
    return {
        "p95 ms per chunk": np.quantile([wall for wall, _ in times.values()], 0.95),
        "ms per chunk, median of each tenth": clock,
        "processor ms per chunk, median of each tenth": processor,
        "last tenth / first tenth": clock[-1] / clock[0],
        "last tenth / first tenth, processor": processor[-1] / processor[0],
        "early": counts[early],
        "late": counts[late],
        "memory, median of each tenth": [
            _middle(held[len(held) * part // parts : len(held) * (part + 1) // parts]) for part in range(parts)
        ],
    }


def tenths(times: dict[int, float], chunks: int) -> list[float]:
    """Returns the median of each tenth of the chunks; of one that holds none that was timed, the latest before it."""
    medians = []
    for part in range(10):
        end = chunks * (part + 1) // 10
        own = [value for number, value in times.items() if chunks * part // 10 < number <= end]
        medians.append(statistics.median(own) if own else times[max(number for number in times if number <= end)])
    return medians


def _middle(held: list[dict[str, int]]) -> dict[str, float]:
    return {kind: statistics.median(each[kind] for each in held) for kind in held[0]}


def check_criteria(runs: list[dict]) -> dict[str, dict]:
    """Returns criterion -> {measured, limit, met}. Time: of the best run; all else holds in every run."""
    best = min(run["last tenth / first tenth"] for run in runs)
    rows = {"last tenth / first tenth": {"measured": round(best, 4), "limit": f"<= {SLOWER}", "met": best <= SLOWER}}
    for what in ("operators", "bytes copied", "allocations"):
        same = all(run["early"][what] == run["late"][what] for run in runs)
        rows[what] = {"measured": "identical" if same else "different", "limit": "identical", "met": same}
    memories = [run["memory, median of each tenth"] for run in runs]
    for kind in memories[0][0]:
        held = [(parts[0][kind], parts[-1][kind]) for parts in memories]
        grown, share = max(b - a for a, b in held), max((b - a) / a for a, b in held)
        limit = f"< {GROWTH:.0%} and < {GROWTH_BYTES / 1e6:g} MB"
        met = share < GROWTH and grown < GROWTH_BYTES
        rows[f"{kind}, growth"] = {"measured": f"{grown / 1e6:.2f} MB ({share:.2%})", "limit": limit, "met": met}
    return rows


def passed(result: dict) -> bool:
    """Whether every criterion is met."""
    return all(row["met"] for row in result["criteria"].values())


def table(result: dict) -> list[str]:
    """Returns the markdown of one measurement."""
    from scripts.measure.markdown import table_head, table_row

    facts, runs = result["chunks"], result["runs"]
    lines = table_head(["criterion", "measured", "limit", ""])
    for name, row in result["criteria"].items():
        lines.append(table_row([name, row["measured"], row["limit"], "met" if row["met"] else "**not met**"]))
    kinds = list(runs[0]["memory, median of each tenth"][0])
    between = " to ".join(f"{number:,}" for number in facts["counted"])
    columns = [f"{kind}, chunks {between}: first / last tenth" for kind in kinds]
    cells = ["first tenth, ms", "last tenth, ms", "ratio", "of processor time", "p95 of all, ms"]
    lines += ["", *table_head(["run", *cells, *columns])]
    for number, run in enumerate(runs, 1):
        clock, held = run["ms per chunk, median of each tenth"], run["memory, median of each tenth"]
        times = [f"{ms:.1f}" for ms in (clock[0], clock[-1])]
        sizes = [" / ".join(f"{held[when][kind] / 1e6:,.1f} MB" for when in (0, -1)) for kind in kinds]
        ratios = [f"{run['last tenth / first tenth' + word]:.3f}" for word in ("", ", processor")]
        lines.append(table_row([number, *times, *ratios, f"{run['p95 ms per chunk']:.1f}", *sizes]))
    lines += ["", *table_head(["per chunk", "operators (kinds)", "bytes copied", "allocations", "bytes allocated"])]
    for number, name in zip(facts["counted"], ("early", "late"), strict=True):
        own = runs[0][name]
        requested, ran = own["allocations"], own["operators"]
        cells = [f"{sum(ran.values()):,} ({len(ran)})", own["bytes copied"], requested["number"], requested["bytes"]]
        lines.append(table_row([f"chunk {number:,}", cells[0], *(f"{cell:,}" for cell in cells[1:])]))
    note = f"{facts['measured']:,} chunks ({facts['latent frames']:,} latent frames) a run, after the window was full"
    return [*lines, "", f"{note}; runs: {facts['runs']}; {result['date']}, {result['seconds'] / 60:.0f} min"]
