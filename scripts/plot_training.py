"""Draws the curves of a run and records its facts: `python scripts/plot_training.py runs/digits_teacher RECIPE`.

Writes docs/images/<name>_training.png and docs/results/<name>_training.json.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.experiments.runs import read_metrics, smooth
from utils.door import check_output, door  # noqa: E402


@door("plot_training.py")
def main(arguments: list[str] | None = None) -> int:
    """Reads metrics.jsonl, plots every curve against wall time, writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("recipe")
    parser.add_argument("--note", default="", help="what a reader must know of this run")
    flags = parser.parse_args(arguments)
    for path in (f"docs/images/{flags.run.name}_training.png", f"docs/results/{flags.run.name}_training.json"):
        check_output(path)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import torch

    from trainer.config import load_recipe
    from utils.atomic import write_json

    rows = read_metrics(flags.run)
    if not rows:
        raise ValueError(f"{flags.run} holds no metrics.jsonl; give a run folder of train.py")
    names = [k for k in rows[0] if k not in ("step", "seconds", "sigma", "grad_norm")]
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3), squeeze=False)
    final = {}
    for axis, name in zip(axes[0], names, strict=True):
        values = [r[name] for r in rows]
        averaged = smooth(values)
        axis.plot([r["step"] for r in rows], values, alpha=0.3)
        axis.plot([r["step"] for r in rows], averaged)
        axis.set_title(f"{flags.run.name}: {name}")
        axis.set_xlabel("step")
        final[name] = averaged[-1]
    figure.tight_layout()
    figure.savefig(f"docs/images/{flags.run.name}_training.png", dpi=80)
    facts = {
        "recipe": flags.recipe,
        "steps": load_recipe(flags.recipe)[0].steps,
        "minutes": rows[-1]["seconds"] / 60,
        "final": final,
    }
    facts |= {"hardware": f"1 CPU thread, {platform.machine()}", "torch": torch.__version__, "note": flags.note}
    write_json(f"docs/results/{flags.run.name}_training.json", facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
