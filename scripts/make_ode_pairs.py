"""Records a teacher's ODE trajectories at a student's noise levels, for the loss `ode`.

    python scripts/make_ode_pairs.py --teacher configs/infer/digits_teacher.yaml \\
        --student configs/train/digits_ode_init.yaml --prompts prompts/digits_all.txt --pairs 960 --shift 3 --guidance 3
    torchrun --nproc_per_node=8 scripts/make_ode_pairs.py --teacher configs/infer/wan.yaml \\
        --student configs/train/ode_init.yaml --prompts prompts.txt

The teacher (any bidirectional model) comes from a recipe of configs/infer/ with `key=value` overrides; noise levels,
length and folder come from the student's recipe, so that the two cannot disagree. Resumable: shards that are there
are kept, and a shard appears whole. Ranks share the shards; a pair does not depend on how many there are.
Euler, 48 steps, shift 8, guidance 6 (uncond + w (cond - uncond)) are those of Self-Forcing's script.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import log
from utils.door import check_folder, door  # noqa: E402
from utils.parallel import ranks

RECORD = "pairs.json"  # what made a folder of pairs


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("make_ode_pairs.py", description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--teacher", required=True, metavar="RECIPE", help="a recipe of configs/infer/")
    parser.add_argument("--student", required=True, metavar="RECIPE", help="a recipe of configs/train/ with loss ode")
    parser.add_argument("--prompts", required=True, help="a text file, one per line")
    parser.add_argument("--output", default="", help="the folder of shards (default: the student's source.path)")
    parser.add_argument("--pairs", type=int, default=0, help="how many; prompts go round (default: one per prompt)")
    parser.add_argument("--num_steps", type=int, default=48, help="Euler steps; the student's levels are added")
    parser.add_argument("--shift", type=float, default=8.0, help="of the teacher's grid")
    parser.add_argument("--guidance", type=float, default=6.0, help="w of uncond + w (cond - uncond)")
    parser.add_argument("--batch", type=int, default=1, help="pairs made together")
    parser.add_argument("--shard_pairs", type=int, default=8, help="pairs in a shard")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the teacher, e.g. model.path=DIR")
    return parser.parse_intermixed_args(arguments)


@door("make_ode_pairs.py", "run again to go on with the next shard")
def main(arguments: list[str] | None = None) -> None:
    """Ends with status 0 (done), 2 (bad input or a full disk) or 130 (interrupted)."""
    flags = parse(arguments)
    log.setup()
    make(flags)


def make(flags: argparse.Namespace) -> None:
    """Makes this rank's shards that are not there yet."""
    import torch

    from pipeline.bundle import load_bundle
    from pipeline.config import load_recipe
    from utils.data.latents import shard_path
    from utils.data.prompts import read_prompts
    from utils.data.provenance import missing_shards, remember

    if min(flags.batch, flags.shard_pairs) < 1 or flags.pairs < 0:
        raise ValueError("--batch and --shard_pairs must be at least 1, --pairs 0 (one per prompt) or more")
    teacher, _ = load_recipe(flags.teacher, flags.overrides)
    source, sigmas = read_student(flags.student)
    prompts = [line.prompt for line in read_prompts(flags.prompts)]
    folder, count = Path(flags.output or source.path), flags.pairs or len(prompts)
    check_folder(folder)
    facts = made_from(flags, teacher, source, sigmas, prompts)
    remember(folder, facts, RECORD)
    mine = ranks.split(range(-(-count // flags.shard_pairs)))
    if all(shard_path(folder, number).exists() for number in mine):
        return
    if teacher.threads:
        torch.set_num_threads(teacher.threads)
    bundle = load_bundle(teacher.model, teacher.vae, teacher.text)
    remember(folder, {**facts, "weights": bundle.weights_hash}, RECORD)
    maker = Maker(flags, teacher, bundle, source.frames, sigmas)
    for number in missing_shards(folder, mine):
        first = number * flags.shard_pairs
        maker.shard(folder, number, range(first, min(first + flags.shard_pairs, count)), prompts)


def read_student(path: str):
    """Returns (source, sigmas) of a training recipe. Errors: ValueError if its loss is not `ode`."""
    from trainer.config import load_recipe
    from wan.schedule import step_sigmas

    config, _ = load_recipe(path)
    method = config.trainer
    if method.name != "regress" or method.loss.name != "ode" or method.source.name != "ode_pairs":
        raise ValueError(f"{path} does not train by the loss ode from ode_pairs; give a recipe like ode_init.yaml")
    steps = config.generation.steps
    return method.source, step_sigmas(steps.steps, steps.shift, steps.warp, steps.clock)


def made_from(flags, teacher, source, sigmas, prompts: list[str]) -> dict:
    """Returns what decides the pairs, as the folder remembers it."""
    import hashlib

    from utils.config.text import to_dict

    return {
        "sigmas": list(sigmas),
        "frames": source.frames,
        "model": to_dict(teacher.model),
        "size": [teacher.height, teacher.width],
        "negative_prompt": teacher.negative_prompt,
        "prompts": hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:12],
        **{name: vars(flags)[name] for name in ("num_steps", "shift", "guidance", "shard_pairs", "seed")},
    }


class Maker:
    """Holds the teacher and its solver."""

    def __init__(self, flags: argparse.Namespace, teacher, bundle, frames: int, sigmas):
        from pipeline.trajectory import grid_with
        from utils.rng import Rng
        from wan.geometry import Geometry

        self.flags, self.teacher, self.bundle, self.sigmas = flags, teacher, bundle, sigmas
        self.walk = grid_with(sigmas, flags.num_steps, flags.shift)
        self.shape = Geometry.of(bundle.spec, teacher.height, teacher.width).latent_shape(frames)
        self.rng = Rng(flags.seed).at("ode pair")

    def shard(self, folder: Path, number: int, pairs: range, prompts: list[str]) -> None:
        """Makes and writes the pairs with these numbers; pair i takes prompt i, going round."""
        import torch

        from utils.data.pairs import write_pairs
        from utils.data.records import check_finite

        texts = [prompts[i % len(prompts)] for i in pairs]
        groups = [pairs[i : i + self.flags.batch] for i in range(0, len(pairs), self.flags.batch)]
        made = [self.batch(group, [prompts[i % len(prompts)] for i in group]).half().cpu() for group in groups]
        states = check_finite(torch.cat(made), f"shard {number} (in fp16)")
        write_pairs(folder, number, states, texts, [*self.sigmas, 0.0])

    def batch(self, pairs: range, prompts: list[str]):
        """Returns the trajectories [B, T, F, C, h, w] of some pairs."""
        from pipeline.rollout import guided
        from pipeline.trajectory import trajectory
        from wan.context import Full

        guidance = self.flags.guidance
        condition = self.bundle.condition(prompts, None if guidance == 1 else self.teacher.negative_prompt)
        predict = guided(self.bundle.denoiser, condition, [Full(), Full()], guidance)
        noise = self.rng.normal_batch(self.shape, list(pairs)).to(self.bundle.device, self.bundle.dtype)
        return trajectory(predict, noise, self.walk, self.sigmas)


if __name__ == "__main__":
    raise SystemExit(main())
