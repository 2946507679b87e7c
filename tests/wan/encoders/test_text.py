"""The text encoder: cleaning, masking, batching, and its loaders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import tolerance
from tests.parity.case import load_case
from utils.config.field import check
from wan.checkpoint.encoder_maps import text_to_official
from wan.checkpoint.library import TEXT_CONFIG, build_text_model, load_text_model, load_tokenizer
from wan.checkpoint.parts import find_parts
from wan.config import TextConfig
from wan.encoders.text import TextEncoder, clean_text, load_text_encoder

ROUNDED = tolerance.rounding(terms=256, sums=60)  # of a four-layer encoder, 15 sums a layer
ROOT = Path(__file__).resolve().parents[3]
DIGITS = ROOT / "assets" / "digits"
TINY = {**TEXT_CONFIG, "vocab": 40, "dim": 16, "dim_attn": 16, "dim_ffn": 24, "num_heads": 2, "num_layers": 2}


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("  a\t\n b ", "a b"),
        ("fish &amp;amp; chips", "fish & chips"),
        ("&lt;b&gt;", "<b>"),
        ("schÃ¶n", "schön"),
        ("caf\u00e9\u00a0noir", "café noir"),
        ("", ""),
    ],
)
def test_cleaning(given, wanted):
    assert clean_text(given) == wanted


@pytest.fixture(scope="module")
def encoder():
    parts = find_parts(DIGITS)
    return load_text_encoder(parts, 12, TextConfig(dtype="fp32", batch_size=2))


def test_digits_prompts_are_encoded(encoder):
    prompts = ["a red 7 moving left", "a green 3 moving up and a blue 5 moving down", "a blue 1 moving right"]
    out = encoder(prompts)
    assert out.shape == (3, 12, encoder.model.config.d_model) and out.dtype == torch.float32
    ids, mask = encoder.tokenize(prompts)
    lengths = mask.sum(1).tolist()
    assert lengths == [6, 12, 6] and ids.shape == (3, 12)
    for row, length in zip(out, lengths, strict=True):
        assert row[:length].abs().amax(1).min() > 0.1
        assert (row[length:] == 0).all()
    # One by one (other batch sizes) gives the same; the order of prompts is kept.
    for prompt, row in zip(prompts, out, strict=True):
        torch.testing.assert_close(encoder([prompt])[0], row, rtol=0, atol=ROUNDED)
    assert not torch.allclose(out[0], out[2], atol=1e-2)


def test_padding_keys_are_masked(encoder):
    ids, mask = encoder.tokenize(["a red 7 moving left"])
    other = torch.where(mask == 1, ids, 5)
    torch.testing.assert_close(encoder.encode(other, mask), encoder.encode(ids, mask), rtol=0, atol=ROUNDED)
    seen = encoder.encode(other, torch.ones_like(mask))  # without the mask the padding is felt
    assert (seen - encoder.encode(ids, mask))[:, : int(mask.sum())].abs().max() > 1e-2


def test_long_prompts_end_with_the_sentence_end(encoder):
    ids, mask = encoder.tokenize(["a red 7 moving left and " * 20])
    assert mask.all() and ids[0, -1] == encoder.tokenizer.eos_token_id


def test_bad_input(encoder, tmp_path):
    for bad in ("a red 7 moving left", []):
        with pytest.raises(ValueError, match="give a list of one or more prompts"):
            encoder(bad)
    with pytest.raises(ValueError, match="is not a tokenizer folder"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="text.dtype is 'fp8'; write fp32 or bf16"):
        check(TextConfig(dtype="fp8"))


@pytest.mark.parametrize("layout", ["official", "transformers"])
def test_loaded_weights_are_those_saved(tmp_path, layout, monkeypatch):
    torch.manual_seed(0)
    model = build_text_model(TINY).to(torch.bfloat16)
    if layout == "official":
        monkeypatch.setattr("wan.checkpoint.library.TEXT_CONFIG", TINY)
        path = tmp_path / "models_t5.pth"
        torch.save(text_to_official(model.state_dict()), path)
    else:
        path = tmp_path / "text_encoder"
        model.save_pretrained(path)
    ids, mask = torch.randint(3, 40, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    loaded = load_text_model(path, torch.float32)
    assert loaded.encoder.embed_tokens.weight is loaded.shared.weight
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training
    wanted = TextEncoder(model.float().eval(), None, 7).encode(ids, mask)
    got = TextEncoder(loaded, None, 7).encode(ids, mask)
    torch.testing.assert_close(got, wanted, rtol=0, atol=ROUNDED)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert load_text_model(path).shared.weight.dtype == torch.bfloat16  # as in the file


def test_wrong_weights_are_named(tmp_path):
    case = load_case(ROOT / "tests" / "parity" / "cases" / "J_wan21_vae")
    torch.save(case.weights, tmp_path / "models_t5.pth")
    with pytest.raises(ValueError, match="models_t5.pth holds vae 2.1 weights, no umT5 encoder"):
        load_text_model(tmp_path / "models_t5.pth")
    torch.save(text_to_official(build_text_model(TINY).state_dict()), tmp_path / "tiny.pth")
    with pytest.raises(ValueError, match="tiny.pth does not fit the model.*mis-shaped"):
        load_text_model(tmp_path / "tiny.pth")
