"""Measures `evaluate.py lengths` and `evaluate.py switches`: digits videos at several lengths, and at prompt switches.

A video of fifty training lengths holds those of one, two, five ...: each length is measured in the window, as long as a
training clip, that ends there.
"""

from __future__ import annotations

import time
from pathlib import Path

from scripts.measure.markdown import table_head, table_row
from scripts.measure.report import GATED, cell, distance, save, signed_range


def lengths_arguments(parser):
    """Adds the flags of `lengths`."""
    parser.add_argument("--videos", type=Path, required=True, help="a folder of generated videos")
    parser.add_argument("--ends", type=int, nargs="+", required=True, help="pixel frames at which a window ends")
    parser.add_argument("--window", type=int, default=33, help="pixel frames of a window: those of a training clip")
    parser.add_argument("--prompts", type=Path, help="a file of the prompts to measure (default: all 240)")
    parser.add_argument("--partial", action="store_true", help="allow videos that leave prompts out")
    parser.add_argument("--output", type=Path, default=Path("outputs/lengths.json"))


def lengths(args) -> int:
    """Measures fidelity, motion and Frechet distance of long digits videos in windows along them."""
    from utils.digits.videos import load_windows, read_requested

    begin, ends = time.time(), sorted(set(args.ends))
    windows = load_windows(args.videos, ends, args.window, args.partial, read_requested(args.prompts))
    rows = window_rows(windows)
    facts = windows[ends[0]].facts
    result = {"window": args.window, "prompts": str(args.prompts or "all 240"), "rows": rows, "videos": facts}
    lines = table_head(["frames until", "clips", *GATED, "frechet", *(f"{m}: since the first window" for m in GATED)])
    for end, row in rows.items():
        cells = [cell(row["metrics"][m], True) for m in GATED] + [distance(row["frechet"]) if row["frechet"] else "-"]
        lines.append(table_row([end, row["clips"], *cells, *(signed_range(row["change"][m]) for m in GATED)]))
    save(args, result, [f"Windows of {args.window} frames along {args.videos}", "", *lines], begin)
    return 0


def window_rows(windows: dict) -> dict[str, dict]:
    """Returns {end: {clips, metrics, change, frechet, floor}} of {end: Videos}, whose videos are the same.

    change: metrics minus those of the first window, video by video. frechet and floor: None for windows of another
    length or size than the feature net takes.
    """
    from utils.digits.frechet import FrechetMeter
    from utils.digits.metrics import measure, summary

    rows, first = {}, None
    for end, videos in windows.items():
        meter = FrechetMeter()
        values = measure(meter.collect(videos.clips), videos.subjects)
        first = values if first is None else first
        change = {name: values[name] - first[name] for name in values}
        seen = meter.row(videos.subjects) or {"all": None, "floor": None}
        row = {"clips": len(videos.clips), "metrics": summary(values), "change": summary(change)}
        rows[str(end)] = row | {"frechet": seen["all"], "floor": seen["floor"]}
    return rows


def switches_arguments(parser):
    """Adds the flags of `switches`."""
    parser.add_argument(
        "--videos", type=Path, required=True, help="a folder of videos that were made of prompt schedules"
    )
    parser.add_argument("--scripts", type=Path, required=True, help="the schedule file; every line must be answered")
    parser.add_argument("--chunk", type=int, default=3, help="latent frames of a chunk")
    parser.add_argument("--partial", action="store_true", help="allow videos that leave schedules out")
    parser.add_argument("--output", type=Path, default=Path("outputs/switches.json"))


def switches(args) -> int:
    """Measures how digits videos answer a change of their prompt: chunks until it shows, and whether videos jump."""
    from utils.digits.switch import NUMBERS, summary
    from utils.digits.videos import find_scheduled

    begin = time.time()
    answers, facts = find_scheduled(args.videos, args.scripts, args.partial)
    rows = summary([video_responses(path, cues, args.chunk) for path, cues in answers])
    result = {"scripts": str(args.scripts), "chunk": args.chunk, "rows": rows, "videos": facts}
    lines = table_head(["changed", "switches", *NUMBERS, "share of frames that show it, chunk by chunk"])
    for name, row in rows.items():
        curve = " ".join(f"{share:.2f}" for share in row["curve"])
        lines.append(table_row([name, row["switches"], *(cell(row[n], True) for n in NUMBERS), curve]))
    save(args, result, [f"Prompt switches in {args.videos}", "", *lines], begin)
    return 0


def video_responses(path: Path, cues, chunk: int) -> list[dict]:
    """Returns what a video does at each change. cues: (subject, latent frame) of each prompt; chunk: latent frames.

    Errors: ValueError naming the video for a schedule whose changes cannot be kept apart or stand too close.
    """
    from utils.digits.switch import find_switches, respond
    from utils.media.video import read_video
    from wan.geometry import Geometry
    from wan.spec import SPECS

    geometry, clip = Geometry.of(SPECS["digits"]), read_video(path)[0]
    chunk_frames = geometry.pixel_frames(chunk + 1) - geometry.pixel_frames(1)
    try:
        pixel_cues = [(subject, geometry.pixel_frames(frame)) for subject, frame in cues]
        return [respond(clip, switch, chunk_frames) for switch in find_switches(pixel_cues, len(clip))]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
