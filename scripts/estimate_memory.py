"""Estimates the memory of one GPU in a DMD or TDM training or of an avatar, from sizes alone, line by line.

    python scripts/estimate_memory.py                          # the table of docs/training.md, with the arithmetic
    python scripts/estimate_memory.py avatar                   # that of docs/avatar.md: S2V 14B on 1 to 5 GPUs
    python scripts/estimate_memory.py tdm                      # that of docs/training.md for TDM by LoRA on two GPUs
    python scripts/estimate_memory.py --student t2v-14B --teacher t2v-14B --ranks 8 --sequence 8

Nothing is run. Counted: weights, gradients, optimiser and average as `utils/parallel/fsdp.py` holds them, the gathered
blocks, the keys and values that a rollout keeps, what backward needs with checkpointed blocks, encoders.
Not counted: the allocator's fragmentation and the library's own buffers, some 3-6 GB by experience of others.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.measure.memory import BF16, FP32, TEXT_ENCODER, block_inputs, count, inside_block, part  # noqa: E402
from utils.door import check_output, door  # noqa: E402

CASES = (
    ("t2v-1.3B", "t2v-14B", 8, 1, False),
    ("t2v-1.3B", "t2v-14B", 64, 1, False),
    ("t2v-14B", "t2v-14B", 8, 8, False),
    ("t2v-14B", "t2v-14B", 8, 8, True),
    ("t2v-14B", "t2v-14B", 32, 4, False),
    ("t2v-14B", "t2v-14B", 64, 1, False),
)
LORA_RANK = 256


@dataclass(frozen=True)
class Case:
    """Describes a DMD training: student (= critic), teacher, GPUs, GPUs that share a sample, LoRA, lengths."""

    student: str
    teacher: str
    ranks: int
    sequence: int
    lora: bool = False
    shard_text: bool = True
    frames: int = 21
    chunk: int = 3


@door("estimate_memory.py")
def main(arguments: list[str] | None = None) -> int:
    """Prints one case, or writes the table's record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=("training", "tdm", "avatar"), default="training")
    parser.add_argument("--student", help="t2v-1.3B, t2v-14B, ... (default: the table's cases)")
    parser.add_argument("--teacher", default="t2v-14B")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--sequence", type=int, default=1, help="ranks that share one sample")
    parser.add_argument("--lora", action="store_true", help=f"adapters of rank {LORA_RANK} on student and critic")
    parser.add_argument("--whole_text", action="store_true", help="layout.shard_text=false")
    parser.add_argument(
        "--output", type=Path, help="default: docs/results/memory.json, memory_tdm.json, memory_avatar.json"
    )
    flags = parser.parse_args(arguments)
    from utils.atomic import write_json

    name = "memory" if flags.kind == "training" else f"memory_{flags.kind}"
    flags.output = flags.output or Path(f"docs/results/{name}.json")
    if flags.kind != "training":
        return fixed(flags)
    check(flags)
    if not flags.student:
        check_output(flags.output)
    if flags.student:
        sizes = (flags.student, flags.teacher, flags.ranks, flags.sequence)
        cases = [Case(*sizes, flags.lora, not flags.whole_text)]
    else:
        cases = [Case(*case) for case in CASES]
    rows = []
    for case in cases:
        parts = estimate(case)
        rows.append({**vars(case), "parts": parts, "total": sum(p["GB"] for p in parts)})
        show(str(case), rows[-1])
    if not flags.student:
        write_json(flags.output, {"command": "python scripts/estimate_memory.py", "rows": rows})
    return 0


def fixed(flags: argparse.Namespace) -> int:
    """Prints and writes the rows of an avatar or of TDM. Errors: ValueError for flags of a DMD training."""
    if flags.student or flags.lora or flags.whole_text:
        raise ValueError(f"{flags.kind} has layouts of its own; leave out --student, --lora and --whole_text")
    from scripts.measure import avatar_memory, tdm_memory
    from utils.atomic import write_json

    check_output(flags.output)
    sums = avatar_memory if flags.kind == "avatar" else tdm_memory
    made = sums.rows()
    for row in made:
        show(sums.title(row), row)
    write_json(flags.output, {"command": f"python scripts/estimate_memory.py {flags.kind}", "rows": made})
    return 0


def show(title: str, row: dict) -> None:
    """Prints a row, part by part."""
    print(f"\n{title}")
    for line in row["parts"]:
        print(f"  {line['GB']:8.2f} GB  {line['what']}: {line['sum']}")
    verdict = {True: ": fits", False: ": does not fit"}.get(row.get("fits"), "")
    print(f"  {row['total']:8.2f} GB  sum{verdict}")


def check(flags: argparse.Namespace) -> None:
    """Raises ValueError for models that are not there, and for ranks that cannot share a sample."""
    from wan.family import find_published
    from wan.geometry import Geometry

    for name in filter(None, (flags.student, flags.teacher)):
        find_published(name)
    if min(flags.ranks, flags.sequence) < 1 or flags.ranks % flags.sequence:
        raise ValueError(f"{flags.sequence} of {flags.ranks} ranks cannot share a sample; write a divisor")
    spec = find_published(flags.student or flags.teacher)
    shared = {"heads": spec.transformer.num_heads, "tokens of a frame": Geometry.of(spec, 0, 0).frame_tokens}
    for what, number in shared.items():
        if number % flags.sequence:
            raise ValueError(f"{flags.sequence} ranks cannot share the {number} {what} of {spec.name}")


def estimate(case: Case) -> list[dict]:
    """Returns the parts {what, sum (the arithmetic), GB} of one GPU's memory."""
    student, block = count(case.student)
    frozen, teacher_block = count(case.teacher)
    text = TEXT_ENCODER * BF16 / (case.ranks if case.shard_text else 1)
    return [
        *trained_weights(case, student),
        part("teacher", frozen * BF16 / case.ranks, f"{frozen / 1e9:.2f}e9 x {BF16} bytes / {case.ranks}"),
        part("gathered weights", gathered(student, block, teacher_block), "two blocks, one block's gradient, the ends"),
        *activations(case),
        part("text encoder", text, f"{TEXT_ENCODER / 1e9:.2f}e9 x {BF16}" + case.shard_text * f" / {case.ranks}"),
        *([] if case.shard_text else [kept_prompts(case)]),
    ]


def kept_prompts(case: Case) -> dict:
    """Returns the embeddings that a rank with an encoder of its own keeps."""
    from trainer.roles import CACHED_PROMPTS
    from wan.family import find_published

    sizes = find_published(case.student).transformer
    terms = f"{CACHED_PROMPTS} x {sizes.text_len} tokens x {sizes.text_dim} x {BF16}"
    return part("kept prompts", CACHED_PROMPTS * sizes.text_len * sizes.text_dim * BF16, terms)


def trained_weights(case: Case, student: int) -> list[dict]:
    """Returns what student and critic hold: gradients are there for one of the two at a time."""
    from wan.family import find_published

    number, parts = student, []
    if case.lora:
        sizes = find_published(case.student).transformer
        attention, feed = 8 * 2 * sizes.dim, 2 * (sizes.dim + sizes.ffn_dim)
        number = sizes.num_layers * LORA_RANK * (attention + feed)
        base = 2 * student * BF16 / case.ranks
        parts.append(part("frozen bases", base, f"2 x {student / 1e9:.2f}e9 x {BF16} / {case.ranks}"))
    kept = 2 * number * (FP32 + 2 * FP32) / case.ranks
    terms = f"2 x {number / 1e9:.2f}e9 x {3 * FP32} bytes (master, two moments) / {case.ranks}"
    parts.append(part("student and critic", kept, terms))
    for what in ("gradients of one of them", "average of the student"):
        parts.append(part(what, number * FP32 / case.ranks, f"{number / 1e9:.2f}e9 x {FP32} / {case.ranks}"))
    return parts


def gathered(network: int, block: int, teacher_block: int) -> float:
    """Returns bytes: this block and the next one in bf16, one block's gradient in fp32, embeddings and head."""
    return 2 * max(block, teacher_block) * BF16 + block * FP32 + (network % block) * BF16


def activations(case: Case) -> list[dict]:
    """Returns keys and values of the rollout, and the larger of the two backwards (generator, critic)."""
    from wan.family import find_published
    from wan.geometry import Geometry

    spec = find_published(case.student)
    sizes, unit = spec.transformer, Geometry.of(spec, 0, 0).frame_tokens
    video, chunk = case.frames * unit // case.sequence, case.chunk * unit // case.sequence
    kept = 2 * video * sizes.dim * BF16 * sizes.num_layers
    return [
        part("keys and values", kept, f"2 x {video} tokens x {sizes.dim} x {BF16} bytes x {sizes.num_layers} layers"),
        block_inputs(video, sizes),
        inside_block("inside one block", video, sizes, f" (the critic's; generator {chunk})"),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
