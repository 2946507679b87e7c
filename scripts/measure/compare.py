"""Measures `evaluate.py compare A B`: PSNR, SSIM, sharpness and flicker of two videos, or of two folders by name."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from pathlib import Path

from scripts.measure.markdown import table_head, table_row
from scripts.measure.report import save

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif")
SIDES = ("a", "b")


def compare_arguments(parser):
    """Adds the flags of `compare`."""
    parser.add_argument("a", type=Path, help="a video, or a folder of videos")
    parser.add_argument("b", type=Path, help="the video or folder it is compared with")
    parser.add_argument("--frames", type=int, help="compare only the first FRAMES frames of each")
    parser.add_argument("--any_fps", action="store_true", help="compare frame by frame also at different frame rates")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/compare.json"), help="JSON; .md and .png next to it"
    )


def compare(args) -> int:
    """Measures PSNR, SSIM, sharpness and flicker of two videos or folders, as table and plot."""
    begin = time.time()
    if args.frames is not None and args.frames < 1:
        raise ValueError(f"--frames is {args.frames}; compare 1 frame or more")
    pairs, unmatched = match(args.a, args.b)
    rows = {name: compare_pair(*paths, args.frames, args.any_fps) for name, paths in pairs.items()}
    total = summarise(list(rows.values()))
    result = {"a": str(args.a), "b": str(args.b), "frames": args.frames, "unmatched": unmatched}
    result |= {"mean": total, "rows": rows}
    picture = args.output.with_suffix(".png")
    draw(rows, picture, (str(args.a), str(args.b)))
    lines = [f"{args.a} against {args.b}", *table(rows, total)]
    for side, path in zip(SIDES, (args.a, args.b), strict=True):
        if unmatched[side]:
            lines += ["", f"only in {path}: {', '.join(unmatched[side])}"]
    save(args, spelled(result), [*lines, "", f"![per frame]({picture.name})"], begin)
    return 0


def match(a: Path, b: Path) -> tuple[dict, dict]:
    """Returns ({name: (path in A, path in B)}, {"a": names only in A, "b": names only in B}).

    Errors: ValueError for a file and a folder, a path that is neither, and folders without a common name.
    """
    for path in (a, b):
        if not path.exists():
            raise ValueError(f"{path} does not exist; give two videos or two folders of videos")
    if a.is_dir() != b.is_dir():
        raise ValueError(f"one of {a} and {b} is a folder, the other a file; give two videos or two folders")
    if a.is_file():
        name = a.name if a.name == b.name else f"{a.name} / {b.name}"
        return {name: (a, b)}, {"a": [], "b": []}
    names_a, names_b = video_names(a), video_names(b)
    common = sorted(names_a & names_b)
    if not common:
        raise ValueError(
            f"{a} ({len(names_a)} videos) and {b} ({len(names_b)} videos) have no file name in common; "
            "give equal names to what is to be compared"
        )
    return {n: (a / n, b / n) for n in common}, {"a": sorted(names_a - names_b), "b": sorted(names_b - names_a)}


def video_names(folder: Path) -> set[str]:
    """Returns the names of the finished videos of a folder."""
    files = {path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
    return {name for name in files if not name.endswith(".partial.mp4")}


def compare_pair(a: Path, b: Path, num_frames: int | None = None, any_fps: bool = False) -> dict:
    """Returns the measures of one pair, decoded frame by frame, two frames of each video in memory.

    {frames, fps, mse, psnr, ssim, sharpness: {a, b}, flicker: {a, b}, per_frame: {name: list}}. psnr is that of the
    mean squared error of all frames, infinite for equal videos. flicker of the first frame is None.
    Errors: ValueError for different sizes, frame rates or lengths, each with what to do.
    """
    from utils.media.video import open_video

    with contextlib.ExitStack() as stack:
        (frames_a, fps_a), (frames_b, fps_b) = (stack.enter_context(open_video(path)) for path in (a, b))
        if fps_a != fps_b and not any_fps:
            rates = f"{a} has {float(fps_a):g} frames per second, {b} has {float(fps_b):g}"
            raise ValueError(f"{rates}; resample one, or compare frame by frame with --any_fps")
        frames = _measure(a, b, frames_a, frames_b, num_frames)
    mse = _mean(frames.pop("mse"))
    row = {"frames": len(frames["psnr"]), "fps": [float(fps_a), float(fps_b)], "mse": mse}
    row |= summarize(mse, {name: _mean(values) for name, values in frames.items() if name != "psnr"})
    return row | {"per_frame": frames}


def _measure(a, b, frames_a, frames_b, num_frames) -> dict[str, list]:
    """Returns {mse, psnr, ssim, sharpness_a, ...: a value per frame}."""
    from utils.metrics.video import decibels, flicker, mean_square, sharpness, ssim

    names = ["mse", "psnr", "ssim", *(f"{metric}_{side}" for metric in ("sharpness", "flicker") for side in SIDES)]
    rows = {name: [] for name in names}
    before = None
    for count, pair in enumerate(itertools.islice(itertools.zip_longest(frames_a, frames_b), num_frames)):
        check_pair(a, b, pair, count, num_frames)
        rows["mse"].append(mean_square(*pair))
        rows["psnr"].append(decibels(rows["mse"][-1]))
        rows["ssim"].append(ssim(*pair))
        for side, frame, old in zip(SIDES, pair, before or (None, None), strict=True):
            rows[f"sharpness_{side}"].append(sharpness(frame))
            rows[f"flicker_{side}"].append(None if old is None else flicker(frame, old))
        before = pair
    if num_frames and len(rows["mse"]) < num_frames:
        raise ValueError(f"{a} and {b} have {len(rows['mse'])} frames, {num_frames} are requested; lower --frames")
    return rows


def check_pair(a, b, pair, count: int, num_frames: int | None):
    """Raises ValueError if one video ended before frame `count`, or the frames differ in size."""
    if any(frame is None for frame in pair):
        short, long = (a, b) if pair[0] is None else (b, a)
        requested = (
            f"; {num_frames} are requested, lower --frames" if num_frames else f"; compare them with --frames {count}"
        )
        raise ValueError(f"{short} ends after {count} frames, {long} goes on{requested}")
    if pair[0].shape != pair[1].shape:
        (h, w, _), (other_h, other_w, _) = pair[0].shape, pair[1].shape
        raise ValueError(f"{a} is {w} x {h} pixels, {b} is {other_w} x {other_h}; bring both to one size")


def summarize(mse: float, means: dict[str, float | None]) -> dict:
    """Returns {psnr, ssim, sharpness: {a, b}, flicker: {a, b}}."""
    from utils.metrics.video import decibels

    sides = {m: {side: means[f"{m}_{side}"] for side in SIDES} for m in ("sharpness", "flicker")}
    return {"psnr": decibels(mse), "ssim": means["ssim"], **sides}


def summarise(rows: list[dict]) -> dict:
    """Returns the means over pairs, each with one vote; psnr is that of the mean squared error."""
    means = {"ssim": _mean([row["ssim"] for row in rows])}
    for metric, side in itertools.product(("sharpness", "flicker"), SIDES):
        means[f"{metric}_{side}"] = _mean([row[metric][side] for row in rows])
    return {"pairs": len(rows), **summarize(_mean([row["mse"] for row in rows]), means)}


def _mean(values) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def table(rows: dict, total: dict) -> list[str]:
    """Returns markdown lines: a row per pair and, for several, their mean."""
    columns = ["video", "frames", "PSNR", "SSIM", "sharpness A", "sharpness B", "flicker A", "flicker B"]
    lines = table_head(columns)
    shown = {name: (row["frames"], row) for name, row in rows.items()}
    shown |= {f"mean of {len(rows)}": ("", total)} if len(rows) > 1 else {}
    for name, (count, row) in shown.items():
        cells = [f"{row['psnr']:.2f} dB", f"{row['ssim']:.4f}"]
        cells += ["-" if v is None else f"{v:.3f}" for m in ("sharpness", "flicker") for v in row[m].values()]
        lines.append(table_row([name, count, *cells]))
    return ["", *lines]


def spelled(value):
    """Returns the result with infinite numbers as the text "inf", which JSON has no number for."""
    if isinstance(value, dict):
        return {key: spelled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [spelled(inner) for inner in value]
    if isinstance(value, float):
        return "inf" if math.isinf(value) else round(value, 5)
    return value


def draw(rows: dict, path: Path, labels: tuple[str, str]):
    """Writes a PNG: PSNR, SSIM, and flicker of both, per frame; thin lines are pairs, thick ones their means."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from utils.atomic import atomic_write

    panels = {"PSNR (dB)": ["psnr"], "SSIM": ["ssim"], "flicker (levels)": ["flicker_a", "flicker_b"]}
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.2))
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for number, name in enumerate(names):
            curves = [[_drawable(v) for v in row["per_frame"][name]] for row in rows.values()]
            for curve in curves if len(curves) > 1 else []:
                axis.plot(curve, color=f"C{number}", alpha=0.2, linewidth=0.8)
            mean = [_mean([None if math.isnan(v) else v for v in at]) for at in _columns(curves)]
            label = labels[number] if len(names) > 1 else None
            axis.plot([_drawable(v) for v in mean], color=f"C{number}", label=label)
        axis.set_title(title)
        axis.set_xlabel("frame")
    axes[-1].legend(fontsize=7)
    figure.tight_layout()
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=100))
    plt.close(figure)


def _columns(curves):
    """Yields the values of every frame number, of the curves that reach so far."""
    return ([v for v in at if v is not None] for at in itertools.zip_longest(*curves))


def _drawable(value) -> float:
    """Returns the value, NaN (a gap) for none and for the infinite PSNR of equal frames."""
    return math.nan if value is None or math.isinf(value) else value
