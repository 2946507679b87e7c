"""The size of a talking video follows its portrait, as published."""

from __future__ import annotations

import pytest

from pipeline.portrait import fit_size, parse_area


@pytest.mark.parametrize(
    ("area", "portrait", "wanted"),
    [
        ("720*400", (720, 1280), (384, 704)),
        ("720*400", (1280, 720), (704, 384)),
        ("720*400", (1024, 1024), (512, 512)),
        ("704*384", (720, 1280), (384, 704)),
        ("704*384", (1280, 720), (704, 384)),
        ("720*400", (1536, 1024), (640, 448)),
        ("480*832", (720, 1280), (448, 832)),
        ("688*368", (720, 1280), (384, 640)),
        ("384*256", (720, 1280), (256, 384)),
        ("704*384", (300, 300), (320, 320)),
    ],
)
def test_sizes_are_the_published_ones(area, portrait, wanted):
    assert fit_size(*portrait, parse_area(area)) == wanted


@pytest.mark.parametrize("portrait", [(1, 1), (64, 20_000), (3000, 17), (1080, 1920), (64, 64)])
def test_any_portrait_gets_a_size_or_a_reason(portrait):
    try:
        height, width = fit_size(*portrait, parse_area("704*384"))
    except ValueError as error:
        assert "does not fit" in str(error)
    else:
        assert height % 64 == width % 64 == 0 and 0 < height * width <= 704 * 384


def test_wrong_areas_are_refused():
    with pytest.raises(ValueError, match="too small; write 64.64 or more"):
        fit_size(100, 100, 100)
    for text in ("704", "a*b", "704*384*2", ""):
        with pytest.raises(ValueError, match="write an area as width and height"):
            parse_area(text)
