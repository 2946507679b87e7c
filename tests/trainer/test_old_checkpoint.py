"""A run that an earlier version stopped goes on: renamed and moved keys are mapped once, where a checkpoint is read.

`data/old_stream.tar.gz` was written by commit d389dc3 with `data/old_stream.yaml`: the checkpoint of step 3 of a
streaming training with LoRA, in the middle of its videos, and the metrics of the run that was not stopped.
"""

from __future__ import annotations

import json
import re
import tarfile

import pytest
import yaml

import train
from tests import digits_fixture
from tests.architecture.source import ROOT
from tests.trainer.stream_fixture import SECOND
from trainer.config import OLD_KEYS, load_recipe
from utils.config.renamed import rename

DATA = ROOT / "tests/trainer/data"
OLD = yaml.safe_load((DATA / "old_stream.yaml").read_text())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder in which that run was started, as it was then, with the recipe in today's keys."""
    monkeypatch.chdir(tmp_path)
    digits_fixture.model_folder(tmp_path / "start", num_layers=1, ffn_dim=8, dim=12, freq_dim=8, num_heads=2)
    (tmp_path / "prompts.txt").write_text("\n".join(digits_fixture.PROMPTS))
    (tmp_path / "switch.txt").write_text("\n".join(SECOND))
    (tmp_path / "today.yaml").write_text(yaml.safe_dump(rename(OLD, OLD_KEYS)))
    with tarfile.open(DATA / "old_stream.tar.gz") as archive:
        archive.extractall(tmp_path / "run", filter="data")
    return tmp_path


def losses(path) -> dict[int, dict]:
    """Returns step -> its metrics, without times."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["step"]: {k: v for k, v in row.items() if k != "seconds"} for row in rows}


def resume(folder, *overrides) -> dict[int, dict]:
    """Goes on with the run from a model folder of another path; returns the metrics of its steps."""
    (folder / "digits").symlink_to(ROOT / "assets/digits")
    arguments = ["--config_path", str(folder / "today.yaml"), "--logdir", "run", f"model={folder / 'digits'}"]
    assert train.main([*arguments, *overrides]) == 0
    return losses(folder / "run/metrics.jsonl")


def test_old_checkpoint_goes_on_as_if_never_stopped(folder, caplog):
    found, wanted = resume(folder), losses(folder / "run/expected.jsonl")
    assert sorted(found) == [3, 4, 5] and "resumed at step 3" in caplog.text and "anew" not in caplog.text
    for step, row in found.items():
        assert row == pytest.approx(wanted[step], rel=1e-4), step  # another machine made them
    changes = [record.getMessage() for record in caplog.records if "goes on with other values" in record.getMessage()]
    named = re.split(r", (?=[\w.]+: )", changes[0].split(": ", 1)[1])
    moved = [change for change in named if "absent" not in change]
    assert [change.split(":")[0] for change in moved] == ["model"], "only the folder of the model has moved"


def test_old_videos_begin_anew_with_another_cache(folder, caplog):
    """The twin: what is mapped is compared."""
    resume(folder, "generation.cache.sink_frames=0", "steps=4")
    assert "the running videos begin anew" in caplog.text
    assert "generation.cache.sink_frames: 2 -> 0" in caplog.text


def test_old_recipe_is_refused_with_every_new_name(folder):
    with pytest.raises(ValueError) as caught:
        load_recipe(DATA / "old_stream.yaml")
    head, *lines = str(caught.value).splitlines()
    assert head == "10 problems in the configuration"
    for words in (
        "trainer.ratio; it is now trainer.critic_updates_per_generator_update",
        "trainer.source.save_films; it is now trainer.source.save_videos",
        "trainer.source.sampler.snap; it is now generation.steps.rounding",
        "trainer.source.cache.sink_frames; it is now generation.cache.sink_frames",
        "old_stream.yaml:17: unknown key trainer.source.chunk; it is now generation.chunk",
    ):
        assert any(words in line for line in lines), words


@pytest.mark.parametrize("old", [*OLD_KEYS.renamed, *OLD_KEYS.removed])
def test_an_old_key_is_refused_with_its_new_name(recipe, old):
    inner = {"cache": ".sink_frames", "context": ".sigma", "sampler": ".shift"}.get(old.rpartition(".")[2], "")
    arms = ["preview.sampler.name=few_step", "preview.pipeline.name=causal"] if old.startswith("preview") else []
    arms += ["trainer.loss={name: ode}"] if old.startswith("trainer.loss") and "score" not in old else []
    arms += ["trainer.loss={name: dmd}"] if "score" in old else []
    with pytest.raises(ValueError) as caught:
        load_recipe(recipe, [*arms, f"{old}{inner}=1"])
    message = OLD_KEYS.describe(f"{old}{inner}")
    assert f"command line: unknown key {old}{inner}; {message}" in str(caught.value).splitlines()
    assert old in OLD_KEYS.removed or message == f"it is now {OLD_KEYS.renamed[old]}{inner}"
