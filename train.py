"""Trains by a recipe: `python train.py --config_path configs/train/digits_teacher.yaml [key=value ...]`.

Every knob of the recipe can be given as key=value, e.g. `steps=100 trainer.source.batch=4 preview.every=200`.
Under torchrun the ranks share every batch. A run that was stopped goes on from its newest checkpoint.
"""

import argparse
import os
import sys
from pathlib import Path

try:
    from trainer import blade_flags
    from utils import log
    from utils.door import door
    from utils.flags import read_flags
    from utils.parallel import ranks
except ImportError as error:
    if (error.name or "").partition(".")[0] != "utils":
        raise
    hidden = f"another module named utils hides this project's ({error})"
    raise SystemExit(f"train.py: {hidden}; run from the checkout, or take the other off sys.path") from error

# flag -> (the key=value that it stands for, help)
SWITCHES = {
    "--disable-wandb": ("track.wandb=false", "no wandb, whatever the recipe says"),
    "--no_save": ("save=false", "write neither checkpoints nor the exported model; metrics are kept"),
    "--no_visualize": ("preview.every=0", "make no preview videos"),
}
RECIPES = Path(__file__).parent / "configs" / "train"
ADVICE = "--help lists all flags; knobs of the recipe are key=value"
RENAMED = blade_flags.RENAMED | {
    "--no-one-logger": "no flag: there is no OneLogger here",
    "--local_rank": "torchrun, which sets the rank itself",
    "--local-rank": "torchrun, which sets the rank itself",
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line. Flags of the ancestors that mean nothing here are refused with what to do instead."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("train.py", description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--config_path", required=True, help="a recipe of configs/train/")
    parser.add_argument("--logdir", default="", help="the run's folder (default: runs/<name of the recipe>)")
    parser.add_argument(
        "--wandb-save-dir",
        default="",
        help="log to wandb, its files in this folder (track.wandb_mode: offline or online)",
    )
    for flag, (_, text) in SWITCHES.items():
        parser.add_argument(flag, action="store_true", help=text)
    parser.add_argument("--no-auto-resume", action="store_true", help="start anew; an earlier run is set aside")
    parser.add_argument(
        "--dry_run", action="store_true", help="check the recipe, build everything, take one step, write nothing"
    )
    parser.add_argument("--print_config", action="store_true", help="show every value and where it comes from")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any knob of the recipe")
    return read_flags(parser, arguments, RENAMED, ADVICE, RECIPES)


def overrides(flags: argparse.Namespace) -> list[str]:
    """Returns the flags that were given as key=value, then the overrides themselves."""
    from utils.config.text import format_value

    given = [text for flag, (text, _) in SWITCHES.items() if vars(flags)[flag.lstrip("-").replace("-", "_")]]
    if flags.wandb_save_dir:
        given.append(f"track.wandb_dir={format_value(flags.wandb_save_dir)}")
        if not flags.disable_wandb:
            given.append("track.wandb=true")
    return given + flags.overrides


def train(flags: argparse.Namespace) -> None:
    """Does what the flags ask for. Errors: ValueError, OSError."""
    from trainer.config import load_recipe
    from utils.config.text import render

    config, origins = load_recipe(flags.config_path, overrides(flags))
    if flags.print_config:
        print(render(config, origins))
        return
    from trainer.build import build, try_step

    logdir = os.path.expanduser(flags.logdir or config.logdir or Path("runs") / Path(flags.config_path).stem)
    log.setup(file=None if flags.dry_run else Path(logdir) / "log.txt")
    loop = build(config, logdir, origins)
    if not flags.dry_run:
        loop.fit(resume=not flags.no_auto_resume)
    elif (message := try_step(loop)) and ranks.rank() == 0:
        print(f"dry run: {message}")
    ranks.shutdown()


@door("train.py", interrupted="run again to go on from the last checkpoint")
def main(arguments: list[str] | None = None) -> None:
    """Ends with status 0 (done), 2 (bad input or a full disk) or 130 (interrupted)."""
    train(parse(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    raise SystemExit(main())
