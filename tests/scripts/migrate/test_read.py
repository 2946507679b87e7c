"""An ancestor's file means what it meant to its own program: YAML 1.1, anchors, the default file, wandb's dump."""

from __future__ import annotations

import pytest
import yaml

from scripts import migrate_config
from scripts.migrate.read import read_old
from tests.architecture.source import ROOT
from tests.scripts.migrate.old_recipes import DMD, error, load, write

SCALARS = {
    "yes": True,
    "No": False,
    "ON": True,
    "off": False,
    "1_500": 1500,
    "0777": 511,
    "0x1F": 31,
    "0b101": 5,
    "2:30": 150,
    "3e-4": 3e-4,
    "2E+3": 2000.0,
    "1_0.5": 10.5,
    "~": None,
    "y": "y",
    "08": "08",
    "2024-01-31": "2024-01-31",
    "'off'": "off",
    "0o17": "0o17",
}


@pytest.mark.parametrize("text", SCALARS)
def test_read_takes_scalars_as_omegaconf_does(tmp_path, text):
    from omegaconf import OmegaConf

    path = tmp_path / "old.yaml"
    path.write_text(f"key: {text}\n")
    assert read_old(path).tree["key"] == SCALARS[text] == OmegaConf.load(path)["key"]


def test_truth_values_of_old_files_keep_their_meaning(tmp_path):
    config, _ = load(tmp_path, "mixed_precision: on\ngradient_checkpointing: Yes\nlast_step_only: no\nts_schedule: OFF")
    generator = config.trainer.generator
    assert (generator.dtype, generator.checkpointing) == ("bf16", True)
    assert not config.trainer.source.last_step_only and not config.trainer.loss.score.from_exit
    config, old = load(tmp_path, "gradient_checkpointing: 0\nts_schedule: ~\nmixed_precision: bf16")
    assert not config.trainer.generator.checkpointing and not config.trainer.loss.score.from_exit
    assert config.trainer.generator.dtype == "bf16" and "'bf16' is true" in old.assumed["mixed_precision"]


def test_numbers_of_old_files_keep_their_meaning(tmp_path):
    config, _ = load(tmp_path, "lr: 3e-6\nmax_iters: 1_200\nlog_iters: 0144\nseed: 1:00")
    assert (config.trainer.optim.lr, config.steps, config.checkpoint.every, config.seed) == (3e-6, 1200, 100, 60)


def test_anchors_and_merged_groups_are_read(tmp_path):
    text = """\
levels: &levels [1000, 800, 600]
common: &common {timestep_shift: 3.0, sink_size: 3}
denoising_step_list: *levels
model_kwargs:
  <<: *common
  local_attn_size: 9
"""
    config, old = load(tmp_path, text)
    assert config.generation.steps.steps == (1000, 800, 600) and config.generation.steps.shift == 3.0
    assert (config.generation.cache.window_frames, config.generation.cache.sink_frames) == (9, 3)
    assert set(old.dropped) == {"levels", "common"} and "anchor" in old.dropped["levels"]


def test_interpolations_are_resolved(tmp_path):
    assert load(tmp_path, "total_batch_size: 16\nlog_iters: ${total_batch_size}")[0].checkpoint.every == 16


BROKEN = {
    "lr: [1": "old.yaml:12: no valid YAML",
    "lr: 1\nlr: 2": "lr stands here and at",
    "lr: !!python/name:os.system ''": "no valid YAML: could not determine a constructor",
    "on: 1": "the key 'on' is a value in YAML 1.1; write a word, or quote it",
    "lr: &a [*a]": "an alias lies within its own anchor",
    "lr: ${nothing}": "nothing",
    "a: " + "[" * 3000: "too deep",
}


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_yaml_is_one_line_with_the_place(tmp_path, text, capsys):
    message = error(tmp_path, text, capsys)
    assert message.startswith(str(tmp_path / "old.yaml")) and BROKEN[text] in message


def test_aliases_that_multiply_are_refused(tmp_path, capsys):
    levels = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "stand for more than 100000 values" in error(tmp_path, "\n".join(levels), capsys)


@pytest.mark.parametrize(
    ("content", "problem"), [(b"", "is empty"), (b"- 1\n", "the top level is a sequence"), (b"\xff\xfe", "not UTF-8")]
)
def test_files_that_hold_no_recipe(tmp_path, content, problem, capsys):
    (tmp_path / "old.yaml").write_bytes(content)
    assert migrate_config.main([str(tmp_path / "old.yaml")]) == 2
    assert problem in capsys.readouterr().err


def test_the_default_file_lies_under_the_recipe(tmp_path):
    (tmp_path / "default_config.yaml").write_text(
        "weight_decay: 0.03\nlast_step_only: yes\nmodel_kwargs: {sink_size: 6}\n"
    )
    config, old = load(tmp_path, "last_step_only: no")
    assert config.trainer.optim.weight_decay == 0.03 and not config.trainer.source.last_step_only
    assert config.generation.cache.sink_frames == 6 and config.generation.steps.shift == 5.0
    assert "weight_decay" not in old.silent and "default_config.yaml" in " ".join(old.assumed)


def test_another_default_file_can_be_named(tmp_path, capsys):
    other = tmp_path / "theirs.yaml"
    other.write_text("num_training_frames: 21\nwieght_decay: 0.5\n")
    message = error(tmp_path, "", capsys, "--defaults", str(other))
    assert message.startswith(f"{other}:2: wieght_decay ") and "did you mean weight_decay?" in message


def test_without_a_default_file_each_assumed_value_is_named(tmp_path, capsys):
    assert migrate_config.main([str(write(tmp_path, ""))]) == 0
    printed = capsys.readouterr()
    for key in ("num_training_frames 21", "weight_decay 0.01", "independent_first_frame false", "context_noise 0"):
        assert key in printed.err and key in printed.out


def test_our_own_default_file_is_not_taken_for_theirs(tmp_path):
    (tmp_path / "default_config.yaml").write_text((ROOT / "configs/default_config.yaml").read_text())
    _, old = load(tmp_path, "")
    assert "this project's own" in old.assumed[str(tmp_path / "default_config.yaml")]


def test_longlives_generation_reads_no_default_file(tmp_path):
    (tmp_path / "default_config.yaml").write_text("independent_first_frame: true\n")
    path = tmp_path / "old.yaml"
    path.write_text("output_folder: out\nnum_frame_per_block: 3\nnum_output_frames: 30\n")
    recipe, old = migrate_config.migrate(path)
    assert "first_chunk" not in recipe and any("LongLive's generation" in text for text in old.assumed.values())


def test_what_wandb_keeps_of_a_run_is_read(tmp_path, capsys):
    tree = {key: {"desc": None, "value": value} for key, value in yaml.safe_load(DMD).items()}
    tree |= {"wandb_version": 1, "_wandb": {"desc": None, "value": {"python_version": "3.10"}}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    theirs, _ = migrate_config.migrate(path)
    plain, _ = migrate_config.migrate(write(tmp_path, ""))
    assert yaml.safe_load(theirs) == yaml.safe_load(plain) and "wandb wrote" in theirs


def test_the_default_file_of_the_configs_folder_counts(tmp_path):
    inner = tmp_path / "configs" / "mine" / "today"
    inner.mkdir(parents=True)
    (tmp_path / "configs" / "default_config.yaml").write_text("weight_decay: 0.25\n")
    assert load(inner, "")[0].trainer.optim.weight_decay == 0.25
    (inner / "default_config.yaml").write_text("weight_decay: 0.5\n")
    assert load(inner, "")[0].trainer.optim.weight_decay == 0.5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("training: {num_steps: 3}\n", "a recipe of minimal-self-forcing; docs/migrate.md"),
        ("generation: {chunk: 3}\n", "a recipe of this project already"),
        ("trainer: {name: regress}\n", "a recipe of this project already"),
    ],
)
def test_recipes_of_others_are_called_by_name(tmp_path, text, problem, capsys):
    (tmp_path / "old.yaml").write_text(text)
    assert migrate_config.main([str(tmp_path / "old.yaml")]) == 2
    assert f"old.yaml is {problem}" in capsys.readouterr().err
