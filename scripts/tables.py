"""Writes the tables of recorded results, docs/results/*.json, and of the ancestors' keys into README.md and docs/.

python scripts/tables.py            # rewrites what stands between <!-- table:NAME --> and <!-- end -->
python scripts/tables.py --check    # exit 1 if a page does not say what the records say
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.experiments import long_results, objectives_results, sparse_results, talking_results
from scripts.experiments.records import pool_seeds
from scripts.measure.markdown import mean_and_half, table_head, table_row
from scripts.measure.report import looks_cell
from utils.door import door
from utils.json_reader import read_json

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/results.md", "docs/training.md", "docs/migrate.md", "docs/avatar.md", "docs/sparse.md")
BLOCK = re.compile(r"(<!-- table:([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
SHOWN = ("digit", "colour", "direction", "speed", "consistency", "identity", "area")


@door("tables.py")
def main(arguments: list[str] | None = None) -> int:
    """Fills every marked block; returns 1 with --check if one was out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    flags = parser.parse_args(arguments)
    stale = []
    for name in PAGES:
        page = ROOT / name
        old = page.read_text()
        new = BLOCK.sub(lambda m: f"{m[1]}{table(m[2])}\n{m[3]}", old)
        if new != old:
            stale.append(name)
            if not flags.check:
                page.write_text(new)
    print(f"out of date: {', '.join(stale)}" if stale else "all tables say what the records say")
    return int(flags.check and bool(stale))


def table(name: str) -> str:
    """Returns the markdown of one named table. Errors: ValueError for a name without a maker."""
    if name in EXPERIMENTS:
        return EXPERIMENTS[name](ROOT)
    kind = name.split("-")[0]
    if kind not in MAKERS:
        raise ValueError(f"no table {name!r}; known kinds: {sorted({*MAKERS, *EXPERIMENTS})}")
    return MAKERS[kind](name)


def record(stem: str) -> dict | None:
    """Returns docs/results/<stem>.json, or None if nothing was recorded."""
    path = ROOT / "docs" / "results" / f"{stem}.json"
    return read_json(path) if path.exists() else None


def digits(name: str) -> str:
    """Returns `digits-<record>`: rows of scripts/evaluate.py digits."""
    stem = name.replace("-", "_")
    result = record(stem)
    if result is None:
        return f"not run: `python scripts/evaluate.py digits ... --output docs/results/{stem}.json`"
    lines = [f"`{result['command']}` ({result['frames']} frames)", ""]
    lines += table_head(["input", "videos", *SHOWN, "looks"])
    for row, content in result["rows"].items():
        cells = []
        for metric in SHOWN:
            value = content["metrics"][metric]
            mean = value["mean"]
            half = None if mean is None else (value["high"] - value["low"]) / 2
            cells.append("-" if mean is None else f"{mean:.3f}" + (f" +-{half:.3f}" if metric in SHOWN[:3] else ""))
        lines.append(table_row([row, content["clips"], *cells, looks_cell(content.get("looks"))]))
    return "\n".join(lines)


def first(name: str) -> str:
    """Returns `first-chunk`: the student with more steps in the first chunk, over seeds."""
    result = record("first_chunk")
    if result is None:
        return "not run: `python inference.py ... generation.steps.first_steps=[...]`"
    columns = ["digit", "direction", "colour", "consistency", "identity"]
    head = [
        "steps of the first chunk",
        "latent frames",
        "seeds",
        *columns,
        "first quarter: digit, direction",
        "Frechet",
    ]
    lines = [f"`{result['command']}`", "", *table_head(head)]
    groups: dict[tuple, list[dict]] = {}
    for row in result["rows"]:
        groups.setdefault((row["latent_frames"], row["first_steps"]), []).append(row)
    for (frames, steps), rows in groups.items():
        cells = [mean_and_half(pool_seeds([row["metrics"][metric] for row in rows])) for metric in columns]
        quarter = [sum(row["first_quarter"][m] for row in rows) / len(rows) for m in ("digit", "direction")]
        distance = mean_and_half(pool_seeds([row["frechet"] for row in rows]), 1)
        text = f"{steps}: {result['first_steps'][str(steps)]}"
        lines.append(table_row([text, frames, len(rows), *cells, ", ".join(f"{v:.2f}" for v in quarter), distance]))
    return "\n".join(lines)


def codec(name: str) -> str:
    """Returns `codec-<record>`: rows of scripts/evaluate.py codec."""
    result = record("digits_codec")
    if result is None:
        return "not run: `python scripts/evaluate.py codec --vae assets/digits/vae --frames 33 329 --clips 64`"
    lines = [
        f"`{result['command']}`",
        "",
        *table_head(["real clips", "PSNR", "PSNR of ink", "digit", "colour", "direction"]),
    ]
    for row, content in result["rows"].items():
        means = [f"{content['metrics'][m]['mean']:.3f}" for m in SHOWN[:3]]
        lines.append(table_row([row, f"{content['psnr']:.1f} dB", f"{content['psnr_foreground']:.1f} dB", *means]))
    return "\n".join(lines)


def training(name: str) -> str:
    """Returns `training`: wall time and final loss of the recorded runs."""
    lines = table_head(["recipe", "steps", "wall time", "hardware", "final"])
    for stem in ("digits_codec_training", "digits_teacher_training", "digits_causal_training"):
        result = record(stem)
        if result is None:
            lines.append(table_row([stem.removesuffix("_training"), "-", "-", "-", "not run"]))
            continue
        final = ", ".join(f"{k} {v:.3f}" for k, v in result["final"].items())
        lines.append(
            table_row(
                [f"`{result['recipe']}`", result["steps"], f"{result['minutes']:.0f} min", result["hardware"], final]
            )
        )
    return "\n".join(lines)


def benchmark(name: str) -> str:
    """Returns `benchmark-<record>`: the table that scripts/benchmark.py saved next to its JSON."""
    stem = name.replace("-", "_")
    path = ROOT / "docs" / "results" / f"{stem}.md"
    return (
        path.read_text().strip()
        if path.exists()
        else f"not run: `{COMMANDS.get(stem, 'python scripts/benchmark.py infer')}`"
    )


def parity(name: str) -> str:
    """Returns `parity`: the recorded cases of the original systems."""
    result = record("parity")
    if result is None:
        return "not run: `python -m tests.parity DIR --json docs/results/parity.json`"
    totals = ", ".join(f"{count} {status}" for status, count in sorted(result["totals"].items()))
    lines = ["`python -m tests.parity DIR --json docs/results/parity.json`: " + totals, ""]
    lines += table_head(["case", "largest error", "tolerance", ""])
    return "\n".join(lines + [table_row(text.split(" ", 3)) for text in result["lines"]])


def switches(name: str) -> str:
    """Returns `switches-<record>`: rows of scripts/evaluate.py switches."""
    stem = name.partition("-")[2]
    result = record(stem)
    if result is None:
        return f"not run: `python scripts/evaluate.py switches ... --output docs/results/{stem}.json`"
    lines = [f"`{result['command']}`", "", *table_head(["changed", "changes", "reached", "chunks until then", "kept"])]
    for row, numbers in result["rows"].items():
        means = [f"{numbers[n]['mean']:.3f}" for n in ("reached", "chunks", "kept")]
        lines.append(table_row([row, numbers["switches"], *means]))
    return "\n".join(lines)


def memory(name: str) -> str:
    """Returns `memory`: GB of one GPU in a DMD training, part by part, as scripts/estimate_memory.py sums them."""
    rows = record("memory")["rows"]
    parts = list(dict.fromkeys(part["what"] for row in rows for part in row["parts"]))
    lines = table_head(["student = critic", "teacher", "GPUs", "GPUs a sample", "LoRA", *parts, "GB"])
    for row in rows:
        sizes = {part["what"]: f"{part['GB']:.1f}" for part in row["parts"]}
        names = [row["student"], row["teacher"], row["ranks"], row["sequence"], "yes" if row["lora"] else "no"]
        lines.append(table_row([*names, *(sizes.get(part, "-") for part in parts), f"**{row['total']:.1f}**"]))
    return "\n".join(lines)


def tdm_memory(name: str) -> str:
    """Returns `tdm_memory`: GB of one GPU in a TDM training by LoRA, as scripts/estimate_memory.py tdm sums them."""
    rows = record("memory_tdm")["rows"]
    lines = table_head(["model", "recipe", "GPUs", *(part["what"] for part in rows[0]["parts"]), "GB"])
    for row in rows:
        sizes = [f"{part['GB']:.1f}" for part in row["parts"]]
        lines.append(table_row([row["model"], row["recipe"], row["ranks"], *sizes, f"**{row['total']:.1f}**"]))
    return "\n".join(lines)


COMMANDS = {
    "benchmark_tpp_digits_avatar_tpp": "torchrun --standalone --nproc_per_node=3 scripts/benchmark.py tpp "
    "--config_path configs/infer/digits_avatar_tpp.yaml data.image=P.png data.audio=S.wav data.prompt=...",
    "benchmark_attention_blocks": "python scripts/benchmark.py attention",
    "benchmark_endless_digits": "python scripts/benchmark.py endless --config_path configs/infer/digits_few_step.yaml "
    "--name digits generation.cache.window_frames=12 generation.cache.sink_frames=3",
}


def avatar_memory(name: str) -> str:
    """Returns `avatar_memory`: GB of each GPU of an avatar, as scripts/estimate_memory.py avatar sums them."""
    rows = record("memory_avatar")["rows"]
    shown = ["weights", "keys and values", "pinned runs", "others"]
    lines = table_head(["GPUs", "this one holds", *shown, "GB", "card", "knobs"])
    for row in rows:
        sizes = dict.fromkeys(shown, 0.0)
        for part in row["parts"]:
            sizes[part["what"] if part["what"] in sizes else "others"] += part["GB"]
        verdict = row["card"] if row["fits"] else f"more than {row['card']}"
        knobs = f"`{row['knobs']}`"
        lines.append(
            table_row([row["what"], row["GPU"], *map("{:.1f}".format, [*sizes.values(), row["total"]]), verdict, knobs])
        )
    return "\n".join(lines)


EXPERIMENTS = {
    **objectives_results.TABLES,
    **long_results.TABLES,
    **talking_results.TABLES,
    **sparse_results.TABLES,
}
MAKERS = {
    "digits": digits,
    "first": first,
    "codec": codec,
    "training": training,
    "benchmark": benchmark,
    "parity": parity,
    "memory": memory,
    "tdm_memory": tdm_memory,
    "avatar_memory": avatar_memory,
    "switches": switches,
    "keys": lambda name: import_module("scripts.migrate.table").keys(name),  # late: it loads torch
}


if __name__ == "__main__":
    sys.exit(main())
