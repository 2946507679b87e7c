"""The digits table's plan against the real scripts and recipes: every command is accepted as written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import inference
import train
from pipeline.config import load_recipe as load_inference
from scripts import encode_latents, evaluate, make_ode_pairs
from scripts.experiments import objectives
from scripts.experiments.experiment import Experiment
from scripts.experiments.plan import ROOT
from scripts.experiments.trainings import Folders
from trainer.config import load_recipe as load_training


def read_train(words):
    flags = train.parse(words)
    return load_training(flags.config_path, flags.overrides)[0]


def read_inference(words):
    flags = inference.parse(words)
    return load_inference(flags.config_path, inference.overrides(flags))[0]


def read_evaluate(words, monkeypatch):
    monkeypatch.setitem(evaluate.COMMANDS, "digits", (evaluate.digits_arguments, FakeRun()))
    return evaluate.main(words)


class FakeRun:
    """Stands for the measurement."""

    def __call__(self, args):
        assert args.videos and args.prompts.is_file()
        return 0


@pytest.mark.parametrize("budget", objectives.BUDGETS)
def test_every_command_is_understood(budget, tmp_path, monkeypatch):
    folders = Folders(ROOT, tmp_path / "runs", tmp_path / "videos", tmp_path / "records")
    seeds = objectives.BUDGETS[budget].seeds
    plan = objectives.make_plan(objectives.BUDGETS[budget])
    data = {name: replace(own, folder=str(tmp_path / name)) for name, own in plan.data.items()}
    experiment = Experiment(replace(plan, data=data), folders, {})
    jobs = experiment.jobs(experiment.pending(plan.rows))
    readers = {
        "train.py": read_train,
        "inference.py": read_inference,
        "scripts/encode_latents.py": encode_latents.parse,
        "scripts/make_ode_pairs.py": make_ode_pairs.parse,
        "scripts/evaluate.py": lambda words: read_evaluate(words, monkeypatch),
    }
    seen, forms, steps = set(), set(), {}
    last = f"seed{seeds - 1}"  # the other seeds' lines differ in a number
    for job in [job for job in jobs if last in job.name or job.name.startswith("data/")]:
        for command in job.commands():
            form = tuple(word for word in command.words if str(tmp_path) not in word and "assets/" not in word)
            if form in forms:  # another row's, but for its folders
                continue
            forms.add(form)
            read = readers[command.words[0]](list(command.words[1:]))
            seen.add(command.words[0])
            if command.words[0] == "train.py":
                steps[job.name] = read.steps
    assert seen == set(readers)
    assert len(steps) == 6 and len(jobs) == 6 * seeds + 19 * seeds + 2
    updates = 7500 if budget == "cpu" else 10_000
    assert steps[f"train/dmd/{last}"] == updates and steps[f"train/gan/{last}"] == (3000 if budget == "cpu" else 10_000)


def test_data_lies_where_recipes_read_it():
    found = {name: load_training(t.recipe)[0].trainer.source for name, t in objectives.TRAININGS.items()}
    assert Path(found["teacher_forcing"].path) == Path(objectives.LATENTS)
    assert {found[name].clips for name in ("gan", "causvid")} == {objectives.LATENTS}
    assert found["ode"].path == objectives.PAIRS
    reads = {name for name, source in found.items() if "runs/" in str(vars(source))}
    needs = {name for name, training in objectives.TRAININGS.items() if training.needs or training.shipped}
    assert reads == needs, "a training that reads data needs a job that makes it"


@pytest.mark.parametrize("recipe", ["dmd", "sid", "gan", "causvid", "ode"])
def test_students_are_sampled_as_trained(recipe):
    trained = load_training(objectives.TRAININGS[recipe].recipe)[0].generation
    config = load_inference("configs/infer/digits_few_step.yaml")[0]
    assert config.generation == trained and trained.steps.steps and config.sampler.guidance == 1


def test_prompt_files_hold_the_counted_prompts():
    for budget in objectives.BUDGETS.values():
        for video_set in budget.videos.values():
            lines = (ROOT / video_set.prompts).read_text().split("\n")
            assert len(set(filter(None, lines))) + video_set.second == video_set.count
