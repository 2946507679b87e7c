"""Turns a YAML of Self-Forcing or LongLive into a recipe of ours, and names all that it assumes and drops, and why.

Live-Avatar's `s2v_causal_sft.yaml` too, which says what is published of its training.

    python scripts/migrate_config.py OLD.yaml                       # shows the recipe
    python scripts/migrate_config.py OLD.yaml NEW.yaml --gpus 8     # writes it; theirs ran on 8 GPUs
    python scripts/migrate_config.py --kind infer self_forcing_dmd.yaml configs/infer/mine.yaml

A file is taken for a training if it says how to train (`trainer`, `lr`, ...), else for a generation. It means what it
meant to their programs: it is read by YAML 1.1, over the `default_config.yaml` next to it (--defaults names another),
and its batch is one GPU's. The score guidances of DMD, CausVid and SiD are written cond + s (cond - uncond) there and
uncond + w (cond - uncond) here: they and nothing else are shifted, by one. A key that neither ancestor reads is an
error. The file that wandb keeps of a run (`key: {value: ...}`) will do.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.migrate.blame import Maker, explain
from scripts.migrate.keys import DEFAULT_KEYS, GENERATION, GENERATION_KEYS, TRAINING, TRAINING_KEYS
from scripts.migrate.old import Old
from utils.door import check_output, door

TRAINING_SIGNS = ("trainer", "distribution_loss", "lr")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("migrate_config.py", description=__doc__, formatter_class=form)
    parser.add_argument("old", type=Path, metavar="OLD.yaml")
    parser.add_argument("new", type=Path, nargs="?", metavar="NEW.yaml")
    parser.add_argument("--kind", choices=("train", "infer"), help="what the recipe is for")
    parser.add_argument("--gpus", type=int, metavar="N", help="how many GPUs theirs ran on: batch_size is one's")
    parser.add_argument("--defaults", type=Path, metavar="FILE", help="their default_config.yaml")
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args(arguments)


@door("migrate_config.py")
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 2 bad input."""
    flags = parse(arguments)
    if flags.new and flags.new.exists() and not flags.overwrite:
        raise ValueError(f"{flags.new} exists; write --overwrite or another name")
    if flags.gpus is not None and flags.gpus < 1:
        raise ValueError(f"--gpus is {flags.gpus}; write 1 or more")
    text, old = migrate(flags.old, flags.kind, flags.gpus, flags.defaults)
    if flags.new:
        from utils.atomic import atomic_write

        check_output(flags.new)
        atomic_write(flags.new, text.encode())
    else:
        print(text, end="")
    print("\n".join(notes(old)), file=sys.stderr)
    return 0


def migrate(
    path: Path, kind: str | None = None, gpus: int | None = None, defaults: Path | None = None
) -> tuple[str, Old]:
    """Returns (the recipe's text, what was read: with all that is assumed and dropped).

    Errors: ValueError for a file that is not YAML, keys that neither ancestor reads, values that have no counterpart.
    """
    import yaml

    from scripts.migrate.avatar import avatar_recipe, is_avatar
    from scripts.migrate.read import read_old
    from scripts.migrate.recipe import infer_recipe, train_recipe

    old = read_old(path, defaults)
    old.gpus = gpus
    avatar = is_avatar(old)
    kind = kind or ("train" if avatar or any(key in old.tree for key in TRAINING_SIGNS) else "infer")
    if avatar and kind == "infer":
        raise ValueError(f"{path} is Live-Avatar's training; its generation is inference.py --training_config {path}")
    if avatar:
        maker, others = avatar_recipe, {}
    elif kind == "train":
        maker, others = train_recipe, dict.fromkeys(GENERATION_KEYS, GENERATION)
    else:
        maker, others = infer_recipe, dict.fromkeys(TRAINING_KEYS, TRAINING)
    recipe = maker(old)
    old.finish(others)
    head = [f"# Migrated from {path.name}.", *(f"# {note}" for note in notes(old))]
    body = yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=110)
    check(recipe, kind, old, maker)
    return "\n".join(head) + "\n" + body, old


def notes(old: Old) -> list[str]:
    """Returns a line for each thing that was assumed, one for the keys that the file does not hold, and the drops."""
    lines = [f"assumed {what}: {taken}" for what, taken in old.assumed.items()]
    silent = [f"{key} {json.dumps(value)}" for key, value in old.silent.items() if value or key in DEFAULT_KEYS]
    lines += [f"assumed, as their programs do without the key: {', '.join(silent)}"] if silent else []
    return lines + [f"dropped {key}: {reason}" for key, reason in old.dropped.items()]


def check(recipe: dict[str, Any], kind: str, old: Old, maker: Maker) -> None:
    """Raises ValueError, with the ancestor's key, if the recipe does not load."""
    import yaml

    if kind == "train":
        from trainer.config import load_recipe
    else:
        from pipeline.config import load_recipe
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "migrated.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False, default_flow_style=False))
        try:
            load_recipe(path)
        except ValueError as error:
            raise explain(error, path, old, maker) from error


if __name__ == "__main__":
    raise SystemExit(main())
