"""The digits table's plan against the real scripts and recipes; what a finished training is; seeds put together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import inference
import train
from pipeline.config import load_recipe as load_inference
from scripts import encode_latents, evaluate, make_ode_pairs
from scripts.experiments import plan as digits_plan
from scripts.experiments.records import pooled, read_seeds, unfinished, write_length
from scripts.experiments.training import Folders, Trainings
from scripts.experiments.videos import Table
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


@pytest.mark.parametrize("budget", digits_plan.BUDGETS)
def test_every_command_of_the_plan_is_understood(budget, tmp_path, monkeypatch):
    folders = Folders(digits_plan.ROOT, tmp_path / "runs", tmp_path / "films", tmp_path / "records")
    plan = digits_plan.BUDGETS[budget]
    monkeypatch.setattr("scripts.experiments.training.LATENTS", str(tmp_path / "latents"))
    monkeypatch.setattr("scripts.experiments.training.PAIRS", str(tmp_path / "pairs"))
    jobs = Table(Trainings(folders, plan, {})).jobs(list(digits_plan.ROWS))
    readers = {
        "train.py": read_train,
        "inference.py": read_inference,
        "scripts/encode_latents.py": encode_latents.parse,
        "scripts/make_ode_pairs.py": make_ode_pairs.parse,
        "scripts/evaluate.py": lambda words: read_evaluate(words, monkeypatch),
    }
    seen, steps = set(), {}
    last = f"seed{plan.seeds - 1}"  # the other seeds' lines differ in a number
    for job in [job for job in jobs if last in job.name or job.name.startswith("data/")]:
        for command in job.commands():
            read = readers[command.words[0]](list(command.words[1:]))
            seen.add(command.words[0])
            if command.words[0] == "train.py":
                steps[job.name] = read.steps
    assert seen == set(readers)
    assert len(steps) == 6 and len(jobs) == 6 * plan.seeds + 19 * plan.seeds + 2
    updates = 7500 if budget == "cpu" else 10_000
    assert steps[f"train/dmd/{last}"] == updates and steps[f"train/gan/{last}"] == (3000 if budget == "cpu" else 10_000)


def test_data_is_where_the_recipes_look_for_it():
    found = {name: load_training(t.recipe)[0].trainer.source for name, t in digits_plan.TRAININGS.items()}
    assert Path(found["teacher_forcing"].path) == Path(digits_plan.LATENTS)
    assert {found[name].clips for name in ("gan", "causvid")} == {digits_plan.LATENTS}
    assert found["ode"].path == digits_plan.PAIRS
    reads = {name for name, source in found.items() if "runs/" in str(vars(source))}
    needs = {name for name, training in digits_plan.TRAININGS.items() if training.needs or training.shipped}
    assert reads == needs, "a training that reads data needs a job that makes it"


@pytest.mark.parametrize("recipe", ["dmd", "sid", "gan", "causvid", "ode"])
def test_students_are_sampled_as_they_were_trained(recipe):
    trainer = load_training(digits_plan.TRAININGS[recipe].recipe)[0].trainer
    config = load_inference("configs/infer/digits_few_step.yaml")[0]
    source = trainer.source
    sampler = {"dmd": source, "causvid": source, "ode": trainer.loss}[recipe if recipe in ("causvid", "ode") else "dmd"]
    sampler = vars(sampler).get("sampler", sampler)
    assert tuple(sampler.steps) == tuple(config.sampler.steps) and sampler.shift == config.sampler.shift
    assert sampler.warp == config.sampler.warp and config.sampler.guidance == 1
    cache = trainer.loss.cache if recipe == "ode" else source.cache
    assert config.pipeline.cache == cache and config.pipeline.chunk == source.chunk
    if recipe in ("dmd", "sid", "gan"):
        assert config.pipeline.context == source.context


def test_prompt_files_hold_as_many_prompts_as_videos_are_counted():
    for budget in digits_plan.BUDGETS.values():
        for video_set in budget.video_set.values():
            lines = (digits_plan.ROOT / video_set.prompts).read_text().split("\n")
            assert len(set(filter(None, lines))) + video_set.second == video_set.count


def run_folder(folder, steps, export=True):
    (folder / "export/transformer").mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s}) + "\n" for s in steps))
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (folder / "export/transformer" / name).write_text("")
        if not export:
            (folder / "export/transformer" / name).unlink()
    return folder


@pytest.mark.parametrize(
    ("steps", "total", "reason"),
    [
        (range(0, 3000, 20), 3000, ""),
        (range(0, 3000, 20), 2985, ""),
        (range(0, 2980, 20), 3000, "has reached step 2960 of 3000"),
        (range(0, 3001, 20), 3000, "has reached step 3000 of 3000"),  # of a longer training
        ([0], 2, ""),
        ([], 2, "has reached step 0 of 2"),
    ],
)
def test_a_finished_training_has_its_last_step(tmp_path, steps, total, reason):
    found = unfinished(run_folder(tmp_path, steps), total)
    assert found == "" if not reason else reason in found


def test_a_finished_training_has_exported(tmp_path):
    assert "lacks export" in unfinished(run_folder(tmp_path, [0, 1], export=False), 2)
    assert "no metrics.jsonl" in unfinished(tmp_path / "nothing", 2)


def test_seeds_are_put_together():
    def around(mean, half):
        return {"mean": mean, "low": mean - half, "high": mean + half}

    assert pooled([around(0.5, 0.1)]) == around(0.5, 0.1)
    apart = pooled([around(0.4, 0.01), around(0.5, 0.01), around(0.6, 0.01)])
    assert apart["mean"] == pytest.approx(0.5) and apart["high"] - 0.5 == pytest.approx(4.3 * 0.1 / 3**0.5)
    alike = pooled([around(0.5, 0.3)] * 3)
    assert alike["high"] - 0.5 == pytest.approx(0.3 / 3**0.5), "videos alone leave that much open"
    assert pooled([around(0.5, 0.1), {"mean": None, "low": None, "high": None}])["mean"] in (None, 0.5)


def test_a_record_keeps_a_length_only_of_the_same_weights(tmp_path):
    head = {"training": {"steps": 3}}
    for length, weights in (("10x", "a"), ("1x", "a")):
        write_length(tmp_path, "dmd", 0, length, head, {"facts": {"weights": weights}, "videos": 2})
    (record,) = read_seeds(tmp_path, "dmd")
    assert list(record)[-2:] == ["1x", "10x"]
    write_length(tmp_path, "dmd", 0, "1x", head, {"facts": {"weights": "b"}, "videos": 2})
    (record,) = read_seeds(tmp_path, "dmd")
    assert "10x" not in record and record["1x"]["facts"]["weights"] == "b"
    write_length(tmp_path, "dmd", 1, "1x", {"training": {"steps": 4}}, {"facts": {"weights": "c"}, "videos": 2})
    assert len(read_seeds(tmp_path, "dmd")) == 1, "seeds of another training are not averaged"
