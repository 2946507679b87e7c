"""train.py's command line: the ancestors' flags, unknown ones, a dry run, a run that saves nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import train
from tests import digits_fixture
from tests.architecture.source import ROOT
from trainer.config import load_recipe

RECIPE = """
model: {model}
steps: 2
log_every: 1
generation: {{chunk: 2, steps: {{shift: 3.0}}}}
trainer:
  generator: {{weights: {model}/transformer}}
  source: {{name: latents, path: {latents}, batch: 2, frames: 4}}
  loss: {{name: flow, mode: diffusion_forcing}}
  text: {{dtype: fp32}}
checkpoint: {{every: 1}}
preview:
  every: 1
  count: 1
  height: 32
  width: 32
  sampler: {{name: multi_step, num_steps: 1}}
"""


@pytest.fixture
def recipe(custom_model, tmp_path):
    """The recipe of two steps with a preview after each."""
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(model=custom_model, latents=digits_fixture.latent_folder(tmp_path / "latents")))
    return path


@pytest.fixture
def run(recipe, tmp_path, capsys):
    """run(*arguments) -> (status, files and folders of the run, stdout, stderr)."""

    def start(*arguments):
        status = train.main(["--config_path", str(recipe), "--logdir", str(tmp_path / "run"), *arguments])
        there = {p.name for p in (tmp_path / "run").iterdir()} if (tmp_path / "run").exists() else set()
        return status, there, *capsys.readouterr()

    return start


def load_config(recipe, *arguments):
    """Returns the configuration that a command line gives."""
    flags = train.parse(["--config_path", str(recipe), *arguments])
    return load_recipe(flags.config_path, train.overrides(flags))[0]


def test_the_ancestors_flags_reach_their_knobs(recipe):
    plain = load_config(recipe)
    assert (plain.save, plain.preview.every, plain.track.wandb) == (True, 1, False)
    assert not load_config(recipe, "--no_save").save
    assert load_config(recipe, "--no_visualize").preview.every == 0
    assert not load_config(recipe, "--disable-wandb", "track.wandb_project=x").track.wandb
    folder = load_config(recipe, "--wandb-save-dir", "a folder/1e3").track
    assert (folder.wandb, folder.wandb_dir) == (True, "a folder/1e3")
    both = load_config(recipe, "--wandb-save-dir=w", "--disable-wandb").track
    assert (both.wandb, both.wandb_dir) == (False, "w")
    flags = train.parse(["--config_path", str(recipe), "--no-auto-resume", "--dry_run", "--logdir", "l", "steps=9"])
    assert (flags.no_auto_resume, flags.dry_run, flags.logdir) == (True, True, "l")
    assert load_config(recipe, "steps=9", "--no_save", "seed=4").seed == 4


@pytest.mark.parametrize("flag", ["--no_save", "--no_visualize", "--disable-wandb"])
def test_a_flag_wins_over_the_recipe_and_an_override_over_the_flag(recipe, flag):
    recipe.write_text(recipe.read_text() + "track: {wandb: true}\n")
    key, value = train.SWITCHES[flag][0].split("=")
    read = {
        "save": lambda c: c.save,
        "preview.every": lambda c: c.preview.every,
        "track.wandb": lambda c: c.track.wandb,
    }
    assert read[key](load_config(recipe)) and not read[key](load_config(recipe, flag))
    again = "1" if key == "preview.every" else "true"
    assert read[key](load_config(recipe, flag, f"{key}={again}"))


def test_a_plain_run_leaves_all(run):
    status, there, _, error = run()
    assert status == 0, error
    assert there == {"checkpoints", "export", "log.txt", "metrics.jsonl", "previews"}


def test_no_save_and_no_visualize_leave_the_metrics_alone(run):
    status, there, _, error = run("--no_save", "--no_visualize")
    assert status == 0, error
    assert there == {"log.txt", "metrics.jsonl"}


def test_no_save_goes_on_from_what_is_there_and_adds_nothing(run, tmp_path):
    assert run()[0] == 0
    before = sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())
    status, _, _, error = run("--no_save", "--no_visualize", "steps=3")
    assert status == 0, error
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == before
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 3


def test_a_dry_run_takes_one_step_and_writes_nothing(run, monkeypatch):
    steps = []
    monkeypatch.setattr("trainer.regress.Regress.step", _noting(steps))
    status, there, said, error = run("--dry_run", "track.tensorboard=true")
    assert status == 0, error
    assert steps == [0] and there == set()
    assert said.startswith("dry run: everything is there and fits; one step took ") and "nothing was written" in said


def _noting(steps: list):
    from trainer.regress import Regress

    step = Regress.step

    def noting(method, number):
        steps.append(number)
        return step(method, number)

    return noting


def test_a_dry_run_says_what_is_wrong(run, monkeypatch):
    status, there, _, error = run("--dry_run", "trainer.source.path=no/such")
    assert status == 2 and "trainer.source.path" in error and there == set()
    monkeypatch.setattr("trainer.regress.Regress.step", lambda *arguments: {"loss": torch.tensor(float("nan"))})
    status, there, _, error = run("--dry_run")
    assert status == 2 and "the loss is nan at step 0" in error and there == set()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--no-save", "did you mean --no_save?"),
        ("--no_auto_resume", "did you mean --no-auto-resume?"),
        ("--disable_wandb=1", "did you mean --disable-wandb?"),
        ("--dryrun", "did you mean --dry_run?"),
        ("--log_dir=x", "did you mean --logdir?"),
        ("--qqq", "--help lists all flags"),
        ("--no-one-logger", "there is no OneLogger here"),
        ("--local_rank=0", "torchrun, which sets the rank itself"),
    ],
)
def test_unknown_and_renamed_flags_are_refused_with_the_right_one(recipe, capsys, given, words):
    with pytest.raises(SystemExit) as end:
        train.main(["--config_path", str(recipe), given])
    said = capsys.readouterr().err
    assert end.value.code == 2 and given.split("=")[0] in said and words in said


def test_help_lists_every_flag():
    done = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    flags = ("--config_path", "--logdir", "--wandb-save-dir", "--disable-wandb", "--no_save", "--no_visualize")
    for flag in (*flags, "--no-auto-resume", "--dry_run", "--print_config", "key=value"):
        assert flag in done.stdout, flag
