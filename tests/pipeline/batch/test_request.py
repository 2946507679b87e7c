"""Requests, batches, the keyed noise of a batch."""

from __future__ import annotations

import pytest
import torch

from pipeline.batch.listing import Batches
from pipeline.batch.request import (
    KeyedNoise,
    check_grammar,
    prompt_places,
    read_requests,
    warn_unused_negatives,
)
from pipeline.config import DataConfig, OutputConfig
from utils.rng import Rng
from wan.geometry import Span


def requests(tmp_path, *lines, num_samples=1, **output):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(lines) + "\n")
    return read_requests(DataConfig(path=str(path)), OutputConfig(**output), num_samples)


def test_samples_of_a_prompt_stand_together(tmp_path):
    found = requests(tmp_path, "x", "", "y", num_samples=2)
    assert [(r.prompt, r.index, r.sample, r.stem) for r in found] == [
        ("x", 0, 0, "x-0"),
        ("x", 0, 1, "x-1"),
        ("y", 2, 0, "y-0"),
        ("y", 2, 1, "y-1"),
    ]


def test_stems_are_unique_also_for_equal_prompts(tmp_path):
    found = requests(tmp_path, "x", "X", "x", "x/y", "x_y", num_samples=3)
    assert len({r.stem.casefold() for r in found}) == len(found) == 15


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_batches_keep_order_and_lose_nothing(tmp_path, size):
    found = requests(tmp_path, *"abcde")
    cut = Batches.cut(found, size)
    assert [r for group in cut for r in group] == list(found)
    assert all(len(group) == size for group in cut[:-1]) and 1 <= len(cut[-1]) <= size


def test_only_a_closed_world_has_a_grammar(tmp_path):
    found = requests(tmp_path, "a red three moves right", "a horse")
    check_grammar(found, "t2v-1.3B")
    check_grammar(found[:1], "digits")
    with pytest.raises(ValueError, match="horse"):
        check_grammar(found, "digits")


def test_noise_depends_on_prompt_sample_frame_and_step_alone(tmp_path):
    found = requests(tmp_path, "a", "b", num_samples=2)
    whole = KeyedNoise(Rng(3), found, (4, 2, 2), torch.float32)
    batch = whole(Span(3, 6), 1)
    assert batch.shape == (4, 3, 4, 2, 2)
    for row, request in enumerate(found):
        alone = KeyedNoise(Rng(3), [request], (4, 2, 2), torch.float32)
        assert torch.equal(alone(Span(3, 6), 1)[0], batch[row])
    drawn = [batch[0], batch[1], batch[2], whole(Span(3, 6), 2)[0], whole(Span(6, 9), 1)[0]]
    drawn.append(KeyedNoise(Rng(4), found, (4, 2, 2), torch.float32)(Span(3, 6), 1)[0])
    assert all((a - b).abs().max() > 0.1 for i, a in enumerate(drawn) for b in drawn[:i])


def test_given_noise_starts_chunks_and_nothing_else(tmp_path):
    start = torch.arange(2 * 6.0).view(2, 6, 1, 1, 1)
    noise = KeyedNoise(Rng(0), requests(tmp_path, "a", "b"), (1, 1, 1), torch.float32, start)
    assert torch.equal(noise(Span(2, 4), 0), start[:, 2:4])
    assert not torch.equal(noise(Span(2, 4), 1), start[:, 2:4])
    with pytest.raises(ValueError, match="has 6 frames, the video reaches 7"):
        noise(Span(5, 7), 0)


def test_unused_negative_prompts_are_named(tmp_path, caplog):
    path = tmp_path / "s.jsonl"
    path.write_text('{"prompts": [{"text": "a"}], "negative_prompt": "b"}\n{"prompts": [{"text": "c"}]}\n')
    requests = read_requests(DataConfig(path=str(path)), OutputConfig(), 2)
    warn_unused_negatives(requests, "", 3.0)
    warn_unused_negatives(requests[2:], "", 1)
    assert not caplog.messages
    warn_unused_negatives(requests, "", 1)
    warn_unused_negatives(requests[2:], "d", 1)
    assert "line 1 has no effect at guidance 1" in caplog.messages[0] and len(caplog.messages) == 2


def test_prompt_places_name_file_and_line(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a\n\nb\n")
    data = DataConfig(path=str(path))
    places = list(prompt_places(read_requests(data, OutputConfig(), 2), data, "n"))
    assert places == [("negative_prompt", "n"), (f"{path}, line 1", "a"), (f"{path}, line 3", "b")]
