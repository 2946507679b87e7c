"""What of a prompt lies behind the tokens that are read."""

from __future__ import annotations

import pytest

from tests.architecture.source import ROOT
from wan.checkpoint.library import load_tokenizer
from wan.encoders.prompts import PromptCache
from wan.encoders.text import TextEncoder


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    return TextEncoder(None, load_tokenizer(ROOT / "assets/digits/tokenizer"), text_len=8)


def test_cut_begins_behind_the_last_token_read(text):
    prompt = "a red three moves right and a blue five moves up"
    count, lost = text.find_cut(prompt)
    assert lost == "blue five moves up" and count == 12  # seven words and the end are read
    assert PromptCache(text, 1).find_cut(prompt) == (count, lost)


def test_prompts_read_whole_have_no_cut(text):
    assert text.find_cut("a red three moves right and a") is None  # 7 words and the end
    assert text.find_cut("") is None and text.find_cut("a") is None
    assert PromptCache(len, 1).find_cut("a red three" * 99) is None, "an encoder that cannot tell"
