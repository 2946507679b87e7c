"""Tries bad inputs on the real doors: `python -m tests.faults [--only WORDS] [--every N] [--list]`.

Prints each wrong answer as it comes, then figures: refused clearly / right / wrong, by kind. Wrong is a traceback,
a death by signal, no end within a minute, another exit status than 0 or 2, a refusal that does not name the input, a
bad input that is accepted, a good one that is refused, half-written files. Exit status 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.faults import data, lists, media, places, resumes, tools, values, weights
from tests.faults.attempts import preload, run_all
from tests.faults.inputs import Inputs, make
from tests.faults.judge import CLEAR, RIGHT, WRONG, Fault, judge
from utils.log import progress

TABLES = (values, lists, weights, media, data, resumes, places, tools)


def all_faults(inputs: Inputs) -> Iterator[Fault]:
    """Yields every fault of every table."""
    for table in TABLES:
        yield from table.faults(inputs)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if every answer was right, else 1."""
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="kinds or names that contain one of these words")
    parser.add_argument("--workers", type=int, default=2, help="attempts at a time")
    parser.add_argument("--every", type=int, default=1, help="of each kind only every so-many-th, the first included")
    parser.add_argument("--list", action="store_true", help="print kinds and names, run nothing")
    parser.add_argument("--verbose", action="store_true", help="print each answer")
    flags = parser.parse_args(arguments)
    preload()
    with tempfile.TemporaryDirectory() as folder:
        inputs = make(Path(folder) / "good")
        chosen = choose(all_faults(inputs), flags.only, flags.every)
        if flags.list:
            print("\n".join(f"{fault.kind}: {fault.name} ({fault.door})" for fault in chosen))
            return 0
        return report(chosen, Path(folder) / "tries", flags)


def choose(faults: Iterable[Fault], words: list[str], every: int) -> list[Fault]:
    """Returns the faults whose kind, name or door holds one of the words; of each kind every `every`-th."""
    kinds, chosen = Counter(), []
    for fault in faults:
        if words and not any(word in f"{fault.kind}: {fault.name} {fault.door}" for word in words):
            continue
        if kinds[fault.kind] % every == 0:
            chosen.append(fault)
        kinds[fault.kind] += 1
    return chosen


def report(chosen: list[Fault], folder: Path, flags: argparse.Namespace) -> int:
    """Runs the faults and prints what came out."""
    counts, slowest, begun = Counter(), (0.0, ""), time.monotonic()
    with progress(total=len(chosen), label="bad inputs", unit="input") as bar:
        for fault, attempt, answer in run_all(chosen, folder, flags.workers):
            verdict, why = judge(fault.door, attempt, answer)
            counts[fault.kind, verdict] += 1
            slowest = max(slowest, (answer.seconds, f"{fault.kind}: {fault.name}"))
            if verdict == WRONG or flags.verbose:
                bar.clear()
                print(f"{verdict}: {fault.kind}: {fault.name}: {fault.door}: {why[:400]}", flush=True)
            bar.update()
    print(f"\n{'kind':24}{CLEAR:>18}{RIGHT:>8}{WRONG:>8}")
    kinds = list(dict.fromkeys(fault.kind for fault in chosen))
    for kind in kinds:
        print(f"{kind:24}{counts[kind, CLEAR]:18}{counts[kind, RIGHT]:8}{counts[kind, WRONG]:8}")
    sums = {verdict: sum(counts[kind, verdict] for kind in kinds) for verdict in (CLEAR, RIGHT, WRONG)}
    print(f"{f'{len(chosen)} bad inputs':24}{sums[CLEAR]:18}{sums[RIGHT]:8}{sums[WRONG]:8}")
    print(f"{time.monotonic() - begun:.0f} s; the slowest took {slowest[0]:.1f} s ({slowest[1]})")
    return 1 if sums[WRONG] else 0


if __name__ == "__main__":
    raise SystemExit(main())
