"""The size of a talking video: an area, and the aspect of its portrait.

Source: Wan2.2, wan/speech2video.py. There, as here, both sides are multiples of 64, the least that motion patches
tile. Differs from it: the portrait is scaled until it fills the picture, so there are no black strips.
"""

from __future__ import annotations

import math

MULTIPLE = 64  # pixels
TRIED = 100  # scales between the largest and the least
SMALLEST = 0.1  # scale of a picture that has less than the area


def fit_size(height: int, width: int, area: int) -> tuple[int, int]:
    """Returns (height, width) of a video of at most `area` pixels for a portrait of this size.

    Errors: ValueError for an area that no such size fits.
    """
    if area < MULTIPLE * MULTIPLE:
        raise ValueError(f"an area of {area} pixels is too small; write {MULTIPLE}*{MULTIPLE} or more")
    if height * width <= area:
        most, least = 1.0, SMALLEST
    else:
        most, edge = math.sqrt(area / (height * width)), MULTIPLE - 1
        a, b, c = height * width, edge * (height + width), edge**2 - area
        least = (-b + math.sqrt(b**2 - 2 * a * c)) / (2 * a)
    for step in range(TRIED):
        scale = most - (most - least) * step / TRIED
        sides = [-(-int(side * scale) // MULTIPLE) * MULTIPLE for side in (height, width)]
        if 0 < sides[0] * sides[1] <= area:
            return sides[0], sides[1]
    high = math.sqrt(area * height / width)
    sides = [int(side // MULTIPLE) * MULTIPLE for side in (high, area / high)]
    if not all(sides):
        raise ValueError(
            f"a portrait of {width} x {height} pixels does not fit {area} pixels in multiples of {MULTIPLE}; write a "
            "larger area, or crop it"
        )
    return sides[0], sides[1]


def parse_area(text: str) -> int:
    """Returns the pixels of "704*384" (either order, also with x). Errors: ValueError for something else."""
    parts = str(text).lower().replace("x", "*").split("*")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise ValueError(f'size is {text!r}; write an area as width and height, e.g. "704*384"')
    return int(parts[0]) * int(parts[1])
