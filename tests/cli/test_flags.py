"""The command line: the ancestors' flags, unknown ones, what is said without loading anything heavy."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import inference
from pipeline.config import load_recipe
from tests.architecture.source import ROOT
from tests.architecture.test_doors import loaded_packages

HEAVY = {"torch", "diffusers", "transformers", "sklearn", "av", "imageio"}
PRINT = """
import contextlib, io, runpy
sys.argv = [{door!r}, "--config_path", {recipe!r}, "--print_config", "seed=3"]
with contextlib.redirect_stdout(io.StringIO()) as said:
    try:
        runpy.run_path({door!r}, run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
assert "seed: 3" in said.getvalue() and "command line" in said.getvalue(), said.getvalue()
"""
RECIPES = {"inference.py": "configs/infer/digits.yaml", "train.py": "configs/train/digits_teacher.yaml"}


@pytest.mark.parametrize("door", RECIPES)
def test_print_config_loads_nothing_heavy(door):
    assert loaded_packages(PRINT.format(door=door, recipe=RECIPES[door]), HEAVY) == set()


def test_help_is_quick_and_lists_every_flag():
    begin = time.process_time()
    done = subprocess.run([sys.executable, "inference.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and time.process_time() - begin < 3
    for flag in [
        *inference.VALUES,
        *inference.SWITCHES,
        inference.LORA,
        "--config_path",
        "--print_config",
        "key=value",
    ]:
        assert flag in done.stdout


def load_config(*arguments):
    """Returns the configuration that a command line gives."""
    flags = inference.parse(["--config_path", str(ROOT / "configs/infer/digits.yaml"), *arguments])
    return load_recipe(flags.config_path, inference.overrides(flags))[0]


def test_every_flag_of_self_forcing_reaches_its_knob(tmp_path):
    config = load_config(
        *("--checkpoint_path", "sf.pt", "--data_path", "images", "--output_folder", "out", "--num_output_frames", "12"),
        *("--i2v", "--use_ema", "--seed", "4", "--num_samples", "2", "--save_with_index"),
    )
    assert (config.model.checkpoint, config.model.use_ema) == ("sf.pt", True)
    assert (config.data.path, config.data.i2v) == ("images", True)
    assert (config.output.folder, config.output.save_with_index) == ("out", True)
    assert (config.num_output_frames, config.seed, config.num_samples) == (12, 4, 2)
    extended = load_config("--data_path", "a.txt", "--extended_prompt_path", "b.txt")
    assert (extended.data.path, extended.data.extended_path) == ("a.txt", "b.txt")


def test_longlives_command_line_suffices():
    assert load_config().generation.chunk == 3  # only --config_path; the rest is in the recipe


def test_our_own_flags_and_overrides_mix():
    config = load_config(
        *("seed=1", "--model", "m", "sampler.num_steps=7", "--prompt", "a b", "--seconds", "2.5"),
        *("--lora_path", "l.pt", "--noise", "n", "--checkpoint_path=c", "--overwrite", "output.gif=true"),
    )
    assert (config.seed, config.sampler.num_steps, config.data.prompt, config.seconds) == (1, 7, "a b", 2.5)
    assert (config.model.path, config.model.lora, config.model.checkpoint) == ("m", "l.pt", "c")
    assert (config.data.noise, config.output.overwrite, config.output.gif) == ("n", True, True)


def test_lora_path_takes_several_and_leaves_the_knobs(tmp_path, monkeypatch):
    config = load_config(*("seed=1", "--lora_path", "a.pt:0.5", "owner/name", "seed=2", "--seed", "3", "num_samples=4"))
    assert config.model.lora == [{"path": "a.pt", "strength": 0.5}, {"path": "owner/name", "strength": 1.0}]
    assert (config.seed, config.num_samples) == (2, 4)
    assert load_config("--lora_path=a", "--lora_path", "b:2").model.loras[1].strength == 2
    named = tmp_path / "lr=3"
    named.touch()
    monkeypatch.chdir(tmp_path)
    assert load_config("--lora_path", "lr=3", "seed=5").model.lora == "lr=3"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--promt", "did you mean --prompt?"),
        ("--output-folder", "did you mean --output_folder?"),
        ("--num-samples=3", "did you mean --num_samples?"),
        ("--use-ema", "did you mean --use_ema?"),
        ("--seeds", "did you mean --seed?"),
        ("--qqq", "--help lists all flags"),
        ("--num_frames", "use --num_output_frames"),
        ("--lora_ckpt=x", "use --lora_path"),
        ("--lora_path", "expected at least one argument"),
        ("--generator_ckpt", "use --checkpoint_path"),
        ("--local_rank=0", "torchrun, which sets the rank itself"),
    ],
)
def test_unknown_and_renamed_flags_are_refused_with_the_right_one(door, given, words):
    said = door.fails("--prompt", "x", given)
    assert given.split("=")[0] in said and words in said


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sampler.num_step=3"], "num_steps"),
        (["ouput.gif=true"], "output"),
        (["seed=abc"], "'abc'"),
        (["--seed", "1.5"], "1.5"),
        (["justaword"], "has no `=`"),
        (["--log", "loud"], "log level is 'loud'"),
        (["pipeline.name=causl"], "causal"),
    ],
)
def test_wrong_overrides_are_refused_with_the_right_spelling(door, overrides, words):
    assert door("--prompt", "x", *overrides) == 2
    assert words in door.error and "Traceback" not in door.error


def test_recipes_that_are_missing_are_named(capsys):
    assert inference.main(["--config_path", "configs/infer/digit.yaml"]) == 2
    assert "digits.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        inference.main([])
    assert end.value.code == 2
