"""Measures `evaluate.py avatar`: talking videos by SyncNet, identity to their portrait, drift, and a recorded truth."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

from scripts.measure.markdown import table_head, table_row
from scripts.measure.report import save

DIGITS = {"sync_c": 2, "sync_d": 2, "offset": 0, "identity": 3, "psnr": 2, "ssim": 4}  # behind the point; else 1
TITLES = {"sync_c": "Sync-C", "sync_d": "Sync-D", "psnr": "PSNR", "ssim": "SSIM"}
DRIFTING = ("sync_c", "identity", "sharpness", "flicker", "brightness", "saturation")
MOST_LINES = 10  # of a plot; of more videos the mean alone is drawn
WARNING = "random weights: these numbers test the code and say nothing about the videos"


def avatar_arguments(parser):
    """Adds the flags of `avatar`."""
    parser.add_argument("--videos", type=Path, nargs="+", required=True, help="talking videos, or folders of them")
    parser.add_argument(
        "--sample_list", type=Path, help="JSON or YAML {name: {prompt, image, audio, face, truth}}, or our JSONL"
    )
    parser.add_argument("--partial", action="store_true", help="allow samples without a video")
    parser.add_argument("--image", type=Path, help="the portrait of all videos")
    parser.add_argument("--truth", type=Path, help="a recorded video, or a folder with videos of the same names")
    parser.add_argument(
        "--face", type=float, nargs=4, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"), help="box in the videos' pixels"
    )
    parser.add_argument("--syncnet", default="", help="your syncnet_v2.model; `random` tests the code")
    parser.add_argument("--identity", default="", help="folder of your CLIP or DINO; `random` tests the code")
    parser.add_argument(
        "--window", type=float, default=5.0, help="seconds measured together; published are the first 5"
    )
    parser.add_argument("--every", type=float, default=0.5, help="seconds between pictures compared with the portrait")
    parser.add_argument("--seconds", type=float, default=0.0, help="measure the first SECONDS alone (0: all)")
    parser.add_argument("--output", type=Path, default=Path("outputs/avatar.json"), help="JSON; .md, .csv and .png too")


def avatar(args) -> int:
    """Measures lip sync (SyncNet), identity, drift, and PSNR and SSIM of talking videos, in windows along them."""
    import torch

    from scripts.measure.avatar_input import check_subjects, find_subjects
    from scripts.measure.avatar_models import RANDOM, check_models, load_models
    from scripts.measure.avatar_windows import Plan, measure
    from scripts.measure.compare import spelled

    begin = time.time()
    _check_numbers(args)
    check_models(args.syncnet, args.identity)
    subjects = find_subjects(args)
    check_subjects(subjects, bool(args.syncnet))
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    models = load_models(args.syncnet, args.identity, device)
    plan, rows, failed = Plan(args.window, args.every, args.seconds), {}, {}
    for subject in subjects:
        try:
            rows[subject.name] = measure(subject, models, plan)
        except (ValueError, OSError) as error:  # of a video that is damaged farther on: the others are not lost
            failed[subject.name] = str(error)
    if rows:
        used = {"syncnet": args.syncnet, "identity": args.identity}
        notes = [f"{name}: {WARNING}" for name, path in used.items() if path == RANDOM]
        result = {"weights": used, "notes": notes, "window": args.window, "rows": rows, "failed": failed}
        picture = args.output.with_suffix(".png")
        write_tables(rows, used, args.output)
        draw(rows, picture, used)
        lines = [*report(rows, args.window), *(f"\nnot measured: {n}: {why}" for n, why in failed.items())]
        title = [f"Talking videos: {len(rows)}", *(f"\n**{note}**" for note in notes)]
        save(args, spelled(result), [*title, *lines, "", f"![along the videos]({picture.name})"], begin)
    if failed:
        raise ValueError("; ".join(f"{name} could not be measured: {why}" for name, why in failed.items()))
    return 0


def _check_numbers(args) -> None:
    for name, least in (("window", 1.0), ("every", 0.01)):
        if not least <= getattr(args, name) <= 3_600:
            raise ValueError(f"--{name} is {getattr(args, name):g}; write {least:g} to 3600 seconds")
    if args.seconds != 0 and not args.seconds >= 1:
        raise ValueError(f"--seconds is {args.seconds:g}; write 1 or more, or 0 for whole videos")
    if args.truth is not None and not args.truth.exists():
        raise ValueError(f"--truth is {args.truth}, which does not exist; give a video or a folder of videos")


def report(rows: dict[str, dict], window: float) -> list[str]:
    """Returns markdown lines: a row per video and their mean; what changed along them."""
    first = f"first {window:g} s"
    parts = [("first", name) for name in ("sync_c", "sync_d", "offset")]
    parts += [("mean", name) for name in ("sync_c", "sync_d", "identity", "psnr", "ssim")]
    titles = [f"{_title(name)}, {first}" if part == "first" else _title(name) for part, name in parts]
    lines = ["", *table_head(["video", "seconds", *titles])]
    for name, row in rows.items():
        lines.append(table_row([name, f"{row['seconds']:g}", *(_cell(row[part][m], m) for part, m in parts)]))
    if len(rows) > 1:
        cells = [_cell(_mean([row[part][m] for row in rows.values()]), m) for part, m in parts]
        lines.append(table_row([f"mean of {len(rows)}", "", *cells]))
    lines += ["", *table_head(["drift: last window - first", *map(_title, DRIFTING)])]
    for name, row in rows.items():
        lines.append(table_row([name, *(_cell(row["drift"][m], m, "+") for m in DRIFTING)]))
    if any(row["truth_frames"] for row in rows.values()):
        told = "; ".join(f"{name} {row['truth_frames']}" for name, row in rows.items())
        lines += ["", f"frames compared with a recorded truth: {told}"]
    return lines


def _title(name: str) -> str:
    return TITLES.get(name, name)


def _cell(value: float | None, name: str, sign: str = "") -> str:
    return "-" if value is None else f"{value + 0.0:{sign}.{DIGITS.get(name, 1)}f}"


def _mean(values: list) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def write_tables(rows: dict[str, dict], used: dict[str, str], output: Path) -> None:
    """Writes two CSV files: `<output>.csv`, a line a video, and `<output>_windows.csv`, a line a window."""
    from scripts.measure.avatar_windows import METRICS

    videos, windows, weights = [], [], {f"{name}_weights": path for name, path in used.items()}
    for name, row in rows.items():
        parts = {f"{part}_{m}": row[part][m] for part in ("first", "mean", "drift") for m in METRICS}
        videos.append({"video": name, "seconds": row["seconds"], "fps": row["fps"], **parts, **weights})
        windows += [{"video": name, **window, **weights} for window in row["windows"]]
    _write_csv(output.with_suffix(".csv"), videos)
    _write_csv(output.with_name(f"{output.stem}_windows.csv"), windows)


def _write_csv(path: Path, lines: list[dict]) -> None:
    from utils.atomic import atomic_write

    text = io.StringIO()
    table = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    table.writeheader()
    table.writerows([{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()} for line in lines])
    atomic_write(path, text.getvalue().encode())


def draw(rows: dict[str, dict], path: Path, used: dict[str, str]) -> None:
    """Draws each metric along the videos: a line per video, or their mean where they are many.

    used: {"syncnet", "identity"}: their weights; of random ones the panels say so.
    """
    from scripts.experiments.figures import draw as draw_panels
    from scripts.measure.avatar_models import RANDOM
    from scripts.measure.avatar_windows import METRICS, SYNC

    weights = dict.fromkeys(SYNC, used["syncnet"]) | {"identity": used["identity"]}
    panels: dict[str, dict] = {}
    for metric in METRICS:
        lines = {name: _along(row, metric) for name, row in rows.items()}
        lines = {name: (x, y, None) for name, (x, y) in lines.items() if any(v is not None for v in y)}
        if len(lines) > MOST_LINES:
            lines = {f"mean of {len(lines)}": _mean_line(lines)}
        if lines:
            panels[_title(metric) + ", random weights" * (weights.get(metric) == RANDOM)] = lines
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    styles = {name: (f"C{number % 10}", "o-") for number, name in enumerate(names)}
    draw_panels(panels, path, "seconds", 3, styles)


def _along(row: dict, metric: str) -> tuple[list[float], list]:
    """Returns (seconds, values): of each compared picture, or at the middle of each window."""
    if metric == "identity":
        return [time for time, _ in row["identity"]], [value for _, value in row["identity"]]
    windows = row["windows"]
    return [(w["begin"] + w["end"]) / 2 for w in windows], [w[metric] for w in windows]


def _mean_line(lines: dict[str, tuple]) -> tuple:
    """Returns one line: the mean, place by place, of all that reach so far."""
    longest = max((x for x, _, _ in lines.values()), key=len)
    values = [_mean([y[k] for _, y, _ in lines.values() if k < len(y)]) for k in range(len(longest))]
    return longest, values, None
