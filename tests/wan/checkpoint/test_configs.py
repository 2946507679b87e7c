"""A config.json of something else tells nothing; a wrong value of our own kind is named with file and key."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.wan.checkpoint.manifest import same, tiny_transformer
from wan.checkpoint.key_maps import config_to_diffusers, config_to_official, transformer_to_diffusers
from wan.checkpoint.library import load_text_model, load_tokenizer, load_vae
from wan.checkpoint.weights import export_transformer, load_transformer

DIGITS = Path(__file__).resolve().parents[3] / "assets/digits"
SPEC, STATE = tiny_transformer()
STRAY = {
    "a language model": {"architectures": ["LlamaForCausalLM"], "num_attention_heads": 32, "hidden_size": 4096},
    "a VAE": {"_class_name": "AutoencoderKLWan", "z_dim": 16},
    "another transformer": {
        "_class_name": "FluxTransformer2DModel",
        "num_attention_heads": 24,
        "attention_head_dim": 8,
    },
    "a pipeline": {"num_heads": 7, "name": "settings of something"},
    "nothing": {},
}
WRONG = {"num_heads": ["2", 0, -1, 1.5, None, True, 2**63], "dim": [[], "48", float("nan")]}
WRONG |= {"patch_size": [None, 5, [1, 2], [1, 2, "2"], [1, 0, 2]], "eps": ["1e-6", -1, float("inf")]}
WRONG |= {"qk_norm": ["yes", 1], "text_len": [0, {}], "model_type": [3, None]}


@pytest.mark.parametrize("what", STRAY)
def test_a_stray_configuration_tells_nothing(tmp_path, what, monkeypatch):
    """As if it were not there: the sizes come from what the user names."""
    from wan.checkpoint.weights import Sizes

    (tmp_path / "config.json").write_text(json.dumps(STRAY[what]))
    save_file(STATE, tmp_path / "student.safetensors")
    spec, state = load_transformer(tmp_path / "student.safetensors", chosen=Sizes(SPEC, "the test"))
    assert spec == SPEC and same(state, STATE)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_wrong_value_is_named(tmp_path, key, value):
    config = {**config_to_official(asdict(SPEC)), "_class_name": "WanTransformer", key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(STATE, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json.*{key}"):
        load_transformer(tmp_path)


@pytest.mark.parametrize("key", ["attention_head_dim", "num_attention_heads"])
@pytest.mark.parametrize("value", ["lost", "8", None, 0])
def test_a_wrong_value_of_diffusers_is_named(tmp_path, key, value):
    config = {**config_to_diffusers(asdict(SPEC)), key: value}
    if value == "lost":
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(transformer_to_diffusers(STATE), tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json.*({key}|num_heads|dim)"):
        load_transformer(tmp_path)


@pytest.mark.parametrize(
    "notes", ["[1]", "{", "5", "{}", '{"config": 3}', '{"config": {"num_heads": "2"}}', "[" * 99999]
)
def test_a_wrong_header_is_named(tmp_path, notes):
    path = tmp_path / "x.safetensors"
    export_transformer(path, STATE, SPEC)
    save_file(STATE, path, metadata={"longtake": notes})
    with pytest.raises(ValueError, match=f"header of {path}|{path} has the sizes of no published"):
        load_transformer(path)


def copied(part: str, folder: Path, **changes) -> Path:
    """Copies a part of the digits model with other values in its config.json."""
    shutil.copytree(DIGITS / part, folder / part)
    path = folder / part / ("tokenizer_config.json" if part == "tokenizer" else "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder / part


VAE = {"z_dim": "16", "latents_std": [1.0] * 15, "latents_mean": ["x"] * 16, "dropout": 3.0, "dim_mult": {"a": 1}}
VAE |= {"num_res_blocks": -1, "base_dim": None, "custom_code": "x.py"}
TEXT = {"d_model": "64", "num_layers": 10**12, "layer_norm_epsilon": [], "is_decoder": 0.5, "vocab_size": None}
TEXT |= {
    "auto_map": {"AutoModel": "x.X"},
    "attn_implementation": "a/b",
    "_attn_implementation": "a/b",
    "dense_act_fn": 3,
}
TEXT |= {"quantization_config": {}}


@pytest.mark.parametrize("key", VAE)
def test_a_wrong_value_of_a_vae_is_named(tmp_path, key):
    with pytest.raises(ValueError, match=f"{tmp_path}/vae"):
        load_vae(copied("vae", tmp_path, **{key: VAE[key]}))


@pytest.mark.parametrize("key", TEXT)
def test_a_wrong_value_of_a_text_encoder_is_named(tmp_path, key):
    with pytest.raises(ValueError, match=f"{tmp_path}/text_encoder/config.json.*{key}"):
        load_text_model(copied("text_encoder", tmp_path, **{key: TEXT[key]}))


def test_a_tokenizer_runs_no_code_of_its_folder(tmp_path):
    folder = copied("tokenizer", tmp_path, tokenizer_class="T", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass T: pass\n")
    with pytest.raises(ValueError, match="auto_map"):
        load_tokenizer(folder)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("text", ["[]", "{", '{"pad_token": []}', '{"eos_token": 3}', '{"model_max_length": "x"}'])
def test_a_damaged_tokenizer_is_named(tmp_path, text):
    folder = copied("tokenizer", tmp_path)
    (folder / "tokenizer_config.json").write_text(text)
    try:
        load_tokenizer(folder)
    except ValueError as error:
        assert str(folder) in str(error)
    else:
        assert "max_length" in text  # not read


def test_the_shipped_parts_load():
    assert load_vae(DIGITS / "vae").config.z_dim == 16
    assert load_text_model(DIGITS / "text_encoder", torch.float32).config.d_model == 64
    assert load_tokenizer(DIGITS / "tokenizer")("a red three").input_ids
