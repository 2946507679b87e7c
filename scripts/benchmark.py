"""Measures speed; prints a table and saves it as JSON and markdown under docs/results/.

    python scripts/benchmark.py infer --config_path configs/infer/digits.yaml
    python scripts/benchmark.py infer --config_path configs/infer/benchmark_wan_1.3B.yaml --random_weights
    python scripts/benchmark.py infer --config_path configs/infer/benchmark_wan_1.3B.yaml --random_weights \\
        --layers 4 --height 64 --width 96 model.dtype=fp32 vae.dtype=fp32     # reduced, for a CPU
    python scripts/benchmark.py infer ... --windows 12 48                     # bytes copied, by window and rotation
    python scripts/benchmark.py endless --config_path configs/infer/digits_few_step.yaml --name digits \\
        generation.cache.window_frames=12 generation.cache.sink_frames=3          # does chunk 2,000 cost what 100 did?
    python scripts/benchmark.py train --config_path configs/train/digits_self_forcing_dmd.yaml
    python scripts/benchmark.py train --config_path configs/train/benchmark_wan_1.3B.yaml --random_weights
    torchrun --standalone --nproc_per_node=3 scripts/benchmark.py tpp \\
        --config_path configs/infer/digits_avatar_tpp.yaml data.image=P.png data.audio=S.wav data.prompt=...
    python scripts/benchmark.py attention            # selected blocks of keys against all of them, for each kernel

Times are those of the steady state: the window is full and warm-up chunks have run. MFU is counted operations
(wan/flops.py) per second over the device's peak: the dense bf16 rate of a known GPU, or on a CPU the best of
three 4096^3 fp32 products in the same run. What would take a CPU hours is recorded as "not run".
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench.device import peak_rate  # noqa: E402
from scripts.bench.record import begin_record, pairs, save  # noqa: E402
from utils.door import check_folder, door  # noqa: E402

CPU_LIMIT = 2e12  # operations of a chunk, decode not counted; minutes on a CPU
DEFAULT_CHUNKS = 20  # measured, where the recipe names no `seconds`


@door("benchmark.py")
def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="|".join(COMMANDS))
    for name, (add_arguments, run) in COMMANDS.items():
        sub = commands.add_parser(name, help=run.__doc__.split("\n")[0], allow_abbrev=False)
        add_arguments(sub)
        sub.set_defaults(run=run, kind=name)
    args, args.overrides = parser.parse_known_args(argv)
    for word in args.overrides:
        if word.startswith("-") or "=" not in word:
            parser.error(f"{word!r} is neither an option nor key=value")
    args.command = " ".join(["python scripts/benchmark.py", *(sys.argv[1:] if argv is None else argv)])
    check_folder(args.output_folder)
    return args.run(args)


def model_arguments(parser):
    parser.add_argument("--config_path", type=Path, required=True, help="a recipe of configs/infer/")
    parser.add_argument("--random_weights", action="store_true", help="sizes of model.spec, no weight file needed")
    parser.add_argument("--layers", type=int, help="with --random_weights: so many transformer blocks")
    parser.add_argument("--height", type=int, help="pixels, instead of the recipe's")
    parser.add_argument("--width", type=int, help="pixels, instead of the recipe's")


def output_arguments(parser):
    parser.add_argument("--name", help="of the files; default: the recipe's")
    parser.add_argument("--output_folder", type=Path, default=Path("docs/results"))


def infer_arguments(parser):
    model_arguments(parser)
    output_arguments(parser)
    parser.add_argument("--chunks", type=int, help=f"measured (default: the recipe's `seconds`, or {DEFAULT_CHUNKS})")
    parser.add_argument("--warmup", type=int, default=2, help="chunks after the window is full that do not count")
    parser.add_argument("--windows", type=int, nargs="+", help="measure bytes copied only, for these window_frames")
    parser.add_argument("--peak_tflops", type=float, help="the device's peak, where it is not to be looked up")


def infer(args) -> int:
    """Measures milliseconds per chunk, fps, MFU, memory, copies and allocations of causal generation."""
    begin, config = time.time(), read_config(args)
    from scripts.bench import infer as benchmark_infer

    device, result = begin_record(args, config.threads)
    if excess := cpu_excess(args, config) if device.type == "cpu" else "":
        return save(args, result | {"status": "not run", "reason": excess}, [f"not run: {excess}"])
    peak = None if args.windows else peak_rate(device, args.peak_tflops)
    bundle, weights = benchmark_infer.build_kit(config, args.random_weights, args.layers, device)
    result["model"] = describe(config, bundle, weights, benchmark_infer.attention_backend(config, bundle))
    if args.windows:
        result["bytes copied per chunk"] = benchmark_infer.compare_windows(config, bundle, args.windows)
        lines = copies_table(result["bytes copied per chunk"])
    else:
        chunks = args.chunks or default_chunks(config, bundle.spec.fps)
        result["peak"] = {"tera-operations per second": peak[0] / 1e12, "from": peak[1]}
        result |= benchmark_infer.measure(config, bundle, args.warmup, chunks, peak[0])
        lines = infer_table(result)
    return save(args, result | {"seconds": round(time.time() - begin, 1)}, lines)


def endless_arguments(parser):
    model_arguments(parser)
    output_arguments(parser)
    parser.add_argument("--chunks", type=int, default=2000, help="of a video, after the window is full (default 2000)")
    parser.add_argument("--runs", type=int, default=3, help="videos; the time of the best one counts (default 3)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a limit is passed")
    parser.set_defaults(windows=None)


def endless(args) -> int:
    """Measures time, operators, copies, allocations and memory early and late in a long video: do they stay equal?"""
    begin, config = time.time(), read_config(args)
    from scripts.bench import endless as benchmark_endless
    from scripts.bench import infer as benchmark_infer

    if config.batch != 1:
        raise ValueError(f"batch is {config.batch} and a session makes one video; write batch=1")
    device, result = begin_record(args, config.threads)
    if excess := cpu_excess(args, config) if device.type == "cpu" else "":
        return save(args, result | {"status": "not run", "reason": excess}, [f"not run: {excess}"])
    bundle, weights = benchmark_infer.build_kit(config, args.random_weights, args.layers, device)
    result["model"] = describe(config, bundle, weights, benchmark_infer.attention_backend(config, bundle))
    result |= benchmark_endless.measure(config, bundle, args.chunks, args.runs)
    result |= {"date": time.strftime("%Y-%m-%d"), "seconds": round(time.time() - begin, 1)}
    save(args, result, benchmark_endless.table(result))
    return int(args.check and not benchmark_endless.passed(result))


def read_config(args):
    """Returns the recipe with overrides. Errors: ValueError for what cannot be measured."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    for name in ("layers", "chunks", "warmup", "runs"):
        if given.get(name, 1) < 1:
            raise ValueError(f"--{name} is {given[name]}; write 1 or more")
    if given.get("peak_tflops", 1) <= 0:
        raise ValueError(f"--peak_tflops is {args.peak_tflops}; write a positive number")
    if args.layers and not args.random_weights:
        raise ValueError("--layers cuts a model to pieces that no weights fit; write --random_weights too")
    from pipeline.config import CausalConfig, load_recipe

    sizes = [f"{side}={vars(args)[side]}" for side in ("height", "width") if vars(args)[side] is not None]
    config, _ = load_recipe(args.config_path, args.overrides + sizes)
    if not isinstance(config.pipeline, CausalConfig):
        raise ValueError("only causal generation is measured; write pipeline.name=causal or another recipe")
    if config.generation.cache.window_frames == -1 and not args.windows:
        raise ValueError("without a window no two chunks cost the same; write generation.cache.window_frames=12")
    least = config.generation.cache.sink_frames + config.generation.largest_chunk
    for window in args.windows or ():
        if window < least:
            raise ValueError(f"--windows {window} is smaller than sink + chunk; write {least} or more")
    if args.random_weights and not config.model.spec:
        raise ValueError("--random_weights needs the sizes by name; write model.spec=digits, model.spec=t2v-1.3B, ...")
    return config


def cpu_excess(args, config) -> str:
    """Returns why a CPU should not try this, or '' if it may (or the sizes are known only after loading).

    The dearest chunk counts: one that sees a full window, or the first, which may have more steps.
    """
    from wan.family import find_published
    from wan.flops import pass_flops
    from wan.geometry import Geometry

    if not config.model.spec:
        return ""
    spec, sampler = find_published(config.model.spec), config.build_sampler()
    unit = Geometry.of(spec, config.height, config.width).frame_tokens
    window = max(args.windows or [config.generation.cache.window_frames])
    chunk, first = config.generation.chunk * unit, (config.generation.first_chunk or config.generation.chunk) * unit
    share = (args.layers or spec.transformer.num_layers) / spec.transformer.num_layers
    steady = pass_flops(spec.transformer, chunk, window * unit, config.batch).total * (sampler.num_steps + 1)
    begin = pass_flops(spec.transformer, first, first, config.batch).total * (sampler.first_num_steps + 1)
    work = share * max(steady, begin) * (1 if sampler.guidance == 1 else 2)
    if work <= CPU_LIMIT:
        return ""
    return f"{work / 1e12:.1f} tera-operations per chunk need a CUDA device"


def default_chunks(config, fps: float) -> int:
    """Returns how many chunks last the recipe's `seconds`."""
    if not config.seconds:
        return DEFAULT_CHUNKS
    from wan.codec.vae import TEMPORAL_STRIDE

    return -(-round(config.seconds * fps) // (TEMPORAL_STRIDE * config.generation.chunk))


def describe(config, bundle, weights: str, backend: str) -> dict:
    """Returns what was run."""
    from utils.config.field import values
    from wan.geometry import Geometry

    geometry, sampler = Geometry.of(bundle.spec, config.height, config.width), config.build_sampler()
    return {
        "spec": bundle.spec.name,
        "blocks": bundle.spec.transformer.num_layers,
        "size": f"{geometry.height}x{geometry.width}",
        "frame tokens": geometry.frame_tokens,
        "chunk": config.generation.chunk,
        **values(config.generation.cache),
        "passes": count_passes(sampler),
        "batch": config.batch,
        "dtype": config.model.dtype,
        "VAE dtype": config.vae.dtype,
        "attention": backend,
        "weights": weights,
    }


def count_passes(sampler) -> str:
    """Returns the forwards of a chunk in words, and those of a video's first chunk where they are others."""
    steps = f"{sampler.num_steps} + 1 context"
    if sampler.first_num_steps != sampler.num_steps:
        steps += f" (first chunk {sampler.first_num_steps} + 1)"
    return steps if sampler.guidance == 1 else f"{steps}, twice (guidance)"


def infer_table(result: dict) -> list[str]:
    """Returns the markdown of one measurement."""
    from scripts.measure.markdown import table_head, table_row

    times, work, used = result["ms per chunk"], result["tera-operations"]["per chunk"], result["MFU"]
    lines = table_head(["per chunk", "p50 ms", "p95 ms", "tera-operations", "MFU"])
    for name in used:
        cells = [f"{times[name][q]:.1f}" for q in ("p50", "p95")]
        lines.append(table_row([name, *cells, f"{work[name]:.4g}", f"{100 * used[name]:.1f} %"]))
    noise = times["noise drawing"]
    lines.append(table_row(["(of denoise: drawing noise)", f"{noise['p50']:.1f}", f"{noise['p95']:.1f}", "-", "-"]))
    lines += ["", *table_head([f"fps: {name}" for name in result["fps"]])]
    lines.append(table_row([f"{value:.2f}" for value in result["fps"].values()]))
    requested = result["allocations per chunk"]
    lines += ["", *copies_table({"this run": result["bytes copied per chunk"]}), ""]
    columns = [f"allocations: {part}" for part in requested] + [f"peak: {kind}" for kind in result["peak memory"]]
    lines += table_head(["", *columns])
    counts = [f"{value['number']} ({megabytes(value['bytes'])})" for value in requested.values()]
    lines.append(table_row(["per chunk", *counts, *map(megabytes, result["peak memory"].values())]))
    peak = result["peak"]
    facts = f"peak {peak['tera-operations per second']:.4g} tera-operations/s ({peak['from']})"
    kernels = ", ".join(result["attention kernels"]) or "not seen by torch"
    return [*lines, "", f"{facts}; attention kernels: {kernels}; chunks: {pairs(result['chunks'])}"]


def copies_table(rows: dict[str, dict[str, int]]) -> list[str]:
    """Returns the markdown of bytes copied per chunk, a column for each scope."""
    from scripts.measure.markdown import table_head, table_row

    scopes = list(next(iter(rows.values())))
    lines = table_head(["bytes copied per chunk", *scopes])
    return lines + [table_row([name, *(f"{row[scope]:,}" for scope in scopes)]) for name, row in rows.items()]


def megabytes(count: int) -> str:
    """Returns bytes as text in MB (10^6)."""
    return f"{count / 1e6:,.1f} MB"


def train_arguments(parser):
    parser.add_argument("--config_path", type=Path, required=True, help="a recipe of configs/train/ that distils")
    parser.add_argument("--random_weights", action="store_true", help="networks by `spec`, no file needed")
    parser.add_argument("--updates", type=int, default=3, help="of generator and of critic that are measured")
    parser.add_argument("--warmup", type=int, default=1, help="updates before those")
    parser.add_argument("--peak_tflops", type=float, help="the device's peak, where it is not to be looked up")
    output_arguments(parser)
    parser.set_defaults(windows=None)


def train(args) -> int:
    """Seconds, MFU and memory of generator and critic updates."""
    begin = time.time()
    from trainer.config import load_recipe

    config, _ = load_recipe(args.config_path, args.overrides)
    if min(args.updates, args.warmup) < 1:
        raise ValueError("--updates and --warmup must be at least 1")
    if config.trainer.name != "distill":
        raise ValueError(f"the recipe trains by {config.trainer.name!r}; generator and critic updates need distill")
    from scripts.bench import train as benchmark_train

    device, result = begin_record(args, config.threads)
    if device.type == "cpu" and config.trainer.generator.spec not in ("", "digits"):
        excess = f"a step of {config.trainer.generator.spec} needs a CUDA device"
        return save(args, result | {"status": "not run", "reason": excess}, [f"not run: {excess}"])
    peak = peak_rate(device, args.peak_tflops)
    method = benchmark_train.build_method(config, args.random_weights, device)
    weights = "random" if args.random_weights else config.trainer.generator.weights
    result["model"] = benchmark_train.describe(config, method, weights)
    result["peak"] = {"tera-operations per second": peak[0] / 1e12, "from": peak[1]}
    result |= benchmark_train.measure(method, args.warmup, args.updates, peak[0])
    return save(args, result | {"time": round(time.time() - begin, 1)}, benchmark_train.table(result))


def attention_arguments(parser):
    parser.add_argument("--tries", type=int, default=5, help="of each row, taken in turn; the best counts (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU (default 1)")
    parser.add_argument("--peak_tflops", type=float, help="the device's peak, where it is not to be looked up")
    output_arguments(parser)
    parser.set_defaults(windows=None, name="blocks")


def attention(args) -> int:
    """Milliseconds and MFU of block-sparse attention against dense, forward and backward, for each usable kernel."""
    from scripts.bench import attention as benchmark_attention

    device, result = begin_record(args, args.threads)
    peak = peak_rate(device, args.peak_tflops)
    result["peak"] = {"tera-operations per second": peak[0] / 1e12, "from": peak[1]}
    result["rows"] = benchmark_attention.measure(device, peak[0], args.tries)
    return save(args, result, benchmark_attention.table(result["rows"], args.command))


def tpp_arguments(parser):
    parser.add_argument("--config_path", type=Path, required=True, help="a recipe with executor.name=tpp")
    parser.add_argument("--warmup", type=int, default=4, help="chunks that do not count (default 4)")
    output_arguments(parser)
    parser.set_defaults(windows=None)


def tpp(args) -> int:
    """Stages, bubble, frames a second and latency of a talking video that ranks make together; under torchrun."""
    from pipeline.config import load_recipe
    from scripts.bench import tpp as benchmark_tpp
    from utils.parallel import ranks

    config, _ = load_recipe(args.config_path, args.overrides)
    benchmark_tpp.check(config)
    _, result = begin_record(args, config.threads or 1)
    args.command = args.command.replace("python", f"torchrun --standalone --nproc_per_node={ranks.world_size()}", 1)
    result |= {"command": args.command, **benchmark_tpp.measure(config, args.warmup)}
    return 0 if ranks.rank() else save(args, result, benchmark_tpp.table(result))


COMMANDS = {
    "attention": (attention_arguments, attention),
    "infer": (infer_arguments, infer),
    "endless": (endless_arguments, endless),
    "tpp": (tpp_arguments, tpp),
    "train": (train_arguments, train),
}

if __name__ == "__main__":
    sys.exit(main())
