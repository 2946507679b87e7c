"""Sums of chunks: they tile the video, fill whole chunks, and the nearest lengths are really the nearest."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.architecture.source import ROOT
from utils.config.field import check
from wan.generation import ContextConfig, GenerationConfig, StepsConfig
from wan.geometry import Span
from wan.ledger import CacheConfig

CONFIGS = st.builds(GenerationConfig, chunk=st.integers(1, 7), first_chunk=st.integers(0, 7))
FRAMES = st.integers(1, 60)


def tiles(spans: list[Span], start: int, stop: int) -> bool:
    """Whether spans follow each other from `start` to `stop`."""
    borders = [start, *(span.stop for span in spans)]
    return [span.start for span in spans] == borders[:-1] and borders[-1] == stop


def fills(config: GenerationConfig, total: int, given_frames: int = 0) -> bool:
    """Whether a length is one that can be generated."""
    try:
        return bool(config.spans(total, given_frames))
    except ValueError:
        return False


@given(CONFIGS, FRAMES)
def test_spans_tile_the_video(config, total):
    total = config.round_up(total)
    spans = config.spans(total)
    assert tiles(spans, 0, total)
    assert len(spans[0]) == config.head and {len(span) for span in spans[1:]} <= {config.chunk}
    assert max(map(len, spans)) <= config.largest_chunk


@given(CONFIGS, FRAMES, FRAMES)
def test_spans_follow_given_frames(config, given_frames, more):
    total = config.round_up(given_frames + more, given_frames)
    spans, before = config.spans(total, given_frames), config.given_spans(given_frames)
    assert tiles([*before, *spans], 0, total) and {len(span) for span in spans} == {config.chunk}
    assert [len(span) for span in before[:1]] == [min(given_frames, config.head)]
    assert all(len(span) == config.chunk for span in before[1:-1])
    assert max(map(len, before)) <= config.largest_chunk


@given(CONFIGS, FRAMES, st.integers(0, 20))
def test_round_up_finds_the_least_length(config, frames, given_frames):
    total = config.round_up(frames, given_frames)
    candidates = range(max(frames, given_frames + 1), frames + given_frames + 20)
    assert total == next(n for n in candidates if fills(config, n, given_frames))


@given(CONFIGS, FRAMES)
def test_round_down_finds_the_largest_length(config, frames):
    possible = [n for n in range(1, frames + 1) if fills(config, n) and n >= config.head]
    assert config.round_down(frames) == max(possible, default=0)


@given(CONFIGS, st.integers(1, 9))
def test_next_span_walks_the_same_chunks(config, count):
    walked, start = [], 0
    for _ in range(count):
        walked.append(config.next_span(start))
        start = walked[-1].stop
    assert walked == config.spans(start)


def test_lengths_that_do_not_fit_are_refused_with_the_nearest():
    config = GenerationConfig(chunk=3, first_chunk=1)
    with pytest.raises(ValueError, match=r"6 latent frames do not fill chunks of 3 \(1 \+ 3n\); use 4 or 7"):
        config.spans(6)
    with pytest.raises(ValueError, match="3 latent frames are given and the video has 3"):
        config.spans(3, given=3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GenerationConfig(chunk=0), "chunk is 0"),
        (GenerationConfig(first_chunk=-1), "first_chunk is -1"),
        (GenerationConfig(chunk=3, cache=CacheConfig(4, 2)), "smaller than sink_frames 2 . chunk 3"),
        (GenerationConfig(chunk=1, first_chunk=3, cache=CacheConfig(2)), "write at least 3"),
        (StepsConfig(shift=0), "shift is 0"),
        (StepsConfig((250.0, 500.0)), "must descend"),
        (StepsConfig((0.0,)), "is 0.0; write"),
        (ContextConfig(sigma=2), "sigma is 2"),
        (ContextConfig(rounding="floor"), "rounding is 'floor'"),
    ],
)
def test_bad_values_are_told(config, message):
    with pytest.raises(ValueError, match=message):
        check(config)


def test_the_defaults_have_no_problem():
    assert not [*GenerationConfig().problems(), *StepsConfig().problems(), *ContextConfig().problems()]


def test_no_torch_is_imported():
    code = "import sys, wan.generation; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
