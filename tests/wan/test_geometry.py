"""Sizes of videos and their chunks; what does not fit is refused with the nearest sizes that do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan.geometry import Geometry, Span, chunks
from wan.spec import SPECS

PUBLISHED = [
    # name, latent size, tokens of a frame, latent frames of the model's own clip
    ("t2v-1.3B", (60, 104), 1560, 21),
    ("i2v-14B", (60, 104), 1560, 21),
    ("ti2v-5B", (44, 80), 880, 31),
    ("digits", (8, 8), 16, 9),
]


@pytest.mark.parametrize(("name", "size", "tokens", "frames"), PUBLISHED)
def test_published_models(name, size, tokens, frames):
    spec = SPECS[name]
    geometry = Geometry.of(spec)
    assert (geometry.latent_size, geometry.frame_tokens) == (size, tokens)
    assert geometry.latent_frames(spec.pixel_frames) == frames
    assert geometry.latent_shape(frames) == (frames, spec.transformer.out_dim, *size)


def test_another_size():
    geometry = Geometry.of(SPECS["t2v-1.3B"], 720, 1280)
    assert (geometry.latent_size, geometry.grid, geometry.frame_tokens) == ((90, 160), (45, 80), 3600)
    assert Geometry.of(SPECS["t2v-1.3B"], width=16).latent_size == (60, 2)


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (481, 832, "height 481 is not a multiple of 16 pixels; use 480 or 496"),
        (480, 840, "width 840 is not a multiple of 16 pixels; use 832 or 848"),
        (8, 832, "height 8 is not a multiple of 16 pixels; use 16 or 32"),
        (480, 0, "width 0 is not a multiple of 16 pixels; use 16 or 32"),
        (-16, 16, "height -16 is not a multiple of 16 pixels; use 16 or 32"),
    ],
)
def test_wrong_pixels(height, width, message):
    with pytest.raises(ValueError, match=message):
        Geometry(height, width)


def test_wrong_pixels_follow_the_strides():
    with pytest.raises(ValueError, match="height 720 is not a multiple of 32 pixels; use 704 or 736"):
        Geometry.of(SPECS["ti2v-5B"], 720, 1280)


@given(st.integers(1, 10_000), st.sampled_from([4, 8]))
def test_frames_go_there_and_back(latent, stride):
    geometry = Geometry(16, 16, (stride, 8, 8))
    assert geometry.latent_frames(geometry.pixel_frames(latent)) == latent
    assert geometry.pixel_frames(latent + 1) - geometry.pixel_frames(latent) == stride


def test_frames():
    geometry = Geometry(16, 16)
    assert [geometry.pixel_frames(n) for n in (0, 1, 2, 21)] == [0, 1, 5, 81]


@pytest.mark.parametrize(("frames", "use"), [(0, "1 or 5"), (2, "1 or 5"), (80, "77 or 81"), (84, "81 or 85")])
def test_wrong_pixel_frames(frames, use):
    with pytest.raises(ValueError, match=f"{frames} pixel frames are not 4n\\+1; use {use}"):
        Geometry(16, 16).latent_frames(frames)


@given(st.floats(0.01, 600), st.sampled_from([8, 16, 24]), st.integers(1, 5))
def test_seconds_are_filled_and_no_more(seconds, fps, size):
    geometry = Geometry(16, 16)
    frames = geometry.latent_frames_for(seconds, fps, size)
    assert frames % size == 0 and frames >= size
    assert geometry.pixel_frames(frames) >= round(seconds * fps)
    assert frames == size or geometry.pixel_frames(frames - size) < round(seconds * fps)


def text(spans) -> str:
    return " ".join(map(str, spans))


def test_chunks():
    assert text(chunks(9, 3)) == "[0, 3) [3, 6) [6, 9)"
    assert text(chunks(7, 3, first=1)) == "[0, 1) [1, 4) [4, 7)"
    assert text(chunks(6, 3, start=1)) == "[1, 4) [4, 7)"
    assert text(chunks(5, 3, first=2, start=4)) == "[4, 6) [6, 9)"
    assert text(chunks(4, 3, first=4)) == "[0, 4)"
    assert text(chunks(3, 3, first=0)) == "[0, 3)"
    assert len(Span(3, 7)) == 4


@given(st.integers(1, 6), st.integers(0, 20), st.one_of(st.none(), st.integers(0, 6)), st.integers(0, 9))
def test_chunks_fill_the_video(size, count, first, start):
    total = (first or 0) + size * count
    if not total:
        return
    made = chunks(total, size, first, start)
    assert made[0].start == start and made[-1].stop == start + total
    assert all(a.stop == b.start for a, b in zip(made[:-1], made[1:], strict=True))
    lengths = [len(span) for span in made]
    assert lengths == ([first] if first else []) + [size] * count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 3), r"8 latent frames do not fill chunks of 3 \(3n\); use 6 or 9"),
        ((2, 3), r"2 latent frames do not fill chunks of 3 \(3n\); use 3$"),
        ((0, 3), "0 latent frames do not fill chunks of 3"),
        ((9, 3, 1), r"9 latent frames do not fill chunks of 3 \(1 \+ 3n\); use 7 or 10"),
        ((2, 3, 4), r"2 latent frames do not fill chunks of 3 \(4 \+ 3n\); use 4 or 7"),
    ],
)
def test_wrong_chunks(arguments, message):
    with pytest.raises(ValueError, match=message):
        chunks(*arguments)


@pytest.mark.parametrize("arguments", [(6, 0), (6, -3), (5, 3, -1)])
def test_chunks_without_length(arguments):
    with pytest.raises(ValueError, match="chunk"):
        chunks(*arguments)
