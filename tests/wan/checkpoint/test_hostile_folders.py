"""Nothing of a model folder is run: code, kernels and classes that its files name are refused by name."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from tests.architecture.source import ROOT
from wan.checkpoint.library import load_image_model, load_text_model, load_tokenizer, load_vae

MODEL = ROOT / "assets/digits"
CODE = "open({marker!r}, 'w').close()\nfrom transformers import PreTrainedTokenizerFast as Own\n"


@pytest.fixture
def folder(tmp_path):
    """folder(part, file, **keys) -> a copy of a part of the model whose file has these keys too, and code beside."""

    def make(part, file="config.json", **keys):
        copy = tmp_path / part
        shutil.copytree(MODEL / part, copy)
        (copy / "own.py").write_text(CODE.format(marker=str(tmp_path / "MARK")))
        tree = json.loads((copy / file).read_text())
        (copy / file).write_text(json.dumps(tree | keys))
        return copy

    yield make
    assert not (tmp_path / "MARK").exists(), "code of the folder ran"


@pytest.mark.parametrize("keys", [{"tokenizer_class": "Own"}, {}])
def test_code_of_a_tokenizer_is_refused(folder, keys, monkeypatch):
    made = folder("tokenizer", "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]}, **keys)
    monkeypatch.setattr("builtins.input", lambda *words: "y")
    with pytest.raises(ValueError, match=r"tokenizer_config.json names code of its own \(auto_map"):
        load_tokenizer(made)


def test_code_named_elsewhere_in_a_tokenizer_is_refused(folder):
    made = folder("tokenizer", "tokenizer_config.json")
    (made / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    with pytest.raises(ValueError, match="config.json names code of its own"):
        load_tokenizer(made)


UNKNOWN = [
    ("_attn_implementation", "someone/a-kernel"),
    ("attn_implementation", {"": "someone/a-kernel"}),
    ("auto_map", {"AutoModel": "own.Own"}),
    ("quantization_config", {"quant_method": "own"}),
    ("a_key_of_tomorrow", 1),
]


@pytest.mark.parametrize(("key", "value"), UNKNOWN, ids=[key for key, _ in UNKNOWN])
@pytest.mark.parametrize(("part", "load"), [("text_encoder", load_text_model), ("vae", load_vae)])
def test_unknown_keys_of_a_configuration_are_refused(folder, part, load, key, value):
    made = folder(part, **{key: value})
    with pytest.raises(ValueError, match=rf"{part}/config.json has the keys {key}"):
        load(made)
    assert "kernels" not in sys.modules


def test_unknown_keys_of_an_image_encoder_are_refused(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    CLIPVisionModelWithProjection(sizes).save_pretrained(tmp_path)
    assert load_image_model(tmp_path).config._attn_implementation == "sdpa"
    tree = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(tree | {"_attn_implementation": "x/y"}))
    with pytest.raises(ValueError, match="has the keys _attn_implementation"):
        load_image_model(tmp_path)


def test_keys_of_earlier_releases_are_taken(folder):
    made = folder(
        "text_encoder", output_past=True, torch_dtype="bfloat16", n_positions=512, tokenizer_class="T5Tokenizer"
    )
    assert load_text_model(made).config._attn_implementation == "sdpa"


def test_wrong_values_of_a_configuration_name_the_file(folder):
    with pytest.raises(ValueError, match="text_encoder/config.json: .*num_layers"):
        load_text_model(folder("text_encoder", num_layers="two"))
