"""The cache of prompt embeddings: the latest stay, what a call lacks is encoded together, threads may share it."""

from __future__ import annotations

import threading

import pytest
import torch

from wan.encoders.prompts import PromptCache


@pytest.fixture
def encoder():
    """encoder(prompts) -> rows that tell their prompt's length; `encoder.calls` are the batches."""

    def encode(prompts):
        encode.calls.append(list(prompts))
        return torch.stack([torch.full((2, 3), float(len(p))) for p in prompts])

    encode.calls = []
    return encode


def lengths(rows) -> list[float]:
    return [row[0, 0].item() for row in rows]


def test_the_latest_are_kept_and_misses_are_encoded_together(encoder):
    text = PromptCache(encoder, 3)
    for prompts in (["", "a"], ["", "bb"], ["ccc", "", "ccc"], ["a", ""]):
        assert lengths(text(prompts)) == [len(p) for p in prompts]
    assert encoder.calls == [["", "a"], ["bb"], ["ccc"], ["a"]], "the negative prompt stays, the oldest is dropped"
    assert text.prompts == ["ccc", "a", ""]
    assert all(row.untyped_storage().nbytes() == 24 for row in text._rows.values()), "no row keeps its batch alive"


def test_size_zero_keeps_nothing(encoder):
    text = PromptCache(encoder, 0)
    assert lengths(text(["a", "a"])) == lengths(text(("a", "a"))) == [1, 1]
    assert encoder.calls == [["a", "a"]] * 2, "each call runs the encoder on all its prompts"


def test_a_batch_larger_than_the_cache(encoder):
    text = PromptCache(encoder, 1)
    assert lengths(text(["a", "bb", "a"])) == [1, 2, 1] and text.prompts == ["bb"]


def test_results_do_not_alias_the_cache(encoder):
    text = PromptCache(encoder, 2)
    text(["a"]).zero_()
    assert lengths(text(["a"])) == [1]


def test_threads_share_it(encoder):
    text, failed, names = PromptCache(encoder, 2), [], ["", "a", "bb", "ccc", "dddd"]

    def ask(first: int):
        for turn in range(300):
            prompts = [names[(first + turn) % 5], names[(first * turn) % 5]]
            if lengths(text(prompts)) != [len(p) for p in prompts]:
                failed.append(prompts)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(text.prompts) == 2


def test_a_slow_encoder_does_not_hold_up_hits(encoder):
    begun, finish = threading.Event(), threading.Event()

    def slow(prompts):
        if "new" in prompts:
            begun.set()
            assert finish.wait(20)
        return encoder(prompts)

    text = PromptCache(slow, 4)
    text(["old"])
    thread = threading.Thread(target=text, args=(["new"],))
    thread.start()
    assert begun.wait(20)
    assert lengths(text(["old"])) == [3]
    finish.set()
    thread.join()
    assert text.prompts == ["old", "new"]
