"""generation_config.json next to weights: found, below the recipe, and told with its file where it cannot be used."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipeline import trained
from pipeline.config import OLD_KEYS, FewStepConfig, InferConfig, MultiStepConfig, load_recipe
from tests.architecture.source import ROOT
from utils import hub
from utils.config.field import check
from utils.config.text import to_dict
from wan.generation import FILE, GenerationConfig, StepsConfig
from wan.ledger import CacheConfig

TRAINED = GenerationConfig(2, 1, StepsConfig((1000.0, 500.0), 3.0), CacheConfig(5, 1))


def weights(folder: Path, content=TRAINED) -> Path:
    """Makes a folder with the file; content: a configuration, a tree, or text."""
    folder.mkdir(parents=True)
    text = (
        content if isinstance(content, str) else json.dumps(content if isinstance(content, dict) else to_dict(content))
    )
    (folder / FILE).write_text(text)
    return folder


@pytest.fixture
def load(tmp_path):
    """load(*overrides, recipe="") -> (configuration, origins)."""
    path = tmp_path / "recipe.yaml"

    def call(*overrides, recipe=""):
        path.write_text("num_output_frames: 9\n" + recipe)
        return load_recipe(path, [str(override) for override in overrides])

    return call


def test_weights_come_between_defaults_and_recipe(tmp_path, load, caplog):
    folder = weights(tmp_path / "transformer")
    with caplog.at_level(logging.WARNING, "pipeline"):
        config, origins = load(f"model.checkpoint={folder}")
        assert config.generation == TRAINED and not caplog.records
        assert origins["generation.steps.shift"] == origins["generation.cache.window_frames"] == str(folder / FILE)
        recipe = "generation: {chunk: 4, steps: {shift: 3.0}, cache: {window_frames: 6}}\n"
        config, _ = load(f"model.checkpoint={folder}", "generation.cache.sink_frames=0", recipe=recipe)
    cache = config.generation.cache
    assert (config.generation.chunk, cache.window_frames, cache.sink_frames) == (4, 6, 0)
    (record,) = caplog.records
    assert record.message == (
        f"not as the weights were trained ({folder / FILE}): "
        f"generation.chunk is 4 ({tmp_path}/recipe.yaml:2), trained with 2; "
        f"generation.cache.window_frames is 6 ({tmp_path}/recipe.yaml:2), trained with 5; "
        "generation.cache.sink_frames is 0 (command line), trained with 1"
    )


@pytest.mark.parametrize("steps, sampler", [((1000.0, 500.0), FewStepConfig()), ((), MultiStepConfig(shift=3.0))])
def test_the_sampler_is_the_one_of_the_training(tmp_path, load, steps, sampler):
    folder = weights(tmp_path / "transformer", GenerationConfig(steps=StepsConfig(steps, 3.0)))
    config, _ = load(f"model.checkpoint={folder}")
    assert config.sampler is None and config.chosen_sampler == sampler
    assert load(f"model.checkpoint={folder}", "sampler={name: multi_step, shift: 7}")[0].chosen_sampler.shift == 7


@pytest.mark.parametrize("sampler", ["{name: few_step, guidance: 4}", "{name: multi_step, guidance: 4}"])
def test_guidance_of_a_distilled_model_is_told(tmp_path, load, caplog, sampler):
    for name, steps in (("distilled", (1000.0, 500.0)), ("plain", ())):
        folder = weights(tmp_path / name, {"chunk": 3, "steps": {"steps": list(steps)}})
        given = () if steps else ("generation.steps.steps=[1000]",)
        with caplog.at_level(logging.WARNING, "pipeline"):
            load(f"model.checkpoint={folder}", f"sampler={sampler}", *given)
    messages = [record.message for record in caplog.records if "sampler.guidance" in record.message]
    assert len(messages) == 1 and "guidance is 4 (command line), distilled to 2 steps that need 1" in messages[0]


@pytest.mark.parametrize("given", ["{0}/model/transformer", "{0}/model", "{0}/model/transformer/weights.safetensors"])
def test_the_file_lies_next_to_the_weights(tmp_path, load, given):
    (weights(tmp_path / "model/transformer") / "weights.safetensors").touch()
    for key in ("path", "checkpoint"):
        assert load(f"model.{key}={given.format(tmp_path)}")[0].generation == TRAINED


def test_weights_without_the_file_take_that_of_what_they_change(tmp_path, load, caplog):
    base, silent = weights(tmp_path / "base/transformer"), tmp_path / "silent"
    silent.mkdir()
    lora = weights(tmp_path / "lora", GenerationConfig(1, cache=CacheConfig(3))) / "lora.safetensors"
    lora.touch()
    with caplog.at_level(logging.WARNING, "pipeline"):
        config, _ = load(f"model.path={base.parent}", f"model.checkpoint={silent}", "generation.chunk=4")
        assert config.generation.cache == TRAINED.cache and not caplog.records, "nobody knows how these were trained"
        config, _ = load(f"model.checkpoint={base}", f"model.lora={lora}")
    assert (config.generation.chunk, config.generation.cache.window_frames) == (1, 3)
    assert load("model.path=no/such/model")[0].generation == GenerationConfig()


def test_interpolated_weights_are_found(tmp_path, load, monkeypatch):
    monkeypatch.setenv("WEIGHTS", str(weights(tmp_path / "transformer")))
    assert load("model.checkpoint=${oc.env:WEIGHTS}")[0].generation == TRAINED
    with pytest.raises(ValueError, match="model.checkpoint: got"):
        load("model.checkpoint=${oc.env:NO_SUCH_VARIABLE}")


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "is not JSON"),
        ("[1]", "it must be an object"),
        ({"cache": {"rope": "${oc.env:HOME}"}}, "must hold an object of plain values"),
        ({"chunks": 3}, "unknown key generation.chunks; did you mean generation.chunk"),
        ({"cache": {"windows": 3}}, "unknown key generation.cache.windows"),
        ({"chunk": "three"}, "generation.chunk: got 'three'"),
        ({"chunk": 0}, "generation.chunk is 0"),
        ({"steps": {"steps": [1, 2]}}, "generation.steps: steps .* must descend"),
        ({"steps": {"rounding": "up"}}, "generation.steps: rounding is 'up'"),
        ({"cache": {"window_frames": 2}}, "generation: cache.window_frames 2 is smaller"),
        ({"cache": 5}, "generation.cache: got 5"),
        ({"context": {"sigma": 3}}, "generation.context.sigma is 3"),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path, load, content, words):
    folder = weights(tmp_path / "transformer", content)
    with pytest.raises(ValueError, match=rf"{folder / FILE}.*{words}") as caught:
        load(f"model.checkpoint={folder}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_that_is_downloaded_is_asked_for_again(tmp_path, monkeypatch):
    """Its file is there only after the recipe was read."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    store = tmp_path / "models--some--model"

    def download(name):
        weights(store / "snapshots/abc/transformer")
        (store / "refs").mkdir()
        (store / "refs/main").write_text("abc")
        return str(store / "snapshots/abc")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.find_local("some/model") is None and trained.find_file("some/model") is None
    with pytest.raises(ValueError, match="some/model was downloaded .* start again"):
        trained.fetch(["some/model", ""])
    trained.fetch(["some/model"])
    assert trained.find_file("some/model") == store / "snapshots/abc/transformer" / FILE


def test_the_shipped_models_carry_their_files():
    for name, knobs in {
        "transformer": GenerationConfig(cache=CacheConfig(6), steps=StepsConfig(shift=3.0)),
        "teacher": GenerationConfig(steps=StepsConfig(shift=3.0)),
        "student": GenerationConfig(
            cache=CacheConfig(9, 3, "read"),
            steps=StepsConfig(
                (1000.0, 750.0, 500.0, 250.0), 3.0, first_steps=tuple(1000 - 62.5 * k for k in range(16))
            ),
        ),
    }.items():
        carried = json.loads((ROOT / "assets/digits" / name / FILE).read_text())
        layers = [to_dict(GenerationConfig()), carried]
        assert OmegaConf.to_container(OmegaConf.merge(*layers)) == to_dict(knobs), name


def test_few_steps_need_a_list():
    with pytest.raises(ValueError, match="sampler.name is few_step and generation.steps.steps is empty"):
        check(InferConfig(sampler=FewStepConfig()))


@pytest.mark.parametrize("old", OLD_KEYS.renamed)
def test_an_old_key_is_refused_with_its_new_name(load, old):
    new = OLD_KEYS.renamed[old]
    arm = {"pipeline": "pipeline.name=causal", "sampler": "sampler.name=few_step"}[old.partition(".")[0]]
    inner = {"pipeline.cache": ".sink_frames", "pipeline.context": ".sigma"}.get(old, "")
    with pytest.raises(ValueError) as caught:
        load(arm, f"{old}{inner}=1", "generation.steps.steps=[1000]")
    assert str(caught.value) == f"command line: unknown key {old}{inner}; it is now {new}{inner}"
    load(f"{new}{inner}={VALUES.get(new, 1)}", "generation.steps.shift=2")


VALUES = {
    "generation.steps.steps": "[1000]",
    "generation.steps.warp": "false",
    "generation.steps.rounding": "table",
    "generation.context.rounding": "table",
    "generation.first_chunk": 3,
}


def test_weights_that_say_nothing_take_the_recipes(tmp_path, load, caplog):
    """They replace the checkpoint that a recipe names, which says how such weights run; not where the model changes."""
    student, model, other = (tmp_path / name for name in ("student", "model", "other"))
    weights(student)
    weights(model / "transformer", replace(TRAINED, chunk=1))
    other.mkdir()
    (tmp_path / "bare.safetensors").write_bytes(b"")
    recipe, bare = f"model: {{path: {model}, checkpoint: {student}}}\n", f"model.checkpoint={tmp_path}/bare.safetensors"
    with caplog.at_level(logging.WARNING, "pipeline"):
        config, origins = load(bare, recipe=recipe)
        assert config.generation == TRAINED and origins["generation.chunk"] == str(student / FILE)
        assert load(bare, "generation.chunk=1", recipe=recipe)[0].generation.chunk == 1
        assert not caplog.records  # nobody knows how they were trained
    assert load(bare, f"model.path={other}", recipe=recipe)[0].generation == GenerationConfig()
    assert load("model.checkpoint=", recipe=recipe)[0].generation.chunk == 1
    own = weights(tmp_path / "own", replace(TRAINED, chunk=4))
    assert load(f"model.checkpoint={own}", recipe=recipe)[0].generation.chunk == 4
