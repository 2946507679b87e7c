"""A new experiment: does a fifth denoising step help? One file says what is run, measured and shown.

    python tests/examples/experiment.py --dry_run

The engine (scripts/experiments/) trains what is missing, makes the videos, measures and records them, skips what is
recorded and resumes what was interrupted. Own: the plan, `read` and `show`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.experiments import cli, figures
from scripts.experiments.plan import ROOT, Case, Measure, Plan, Training, VideoSet
from scripts.experiments.records import read_record
from scripts.measure.markdown import mean_and_half

STEPS = {"four": "[1000, 750, 500, 250]", "five": "[1000, 800, 600, 400, 200]"}  # {row: generation.steps.steps}


def make_plan() -> Plan:
    """Returns one training and a row for each number of steps."""
    trainings = {"dmd": Training("configs/train/digits_self_forcing_dmd.yaml", updates=100)}
    measure = Measure(("scripts/evaluate.py", "digits", "--videos", "{videos}", "--prompts", "{prompts}"))
    cases = tuple(
        Case(
            row=row,
            name=f"videos/{row}",
            folder=row,
            training="dmd",
            recipe="configs/infer/digits_few_step.yaml",
            videos=VideoSet("prompts/digits_32.txt", 8),  # the first eight prompts
            frames=9,
            measures=(measure,),
            record=row,
            overrides=(f"generation.steps.steps={steps}",),
        )
        for row, steps in STEPS.items()
    )
    return Plan("toy", trainings, cases, read)


def read(case: Case, results: list[dict]) -> tuple[int, dict]:
    """Returns the number of measured videos, and what the record keeps of the result of scripts/evaluate.py."""
    (row,) = results[0]["rows"].values()
    return row["clips"], {"metrics": row["metrics"]}


def show(root: Path) -> str:
    """Returns the table; what was not run says how to."""
    rows = {row: read_record(root / f"docs/results/toy/{row}.json") for row in STEPS}
    command = "python tests/examples/experiment.py --rows"
    lines = figures.fill(["steps", "digit"], rows, lambda row: [row], command, digit_cell)
    return "\n".join(lines)


def digit_cell(row: str, record: dict) -> list[str]:
    """Returns the share of frames that show the digit of the prompt."""
    return [mean_and_half(record["metrics"]["digit"])]


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Returns the exit status."""
    parser = cli.make_parser("experiment.py", __doc__, STEPS, "toy")
    flags = parser.parse_args(arguments)
    return cli.run(parser, flags, root, lambda: (make_plan(), {}))


if __name__ == "__main__":
    raise SystemExit(main())
