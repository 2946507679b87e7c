"""Measures videos and codecs; every table is printed and saved as JSON and markdown.

    python scripts/evaluate.py digits --reference                        # what the metrics are worth
    python scripts/evaluate.py digits --videos outputs/demo --reference --codec assets/digits/vae
    python scripts/evaluate.py digits --videos outputs/x --prompts prompts/digits_128.txt
    python scripts/evaluate.py codec --vae assets/digits/vae --frames 33 329 --clips 64
    python scripts/evaluate.py compare outputs/a outputs/b                # PSNR, SSIM, sharpness, flicker
    python scripts/evaluate.py lengths --videos outputs/x --ends 33 357   # windows along long videos
    python scripts/evaluate.py switches --videos outputs/x --scripts prompts/digits_switch_32.jsonl
    python scripts/evaluate.py avatar --videos outputs/talks --sample_list talks.yaml --syncnet syncnet_v2.model

`digits` asks for a video of each of the 240 prompts, or of each line of `--prompts` (`--partial` measures what there
is), so that nobody can pick the good ones. A video is an mp4 with a JSON of the same stem next to it that has
`prompt` and `seed`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.measure.avatar import avatar, avatar_arguments  # noqa: E402
from scripts.measure.compare import compare, compare_arguments  # noqa: E402
from scripts.measure.long import lengths, lengths_arguments, switches, switches_arguments  # noqa: E402
from scripts.measure.report import (  # noqa: E402
    GATED,
    drift_table,
    frechet_table,
    metric_table,
    save,
    verdict_table,
)
from utils.door import check_output, door  # noqa: E402

SHARE = {"digit": 0.6, "colour": 0.8, "direction": 0.8}  # of the codec's ceiling, required of a model
CEILING = "real through codec"  # no model that uses the codec can score more
FALL = 0.1  # the most a gated metric may lose from the first to the last window
CODEC_GATE = {"digit": 0.9, "colour": 0.95}
CODEC_SEED = 20_000  # clips that no training run draws


@door("evaluate.py")
def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand; returns 0, or 1 if a gate failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="|".join(COMMANDS))
    for name, (add_arguments, run) in COMMANDS.items():
        sub = commands.add_parser(name, help=run.__doc__.split("\n")[0])
        add_arguments(sub)
        sub.set_defaults(run=run)
    args = parser.parse_args(argv)
    args.command = " ".join(["python scripts/evaluate.py", *(sys.argv[1:] if argv is None else argv)])
    check_output(args.output)
    return args.run(args)


def digits_arguments(parser):
    parser.add_argument("--videos", type=Path, nargs="+", default=[], help="folders of generated videos, a row each")
    parser.add_argument("--real", action="store_true", help="the row of real clips")
    parser.add_argument("--reference", action="store_true", help="all reference rows: real, shuffled, noise, ...")
    parser.add_argument("--codec", type=Path, help="a VAE folder: the row of real clips through it, the ceiling")
    parser.add_argument("--frames", type=int, help="pixel frames measured (default: those of the videos, or 33)")
    parser.add_argument("--windows", type=int, default=4, help="stretches of the clip in the drift table")
    parser.add_argument("--seed", type=int, default=0, help="of the real clips")
    parser.add_argument("--prompts", type=Path, help="a file of the prompts to measure (default: all 240)")
    parser.add_argument("--partial", action="store_true", help="allow videos that leave prompts out")
    parser.add_argument("--output", type=Path, default=Path("docs/results/digits.json"))


def digits(args) -> int:
    """Measures fidelity, motion, consistency and drift of digits videos and reference rows."""
    from utils.digits.reference import REFERENCES, reference
    from utils.digits.videos import load_videos, prompt_numbers, read_requested

    begin = time.time()
    if not (args.videos or args.real or args.reference or args.codec):
        raise ValueError("nothing to measure; give --videos, --real, --reference or --codec")
    prompts = read_requested(args.prompts)
    folders = {
        _row_name(path, args.videos): load_videos(path, args.frames, args.partial, prompts) for path in args.videos
    }
    num_frames = args.frames or next((len(v.clips[0]) for v in folders.values()), 33)
    rows = {name: _row(videos.clips, videos.subjects, args.windows, True) for name, videos in folders.items()}
    numbers = prompt_numbers(prompts)
    if args.codec:
        clips, subjects = reference("real", num_frames, args.seed, prompts=numbers)
        codec = load_codec(args.codec)
        rows[CEILING] = _row((roundtrip(codec, clip) for clip in clips), subjects, args.windows, True)
    for name in REFERENCES if args.reference else ["real"] * args.real:
        rows[name] = _row(*reference(name, num_frames, args.seed, prompts=numbers), args.windows, True)
    verdicts = check_models(rows, list(folders))
    notes = {name: videos.facts for name, videos in folders.items()}
    requested = {"prompts": str(args.prompts or "all 240"), "num_prompts": len(prompts)}
    result = {"frames": num_frames, "seed": args.seed, **requested, "rows": rows, "verdicts": verdicts, "videos": notes}
    title = f"Digits: {num_frames} frames"
    lines = [*metric_table(rows), *drift_table(rows), *frechet_table(rows), *verdict_table(verdicts)]
    save(args, result, [title, *lines], begin)
    return int(any(not v["pass"] for v in verdicts))


def _row_name(path, paths):
    """Returns the folder's name, or its path where another row has that name."""
    from utils.digits.reference import REFERENCES

    taken = [p.name for p in paths if p != path] + [*REFERENCES, CEILING, ""]
    return str(path) if path.name in taken else path.name


def _row(clips, subjects, num_windows, as_set=False) -> dict:
    """Returns {clips, metrics, drift, by} and, of a set of videos, {frechet, looks}: one row of the table."""
    from utils.digits.frechet import FrechetMeter
    from utils.digits.looks import LooksMeter
    from utils.digits.metrics import clip_means, drift, measure_frames, summary

    meter, looks = FrechetMeter(), LooksMeter(subjects)
    frames = measure_frames(meter.collect(looks.collect(clips)) if as_set else clips, subjects)
    per_clip = clip_means(frames)
    by = {}
    for field in GATED:  # a mean hides a digit that always fails
        groups = {}
        for subject, hit in zip(subjects, per_clip[field], strict=True):
            groups.setdefault(str(getattr(subject, field)), []).append(float(hit))
        by[field] = {value: round(sum(hits) / len(hits), 4) for value, hits in sorted(groups.items())}
    windows = min(num_windows, frames["area"].shape[1])
    row = {"clips": len(subjects), "metrics": summary(per_clip), "drift": drift(frames, windows), "by": by}
    return row | ({"frechet": meter.row(subjects), "looks": looks.row()} if as_set else {})


def check_models(rows, names) -> list[dict]:
    """Returns the verdicts: share of the codec's ceiling, and fall from the first to the last window."""
    verdicts, ceiling = [], rows.get(CEILING)
    for name in names:
        for metric in GATED:
            value = rows[name]["metrics"][metric]["mean"]
            fall = rows[name]["drift"][metric]["change"]["mean"]
            if ceiling is not None and value is not None:
                share = value / max(ceiling["metrics"][metric]["mean"], 1e-9)
                verdicts.append(_verdict(name, f"{metric}: share of ceiling", share, ">=", SHARE[metric]))
            if fall is not None:
                verdicts.append(_verdict(name, f"{metric}: last - first window", fall, ">=", -FALL))
    return verdicts


def _verdict(row, what, value, sign, limit) -> dict:
    passed = value >= limit
    return {"row": row, "what": what, "value": round(value, 4), "limit": f"{sign} {limit}", "pass": bool(passed)}


def codec_arguments(parser):
    parser.add_argument("--vae", type=Path, required=True, help="folder of an AutoencoderKLWan (diffusers layout)")
    parser.add_argument("--frames", type=int, nargs="+", default=[33, 329], help="pixel frames, 4n+1 each")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seed", type=int, default=CODEC_SEED)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("docs/results/digits_codec.json"))


def codec(args) -> int:
    """Measures the codec gate: real clips through the VAE must keep colour and digit at every length."""
    begin, codec = time.time(), load_codec(args.vae)
    rows, verdicts = {}, []
    for num_frames in args.frames:
        quality, name = [], f"{num_frames} frames"
        clips, subjects = _real_clips(num_frames, args.clips, args.seed)
        rows[name] = _row(_through_codec(codec, clips, quality), subjects, args.windows)
        rows[name]["psnr"], rows[name]["psnr_foreground"] = (_mean(v) for v in zip(*quality, strict=True))
        for metric, limit in CODEC_GATE.items():
            verdicts.append(_verdict(name, metric, rows[name]["metrics"][metric]["mean"], ">=", limit))
    result = {"vae": str(args.vae), "clips": args.clips, "seed": args.seed, "rows": rows, "verdicts": verdicts}
    title = f"Codec gate: real clips through {args.vae}"
    save(args, result, [title, *metric_table(rows), *drift_table(rows), *verdict_table(verdicts)], begin)
    return int(any(not v["pass"] for v in verdicts))


def _real_clips(num_frames, count, seed):
    from utils.digits.world import parse_prompt, quantise, random_clip

    subjects = [parse_prompt(random_clip(i, 1, seed)[1]) for i in range(count)]
    return (quantise(random_clip(i, num_frames, seed)[0]) for i in range(count)), [s[0] for s in subjects]


def _through_codec(codec, clips, quality):
    """Yields each clip through the codec; appends (PSNR, PSNR where the real clip has ink)."""
    from utils.metrics.video import psnr

    for clip in clips:
        out = roundtrip(codec, clip)
        quality.append((psnr(out, clip), psnr(out, clip, clip.max(-1) > 0)))
        yield out


def _mean(values):
    return round(sum(values) / len(values), 3)


def load_codec(folder: Path):
    """Returns the StreamingVAE of a diffusers VAE folder, fp32, frozen."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json; give the folder of an AutoencoderKLWan (diffusers layout)")
    from wan.checkpoint.identify import family_of_vae
    from wan.config import VAEConfig

    return family_of_vae(folder).open_vae(folder, VAEConfig(), "cpu")


def roundtrip(codec, clip):
    """Returns the uint8 clip [P, H, W, 3] encoded and decoded, one clip at a time."""
    import torch

    from utils.media.image import to_uint8

    pixels = torch.from_numpy(clip).permute(0, 3, 1, 2).float()[None] / 127.5 - 1
    with torch.no_grad():
        return to_uint8(codec.decode(codec.encode(pixels))[0])


COMMANDS = {
    "avatar": (avatar_arguments, avatar),
    "digits": (digits_arguments, digits),
    "codec": (codec_arguments, codec),
    "compare": (compare_arguments, compare),
    "lengths": (lengths_arguments, lengths),
    "switches": (switches_arguments, switches),
}

if __name__ == "__main__":
    sys.exit(main())
