"""Turns a YAML of Self-Forcing or LongLive into a recipe of ours, and names every key it drops and why.

    python scripts/migrate_config.py OLD.yaml                 # shows the recipe
    python scripts/migrate_config.py OLD.yaml NEW.yaml        # writes it
    python scripts/migrate_config.py --kind infer self_forcing_dmd.yaml configs/infer/mine.yaml

A file is taken for a training if it says how to train (`trainer`, `lr`, ...), else for a generation. The score
guidances of DMD, CausVid and SiD are written cond + s (cond - uncond) there and uncond + w (cond - uncond) here:
they and nothing else are shifted, by one. A key that neither ancestor reads is an error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TRAINING_SIGNS = ("trainer", "distribution_loss", "lr")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("migrate_config.py", description=__doc__, formatter_class=form)
    parser.add_argument("old", type=Path, metavar="OLD.yaml")
    parser.add_argument("new", type=Path, nargs="?", metavar="NEW.yaml")
    parser.add_argument("--kind", choices=("train", "infer"), help="what the recipe is for")
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 2 bad input."""
    flags = parse(arguments)
    try:
        if flags.new and flags.new.exists() and not flags.overwrite:
            raise ValueError(f"{flags.new} exists; write --overwrite or another name")
        text, dropped = migrate(flags.old, flags.kind)
        if flags.new:
            from utils.atomic import atomic_write

            atomic_write(flags.new, text.encode())
        else:
            print(text, end="")
    except (ValueError, OSError) as error:
        print(f"migrate_config.py: {error}", file=sys.stderr)
        return 2
    for key, reason in dropped.items():
        print(f"dropped {key}: {reason}", file=sys.stderr)
    return 0


def migrate(path: Path, kind: str | None = None) -> tuple[str, dict[str, str]]:
    """Returns (the recipe's text, dropped key -> reason).

    Errors: ValueError for a file that is not YAML, keys that neither ancestor reads, values that have no counterpart.
    """
    import yaml

    from scripts.migrate.keys import GENERATION, GENERATION_KEYS, TRAINING, TRAINING_KEYS, Old
    from scripts.migrate.recipe import infer_recipe, train_recipe
    from utils.config.layer import read_yaml

    old = Old(read_yaml(path).tree, str(path))
    kind = kind or ("train" if any(key in old.tree for key in TRAINING_SIGNS) else "infer")
    if kind == "train":
        recipe, others = train_recipe(old), dict.fromkeys(GENERATION_KEYS, GENERATION)
    else:
        recipe, others = infer_recipe(old), dict.fromkeys(TRAINING_KEYS, TRAINING)
    old.finish(others)
    head = [f"# Migrated from {path.name}."]
    head += [f"# dropped {key}: {reason}" for key, reason in old.dropped.items()]
    text = "\n".join(head) + "\n" + yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=110)
    check(text, kind)
    return text, old.dropped


def check(text: str, kind: str) -> None:
    """Raises ValueError if the recipe does not load."""
    if kind == "train":
        from trainer.config import load_recipe
    else:
        from pipeline.config import load_recipe
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "migrated.yaml"
        path.write_text(text)
        load_recipe(path)


if __name__ == "__main__":
    raise SystemExit(main())
