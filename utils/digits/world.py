"""Draws moving handwritten digits: a toy domain of 240 prompts whose truth can be measured.

A clip shows one (or `num_digits`) coloured handwritten digit on black that moves at a constant
speed. On the torus it leaves on one side and enters on the other, so "moves right" is true at
every frame and clips are stationary at any length. Handwriting: scikit-learn's bundled
`load_digits` (8x8 scans), enlarged to 28 pixels.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from utils.bounds import bounded
from utils.config.field import check

COLOURS = {
    "red": (1.0, 0.15, 0.15),
    "green": (0.1, 0.85, 0.2),
    "blue": (0.2, 0.35, 1.0),
    "yellow": (1.0, 0.9, 0.1),
    "purple": (0.75, 0.2, 0.9),
    "white": (1.0, 1.0, 1.0),
}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}  # (x, y), y down
WORDS = ("a", "moves", "and", *COLOURS, *DIGITS, *DIRECTIONS)
SPRITE = 28
MAX_EXEMPLARS = 100  # of 174 to 183 scans a digit: the classifier of `utils/digits/metrics.py` needs the rest


@dataclass
class DigitsConfig:
    """Configures digits clips; sizes in pixels, speed in pixels per frame."""

    canvas: int = bounded(64, 1, 4096)
    grid: int = bounded(8, 1, 4096)  # start positions are multiples of this
    speed: int = bounded(2, 1, 4096)  # 2 px per frame = one latent cell (8 px) per latent frame (4 frames)
    motion: str = "torus"  # torus | bounce
    num_digits: int = bounded(1, 1, 2)
    exemplars: int = bounded(8, 0, MAX_EXEMPLARS)  # handwritings per digit, nearest to its mean; 0 = half of all scans

    def problems(self) -> Iterator[str]:
        if self.motion not in ("torus", "bounce"):
            yield f"motion is {self.motion!r}; write 'torus' or 'bounce'"
        if self.canvas <= SPRITE or self.canvas % self.grid:
            yield f"canvas {self.canvas} must be above {SPRITE} and a multiple of grid {self.grid} >= 1"


@dataclass(frozen=True)
class Subject:
    """Holds what one clause of a prompt asks for."""

    colour: str
    digit: int
    direction: str

    def text(self) -> str:
        """Returns the clause."""
        return f"a {self.colour} {DIGITS[self.digit]} moves {self.direction}"


def all_prompts() -> list[str]:
    """Returns the 240 one-digit prompts in a fixed order (digit, colour, direction)."""
    return [Subject(c, d, m).text() for d in range(10) for c in COLOURS for m in DIRECTIONS]


def balanced_prompts(count: int) -> list[str]:
    """Returns the first `count` of the 240 prompts in an order whose every beginning is even.

    Each next prompt is the one whose digit, colour, direction and pairs of these were used least, ties in the order
    of `all_prompts`. So no digit, colour, direction or pair of them stands more than once oftener than another, and
    nobody chose. `prompts/digits_32.txt` and `digits_128.txt` hold `"\n".join(balanced_prompts(32))` and 128.
    Errors: ValueError for a count outside 1 .. 240.
    """
    left = [(d, c, m) for d in range(10) for c in COLOURS for m in DIRECTIONS]
    if not 1 <= count <= len(left):
        raise ValueError(f"{count} balanced prompts were requested; write 1 to {len(left)}")
    used, chosen = Counter(), []
    for _ in range(count):
        best = min(left, key=lambda prompt: sum(used[part] for part in _parts(prompt)))
        left.remove(best)
        used.update(_parts(best))
        chosen.append(Subject(best[1], best[0], best[2]).text())
    return chosen


def _parts(prompt) -> list[tuple]:
    """Returns the three values and the three pairs of values of one (digit, colour, direction)."""
    values = list(enumerate(prompt))
    return [*itertools.combinations(values, 1), *itertools.combinations(values, 2)]


def parse_prompt(prompt: str) -> list[Subject]:
    """Reads `a <colour> <digit> moves <direction> [and a ...]`.

    Errors: ValueError naming the words outside the vocabulary, or the grammar that was broken.
    """
    words = prompt.lower().replace(",", " ").replace(".", " ").split()
    unknown = [w for w in words if w not in WORDS]
    if unknown:
        raise ValueError(
            f"the grammar does not know the words {[w[:30] for w in unknown[:8]]} in {prompt[:80]!r}; "
            f"it knows {list(WORDS)}"
        )
    clauses = [c.split() for c in " ".join(words).split(" and ")]
    grammar = "a <colour> <digit> moves <right|left|up|down> [and a ...]"
    for c in clauses:
        fits = len(c) == 5 and c[0] == "a" and c[1] in COLOURS and c[2] in DIGITS and c[3] == "moves"
        if not (fits and c[4] in DIRECTIONS):
            raise ValueError(f"{prompt[:80]!r} does not follow the grammar {grammar!r} at {' '.join(c)[:80]!r}")
    if len(clauses) > 2:
        raise ValueError(f"{prompt[:80]!r} asks for {len(clauses)} digits; at most two fit the text length")
    return [Subject(c[1], DIGITS.index(c[2]), c[4]) for c in clauses]


@functools.lru_cache(maxsize=4)
def handwriting(exemplars: int = 8) -> list[np.ndarray]:
    """Returns ten arrays [n, 28, 28] in [0, 1]: the sprites of each digit.

    `exemplars` > 0 keeps the scans nearest to the class mean, 0 every second one.
    """
    scans, order = _scans()
    return [np.stack([enlarge(scans[i]) for i in _split(rows, exemplars)[0]]) for rows in order]


def unseen_handwriting(exemplars: int = 8):
    """Returns (sprites [n, 28, 28], labels [n]) of all handwritings that are not sprites."""
    scans, order = _scans()
    rows = [_split(rows, exemplars)[1] for rows in order]
    labels = np.repeat(np.arange(10), [len(r) for r in rows])
    return np.stack([enlarge(scans[i]) for i in np.concatenate(rows)]), labels


@functools.lru_cache(maxsize=1)
def _scans():
    """Returns (scans [n, 8, 8] in [0, 1], for each digit its rows, nearest to the class mean first)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    scans = data.images.astype(np.float32) / 16.0
    order = []
    for digit in range(10):
        rows = np.flatnonzero(data.target == digit)
        distance = ((scans[rows] - scans[rows].mean(0)) ** 2).sum((1, 2))
        order.append(rows[np.argsort(distance, kind="stable")])
    return scans, order


def _split(rows, exemplars):
    """Returns (rows of the sprites, rows left to the classifier)."""
    return (rows[:exemplars], rows[exemplars:]) if exemplars else (rows[::2], rows[1::2])


def enlarge(scan: np.ndarray) -> np.ndarray:
    """Returns the 28x28 sprite in [0, 1] of one 8x8 scan in [0, 1].

    Soft edges: hard ones cost the codec 2 dB and show nothing more.
    """
    from PIL import Image

    padded = np.pad(scan, 1)
    large = Image.fromarray(padded.astype(np.float32)).resize((SPRITE, SPRITE), Image.BICUBIC)
    return np.clip((np.asarray(large) - 0.15) / 0.7, 0.0, 1.0).astype(np.float32)


def render(subjects, num_frames: int, rng: np.random.Generator, config: DigitsConfig | None = None) -> np.ndarray:
    """Draws one clip [P, H, W, 3] float32 in [0, 1] of the given subjects at random start cells."""
    config = config or DigitsConfig()
    check(config)
    cells = (config.canvas if config.motion == "torus" else config.canvas - SPRITE + config.grid) // config.grid
    clip = np.zeros((num_frames, config.canvas, config.canvas, 3), np.float32)
    for subject in subjects:
        sprites = handwriting(config.exemplars)[subject.digit]
        sprite = sprites[rng.integers(len(sprites))]
        start = rng.integers(cells, size=2) * config.grid
        ink = _move(sprite, start, DIRECTIONS[subject.direction], num_frames, config)
        np.maximum(clip, ink[..., None] * np.float32(COLOURS[subject.colour]), out=clip)
    return clip


def _move(sprite, start, direction, num_frames, config):
    """Returns the intensity [P, H, W] of a sprite that moves from `start` (x, y) along `direction`."""
    size, room = config.canvas, config.canvas - SPRITE
    base = np.zeros((size, size), np.float32)
    base[:SPRITE, :SPRITE] = sprite
    frames = []
    for t in range(num_frames):
        x, y = (int(s + d * config.speed * t) for s, d in zip(start, direction, strict=True))
        if config.motion == "bounce":  # fold the path at the walls
            x, y = (room - abs(p % (2 * room) - room) for p in (x, y))
        frames.append(np.roll(base, (y, x), (0, 1)))
    return np.stack(frames)


def random_subjects(rng: np.random.Generator, count: int = 1) -> list[Subject]:
    """Draws `count` subjects uniformly."""
    colours, directions = list(COLOURS), list(DIRECTIONS)
    return [
        Subject(colours[rng.integers(len(colours))], int(rng.integers(10)), directions[rng.integers(4)])
        for _ in range(count)
    ]


def prompt_clip(index: int, num_frames: int, seed: int = 0, config: DigitsConfig | None = None):
    """Returns (clip uint8 [P, H, W, 3], subject): prompt number `index` of the 240, drawn by `seed`."""
    subject = parse_prompt(all_prompts()[index])[0]
    clip = render([subject], num_frames, np.random.default_rng((seed, index)), config)
    return quantise(clip), subject


def quantise(clip: np.ndarray) -> np.ndarray:
    """Returns pixels in [0, 1] as uint8 levels."""
    return np.round(clip * 255.0).astype(np.uint8)


def random_clip(index: int, num_frames: int, seed: int = 0, config: DigitsConfig | None = None):
    """Returns (clip [P, H, W, 3] in [0, 1], prompt): clip number `index` of the endless set `seed`."""
    config = config or DigitsConfig()
    rng = np.random.default_rng((seed, index))
    subjects = random_subjects(rng, config.num_digits)
    clip = render(subjects, num_frames, rng, config)
    return clip, " and ".join(s.text() for s in subjects)


def preview(count: int, output, num_frames: int = 33):
    """Writes `digits.gif` (clips side by side) and `digits.png` (contact sheet) into folder `output`."""
    from utils.media.gif import write_gif
    from utils.media.image import contact_sheet

    if not 1 <= count <= 60:
        raise ValueError(f"--preview {count}: write 1 to 60 clips")
    clips, prompts = zip(*(random_clip(i, num_frames) for i in range(count)), strict=True)
    clips = [quantise(clip) for clip in clips]
    write_gif(output / "digits.gif", np.concatenate(clips, 2), 8)
    contact_sheet(output / "digits.png", clips, list(prompts))
    return output / "digits.gif", output / "digits.png"


def main(argv: list[str] | None = None):
    """Runs the command `python -m utils.digits.world --preview 6`."""
    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser(description="Draws digits clips.")
    parser.add_argument("--preview", type=int, default=6, help="number of clips")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    for path in preview(args.preview, args.output):
        print(path)


if __name__ == "__main__":
    main()
