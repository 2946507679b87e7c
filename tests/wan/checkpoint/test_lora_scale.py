"""alpha / rank, wherever a maker wrote it."""

from __future__ import annotations

import json

import pytest
import torch

from tests.wan.checkpoint.lora_files import write
from wan.checkpoint.key_maps import PEFT_PREFIX
from wan.checkpoint.lora import read_lora
from wan.checkpoint.lora_scale import UNSAID, header

PAIRS = {n: (torch.zeros(4, 6), torch.zeros(6, 4)) for n in ("blocks.0.q", "blocks.1.q", "blocks.1.ffn.0")}


def scales(path, **options):
    """Returns (scale of each pair in order, where it is written)."""
    found = read_lora(path, **options).scales
    return [found.by_module.get(name) for name in PAIRS], found.origin


def peft(folder, name="adapter_model.safetensors", **config):
    path = write(folder / name, PAIRS)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return path


def test_a_file_that_says_nothing_keeps_strength_one(tmp_path):
    assert scales(write(tmp_path / "l.safetensors", PAIRS)) == ([1, 1, 1], UNSAID)


def test_given_alpha_overrules_what_the_file_says(tmp_path):
    path = write(tmp_path / "l.safetensors", PAIRS, alpha=2, notes={"lora_alpha": "12"})
    assert scales(path)[0] == [0.5] * 3 and ".alpha tensors" in scales(path)[1]
    assert scales(path, alpha=6) == ([1.5] * 3, "the given alpha 6")


def test_layers_without_an_alpha_tensor_follow_the_header(tmp_path):
    extra = {"blocks.1.q.alpha": torch.tensor([1.0])}
    assert scales(write(tmp_path / "a.safetensors", PAIRS, extra=extra))[0] == [1, 0.25, 1]
    path = write(tmp_path / "b.safetensors", PAIRS, notes=header(4, 2), extra=extra)
    values, origin = scales(path)
    assert values == [0.5, 0.25, 0.5] and "(1 layers)" in origin and "(2 layers)" in origin


def test_patterns_of_peft_hold_for_their_layers(tmp_path):
    ranked = PAIRS | {"blocks.1.ffn.0": (torch.zeros(2, 6), torch.zeros(6, 2))}
    path = write(tmp_path / "adapter_model.safetensors", ranked, "base_model.model.")
    patterns = {"rank_pattern": {r"ffn\.0": 2}, "alpha_pattern": {"^blocks.0.q": 12, "ffn.0": 5}}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, **patterns}))
    found = read_lora(path).scales.by_module
    assert {name.removeprefix("base_model.model."): scale for name, scale in found.items()} == {
        "blocks.0.q": 3,
        "blocks.1.q": 2,
        "blocks.1.ffn.0": 2.5,
    }
    assert str(tmp_path / "adapter_config.json") in read_lora(path).describe()["strength"]


def test_adapter_config_of_other_weights_says_nothing(tmp_path):
    path = peft(tmp_path, r=4, lora_alpha=16)
    other = write(tmp_path / "style.safetensors", PAIRS)
    assert scales(path)[0] == [4] * 3 and scales(other) == ([1] * 3, UNSAID)
    alone = peft(tmp_path / "renamed", "style.safetensors", r=4, lora_alpha=16)
    assert scales(alone)[0] == [4] * 3


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": 8, "lora_alpha": 8}, "has rank 4 and .* says 8; the two do not belong together"),
        ({"r": 4, "lora_alpha": "x"}, "lora_alpha is 'x', not a number"),
        ({"r": 4, "lora_alpha": 0}, "lora_alpha is 0, at which the LoRA changes nothing"),
        ({"r": 4, "lora_alpha": True}, "lora_alpha is True, not a number"),
        ({"r": 4, "lora_alpha": [1]}, "not a number"),
        ({"r": 4, "lora_alpha": 1e400}, "not a number"),
        ({"r": 4, "lora_alpha": 4, "use_dora": True}, "the adapter is DoRA"),
        ({"peft_type": "LOHA", "r": 4}, "the adapter is LOHA"),
        ({"r": 4, "lora_alpha": 4, "alpha_pattern": [1]}, "alpha_pattern is"),
        ({"r": 4, "lora_alpha": 4, "alpha_pattern": {"(": 1}}, "holds the expression '\\('"),
        ({"r": 4, "lora_alpha": 4, "rank_pattern": {"(.*)*(.*)*x": 1}}, "too many repeats"),
    ],
)
def test_wrong_adapter_configs_are_refused(tmp_path, config, words):
    with pytest.raises(ValueError, match=words):
        scales(peft(tmp_path, **config))


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "null"])
def test_damaged_adapter_configs_are_named(tmp_path, text):
    path = peft(tmp_path, r=4)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match="adapter_config.json (is n|holds).*say its alpha yourself"):
        scales(path)
    assert scales(path, alpha=8)[0] == [2] * 3
    notes = {"lora_adapter_metadata": text}
    with pytest.raises(ValueError, match="lora_adapter_metadata in the header of .*l.safetensors (is n|holds)"):
        scales(write(tmp_path / "x/l.safetensors", PAIRS, notes=notes))


@pytest.mark.parametrize(
    ("notes", "found"),
    [
        ({"ss_network_dim": "4", "ss_network_alpha": "1.0"}, 0.25),
        ({"network_alpha": "6"}, 1.5),
        ({"rank": "4", "alpha": "2"}, 0.5),
        ({"ss_network_alpha": "None"}, 1),
        ({"lora_adapter_metadata": '{"r": 4, "lora_alpha": 10}'}, 2.5),
        ({"lora_adapter_metadata": '{"text_encoder.r": 4, "text_encoder.lora_alpha": 10}'}, 1),
        ({"lora_adapter_metadata": '{"transformer_2.lora_alpha": 8, "transformer_2.use_rslora": true}'}, 4),
    ],
)
def test_fields_of_the_header(tmp_path, notes, found):
    assert scales(write(tmp_path / "l.safetensors", PAIRS, notes=notes))[0] == [found] * 3


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        ({"ss_network_alpha": "Dynamic"}, "ss_network_alpha in the header of .* is 'Dynamic', not a number"),
        ({"lora_alpha": "inf"}, "not a number"),
        ({"lora_alpha": "8", "rank": "16"}, "has rank 4 and rank in the header of .* is 16"),
    ],
)
def test_wrong_headers_are_refused(tmp_path, notes, words):
    with pytest.raises(ValueError, match=words) as error:
        scales(write(tmp_path / "l.safetensors", PAIRS, notes=notes))
    assert "model.lora_alpha" in str(error.value)


@pytest.mark.parametrize("name", ["export/lora.safetensors", "mine.safetensors"])
def test_earlier_export_follows_the_recipe_of_its_run(tmp_path, name):
    path = write(tmp_path / "run" / name, PAIRS, PEFT_PREFIX)

    def found():
        scales = read_lora(path).scales
        return set(scales.by_module.values()), scales.origin

    assert found() == ({1}, UNSAID)
    for step, lora in ((1, {"rank": 4, "alpha": 2}), (2, {"rank": 4, "alpha": 24.0})):
        state = tmp_path / f"run/checkpoints/step_{step:07d}/state.json"
        state.parent.mkdir(parents=True)
        state.write_text(json.dumps({"recipe": {"trainer": {"generator": {"lora": lora}}}}))
    assert found() == ({6}, f"the recipe in {state}")
    assert scales(write(tmp_path / "run/others.safetensors", PAIRS, "diffusion_model."))[1] == UNSAID
    state.write_text('{"recipe": {"trainer": {"generator": {"lora": {"rank": 8}}}}}')
    assert found() == ({1}, UNSAID)  # of another training
