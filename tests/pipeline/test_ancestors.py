"""Recipes and keys of other systems are refused with what to write here; recipes of ours are not."""

from __future__ import annotations

import re

import pytest
import yaml

import inference
import pipeline.config
import train
import trainer.config
from pipeline import ancestors
from scripts.migrate import table
from tests.architecture.source import ROOT

ROOMS = {"train": trainer.config, "infer": pipeline.config}
DOORS = {"train": train, "infer": inference}
TABLES = {"train": ancestors.TRAINING, "infer": ancestors.GENERATION}
OWN = {"train": trainer.config.TrainConfig, "infer": pipeline.config.InferConfig}
FIRST = {"train": "configs/train/digits_teacher.yaml", "infer": "configs/infer/digits.yaml"}


@pytest.mark.parametrize("kind", TABLES)
def test_keys_go_where_the_migration_puts_them(kind):
    goals, dropped = table.moves(kind)
    places: dict[str, set[str]] = {}
    for (key, _), spans in goals.items():
        places.setdefault(key, set()).update(spans)
    for key, ours in TABLES[kind].items():
        assert ours in places.get(key, ()) or any(ours in reason for reason in dropped.get(key, ())), key
    common = set(OWN[kind].__dataclass_fields__)
    assert {key for key in places if key.partition(".")[0] not in common} - set(TABLES[kind]) == set()


def test_keys_of_the_small_system_stand_in_the_page():
    page = (ROOT / "docs/migrate.md").read_text().partition("\n## minimal-self-forcing")[2]
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    for key, ours in (ancestors.SMALL_TRAINING | ancestors.SMALL_GENERATION).items():
        (row,) = [row for row in rows if f"`{key}`" in row[1]]
        assert f"`{ours}`" in row[2], key


@pytest.mark.parametrize("kind", ROOMS)
def test_no_key_of_today_counts_as_one_of_theirs(kind):
    config, _ = ROOMS[kind].load_recipe(ROOT / FIRST[kind])
    removed = ancestors.extend(ROOMS[kind].OLD_KEYS, kind).removed
    assert {key for key in removed if key in vars(config)} == set()


@pytest.mark.parametrize("kind", ROOMS)
@pytest.mark.parametrize("key", ["lr", "sink_size", "denoising_step_list", "training.num_frames", "output_folder"])
def test_a_key_on_the_command_line_is_answered_with_ours(kind, key, capsys):
    key = "model_kwargs.sink_size" if key == "sink_size" else key
    assert DOORS[kind].main(["--config_path", str(ROOT / FIRST[kind]), f"{key}=3"]) == 2
    printed = capsys.readouterr().err
    small = ancestors.SMALL_TRAINING if kind == "train" else {}
    ours = (TABLES[kind] | small).get(key)
    assert f"unknown key {key}; it is a " in printed and (
        f"here it is {ours}" in printed if ours else "docs/migrate.md" in printed
    )


THEIRS = {
    "plain": "trainer: diffusion\nlr: 2.0e-06\nbatch_size: 1\n",
    "generation": "denoising_step_list: [1000]\nmodel_kwargs: {sink_size: 3}\nseed: 0\nnum_samples: 1\n",
    "anchors": "steps: &s [1000]\ndenoising_step_list: *s\ndata_path: x\n",
    "dumped": "wandb_version: 1\nlr_critic:\n  desc: null\n  value: 1\ntrainer:\n  desc: null\n  value: gan\n",
    "one_key": "trainer: ode\nseed: 3\ngenerator_ckpt: x.pt\n",
}


@pytest.mark.parametrize("kind", ROOMS)
@pytest.mark.parametrize("name", THEIRS)
def test_their_recipe_is_answered_with_the_command(kind, name, tmp_path, capsys):
    path = tmp_path / "old.yaml"
    path.write_text(THEIRS[name])
    assert DOORS[kind].main(["--config_path", str(path)]) == 2
    command = f"run `python scripts/migrate_config.py {path} NEW.yaml`"
    printed = capsys.readouterr().err
    assert "this is a Self-Forcing or LongLive recipe" in printed and command in printed and printed.count("\n") == 1


def test_a_recipe_of_the_small_system_is_recognised(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("device: cpu\nmodel:\n  dim: 256\ntraining:\n  num_steps: 10\ndataset:\n  num_digits: 1\n")
    assert train.main(["--config_path", str(path)]) == 2
    assert "this is a recipe of minimal-self-forcing (dataset, training)" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", [p for p in sorted((ROOT / "configs").glob("*/*.yaml"))], ids=lambda p: p.stem)
def test_recipes_of_ours_are_not_taken_for_theirs(recipe):
    kind = recipe.parent.name
    ancestors.check_recipe(recipe, kind, recipe.parent, set(OWN[kind].__dataclass_fields__))


@pytest.mark.parametrize("text", ["trainer: {name: regress}\nlr: 1\n", "base: x.yaml\nlr: 1\nlr_critic: 2\n"])
def test_one_of_their_keys_in_our_recipe_is_a_wrong_key(text, tmp_path):
    (tmp_path / "x.yaml").write_text((ROOT / FIRST["train"]).read_text())
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"mine.yaml:2: unknown key lr; .*here it is trainer.optim.lr"):
        trainer.config.load_recipe(tmp_path / "mine.yaml")


MISSING = {
    "configs/self_forcing_sid.yaml": ("train", "configs/train/self_forcing_sid.yaml"),
    "configs/longlive_inference_infinity.yaml": ("infer", "configs/infer/longlive_infinity.yaml"),
    "configs/longlive_train_init.yaml": ("train", "configs/train/longlive_init.yaml"),
    "conf/digits_codec.yaml": ("train", "configs/train/digits_codec.yaml"),
}


@pytest.mark.parametrize("path", MISSING)
def test_a_recipe_under_their_name_is_answered_with_ours(path, capsys):
    kind, ours = MISSING[path]
    assert DOORS[kind].main(["--config_path", path]) == 2
    assert f"{path}: no such file; is it {ours}?" in capsys.readouterr().err and (ROOT / ours).is_file()


@pytest.mark.parametrize("kind", DOORS)
def test_a_door_without_a_recipe_lists_them(kind, capsys):
    with pytest.raises(SystemExit) as end:
        DOORS[kind].main(["seed=3"])
    listed = set(re.split(r"[ ,:\n]+", capsys.readouterr().err))
    assert end.value.code == 2 and {path.stem for path in (ROOT / "configs" / kind).glob("*.yaml")} <= listed


def test_every_recipe_that_is_named_is_there():
    for names in ancestors.RECIPES.values():
        for kind, name in names.items():
            assert yaml.safe_load((ROOT / "configs" / kind / f"{name}.yaml").read_text())
