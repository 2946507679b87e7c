"""The shipped text encoder: small, frozen, and able to tell every word of the grammar from another."""

import importlib.util

import numpy as np
import pytest
import torch

from tests.architecture.source import ROOT
from utils.digits.world import WORDS, all_prompts, parse_prompt

FOLDER = ROOT / "assets/digits"


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER / "tokenizer")


def encode(tokenizer, prompts, dtype=torch.float32):
    """Returns (hidden [B, 12, 64], mask [B, 12])."""
    from transformers import UMT5EncoderModel

    model = UMT5EncoderModel.from_pretrained(FOLDER / "text_encoder", dtype=dtype).eval()
    tokens = tokenizer(prompts, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    return hidden.float(), tokens.attention_mask


@pytest.fixture(scope="module")
def encodings(tokenizer):
    return encode(tokenizer, all_prompts())[0][:, :6]  # five words and the end


def test_tokenizer_has_one_token_a_word(tokenizer):
    assert len(tokenizer) == 3 + len(WORDS) <= 64
    text = "A red seven moves left, and a BLUE two moves up."
    ids = tokenizer(text, padding="max_length", max_length=12)["input_ids"]
    assert ids == [3 + WORDS.index(w) for w in "a red seven moves left and a blue two moves up".split()] + [1]
    short = tokenizer("a bogus", padding="max_length", max_length=12)
    assert short["input_ids"] == [3, 2, 1] + [0] * 9 and short["attention_mask"] == [1] * 3 + [0] * 9


def test_output_has_unit_scale(encodings):
    rms = encodings.square().mean(-1).sqrt()
    assert (rms - 1).abs().max() < 0.05 and encodings.abs().max() < 6


def test_one_word_changes_the_whole_encoding_clearly(encodings):
    flat = torch.nn.functional.normalize(encodings.flatten(1), dim=1)
    likeness = flat @ flat.T - 2 * torch.eye(len(flat))
    assert likeness.max() < 0.93
    words = [p.split() for p in all_prompts()]
    changed = [(i, j) for i in range(240) for j in range(i) if sum(map(str.__ne__, words[i], words[j])) == 1]
    i, j = np.array(changed).T
    spot = [next(k for k in range(5) if words[a][k] != words[b][k]) for a, b in changed]
    own = torch.nn.functional.cosine_similarity(encodings[i, spot], encodings[j, spot], dim=-1)
    assert own.max() < 0.8  # the token of the changed word itself


@pytest.mark.parametrize("field", ["colour", "digit", "direction"])
@pytest.mark.parametrize("pooled", [True, False])
def test_linear_probe_reads_every_attribute_of_unseen_prompts(encodings, field, pooled):
    x = encodings.mean(1) if pooled else encodings.flatten(1)
    names = [getattr(parse_prompt(p)[0], field) for p in all_prompts()]
    y = torch.tensor([sorted(set(names)).index(n) for n in names])
    x = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    known = torch.from_numpy(np.random.default_rng(0).permutation(240))
    train, test = known[:120], known[120:]
    onehot = torch.nn.functional.one_hot(y).double()
    gram = x[train].T @ x[train] + 1e-3 * torch.eye(x.shape[1])
    probe = torch.linalg.solve(gram, x[train].T @ onehot[train])
    assert ((x[test] @ probe).argmax(1) == y[test]).all()


def test_bf16_loads_the_same_numbers(tokenizer, encodings):
    from safetensors.torch import load_file

    weights = load_file(FOLDER / "text_encoder/model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert sum(w.numel() for w in weights.values()) == 86_592
    low, _ = encode(tokenizer, all_prompts(), torch.bfloat16)
    assert (low[:, :6] - encodings).abs().max() < 0.1


def test_order_of_clauses_is_encoded(tokenizer):
    pair = ["a red one moves up and a blue two moves left", "a blue two moves left and a red one moves up"]
    hidden, mask = encode(tokenizer, pair)
    assert mask.all()
    assert torch.nn.functional.cosine_similarity(*hidden.flatten(1), dim=0) < 0.9


def test_builder_reproduces_the_shipped_files(tmp_path):
    from safetensors.torch import load_file

    spec = importlib.util.spec_from_file_location("build_digits_text", ROOT / "scripts/build_digits_text.py")
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    builder.main(["--output", str(tmp_path)])
    fresh, shipped = (load_file(p / "text_encoder/model.safetensors") for p in (tmp_path, FOLDER))
    assert fresh.keys() == shipped.keys() and all(torch.equal(fresh[k], shipped[k]) for k in shipped)
    name = "tokenizer/tokenizer.json"
    assert (tmp_path / name).read_text() == (FOLDER / name).read_text()
