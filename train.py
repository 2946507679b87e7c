"""Trains by a recipe: `python train.py --config_path configs/train/digits_teacher.yaml [key=value ...]`."""

import argparse
import sys
from pathlib import Path

from utils import log


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("train.py", description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--config_path", required=True, help="a recipe of configs/train/")
    parser.add_argument("--logdir", default="", help="the run's folder (default: runs/<name of the recipe>)")
    parser.add_argument("--no-auto-resume", action="store_true", help="start anew where a checkpoint exists")
    parser.add_argument("--print_config", action="store_true", help="show every value and where it comes from")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. steps=100 trainer.source.batch=4")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 2 bad input or a full disk, 130 interrupted."""
    flags = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        from trainer.config import load_recipe
        from utils.config import render

        config, origins = load_recipe(flags.config_path, flags.overrides)
        if flags.print_config:
            print(render(config, origins))
            return 0
        from trainer.build import build

        logdir = flags.logdir or config.logdir or Path("runs") / Path(flags.config_path).stem
        log.setup(file=Path(logdir) / "log.txt")
        build(config, logdir).fit(resume=not flags.no_auto_resume)
    except (ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted; run again to go on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
