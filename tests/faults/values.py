"""Bad values of every knob, through the doors: `key=value` of generation and training."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import yaml

from tests.architecture.source import ROOT
from tests.faults.inputs import Inputs
from tests.faults.judge import DONE, EITHER, REFUSED, Attempt, Fault

BAD = (".nan", ".inf", "-.inf", "-1", "0", str(2**63), "1e400", "[]", "{}", "''", "[[1]]", "{a: 1}", "0.0001", "yes")
DRAWN = 90  # of each door's pairs of knob and value
# A place to write or read is not a bad value, and these make an attempt another one.
LEFT_OUT = ("output.folder", "logdir", "model.path")

ALWAYS = {
    "inference.py": [
        ("threads=100000", REFUSED, "threads"),
        ("output.fps=0.0001", REFUSED, "fps"),
        ("generation.cache.window_frames=" + str(10**30), REFUSED, "window_frames"),
        ("data.switch_frames=" + "[" * 3000, REFUSED, "switch_frames"),
        ("seed=" + "1" * 5000, REFUSED, "seed"),
        ("num_output_frames=9223372036854775807", REFUSED, "num_output_frames"),
        ("height=1000000", REFUSED, "height"),
        ("height=33", REFUSED, "height"),
        ("output.crf=52", REFUSED, "crf"),
        ("model.dtype=fp8", REFUSED, "dtype"),
        ("pipeline.name=causel", REFUSED, "causel"),
        ("sampler.solver=none", REFUSED, "solver"),
        ("modle.path=x", REFUSED, "modle"),
        ("=3", REFUSED, "="),
        ("seed", REFUSED, "seed"),
        ("seed=3=4", REFUSED, "seed"),
        ("seed=!!python/object/apply:os.system ['true']", REFUSED, "seed"),
        ("num_samples=2", DONE, ""),
        ("seed=9223372036854775807", DONE, ""),
        ("num_output_frames=1", DONE, ""),
    ],
    "train.py": [
        ("trainer.optim.lr=nan", REFUSED, "lr"),
        ("trainer.optim.lr=1e30", REFUSED, ""),
        ("trainer.optim.decay=.inf", REFUSED, "decay"),
        ("trainer.source.batch=0", REFUSED, "batch"),
        ("trainer.source.frames=-4", REFUSED, "frames"),
        ("trainer.generator.lora.rank=" + str(10**30), REFUSED, "rank"),
        ("trainer.loss.mode=teacher", REFUSED, "mode"),
        ("checkpoint.every=-1", REFUSED, "every"),
        ("denoising_step_list=[1000,750,500,250]", REFUSED, "denoising_step_list"),
        ("model_kwargs.local_attn_size=21", REFUSED, "local_attn_size"),
        ("trainer.ema.decay=2", REFUSED, "decay"),
        ("trainer.source.batch=1", DONE, ""),
        ("checkpoint.every=1", DONE, ""),
    ],
}


def faults(inputs: Inputs) -> Iterator[Fault]:
    """Yields bad values of both doors: some that are always tried, and drawn pairs of knob and value."""
    for door, kind in (("inference.py", "infer"), ("train.py", "train")):
        for text, expect, name in ALWAYS[door]:
            yield Fault(f"value {kind}", text[:60], door, partial(attempt, inputs, door, text, expect, name))
        pairs = [(knob, value) for knob in knobs(kind) for value in BAD]
        for knob, value in random.Random(kind).sample(pairs, DRAWN):
            yield Fault(
                f"value {kind}", text := f"{knob}={value}", door, partial(attempt, inputs, door, text, EITHER, knob)
            )


def knobs(kind: str) -> list[str]:
    """Returns the keys of all values that an empty recipe resolves to."""
    defaults = yaml.safe_load((ROOT / "configs/default_config.yaml").read_text())
    found = [*_keys(defaults["common"]), *_keys(defaults[kind])]
    return [key for key in found if key not in LEFT_OUT]


def attempt(inputs: Inputs, door: str, text: str, expect: str, name: str, folder: Path) -> Attempt:
    """Returns the attempt with one `key=value`. A refusal says `name`, its last part, its group, or the word given."""
    group, _, leaf = name.rpartition(".")
    value = text.partition("=")[2]
    names = tuple(word for word in (leaf, group, value if value.isalpha() else "") if word)
    if door == "train.py":
        return Attempt(inputs.train(folder, text), names, expect, folder / "run")
    return Attempt(inputs.generate(folder, text), names, expect, folder / "out")


def _keys(tree: dict, before: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"
