"""Draws digits that speak: a world with one law for each condition of an avatar, each of which can be measured.

The text says which digit moves left or right, the picture (a digit at rest, centred) gives the colour, the sound gives
the height: a hum of 130 Hz puts the centre on row 46, one of 520 Hz on row 18, by octaves; timbre and loudness mean
nothing. In silence the digit rests on row 32, and every rest begins and ends at the pitch of that row. From one frame
to the next the centre moves by three pixels at most, because what leaps the codec cannot show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.digits.world import COLOURS, DIGITS, DIRECTIONS, SPRITE, Subject, handwriting, quantise

FPS, RATE = 8, 16_000  # of the video, of the sound
SIZE = 64  # pixels
LOW, HIGH = 130.0, 520.0  # Hz
ROWS = (46.0, 18.0)  # of the centre, at LOW and at HIGH
REST = 32.0
SPEED = 2  # pixels per frame, sideways
FASTEST = 3.0  # pixels per frame, up and down
OCTAVES = float(np.log2(HIGH / LOW))
HARMONICS = 6
EXEMPLARS = 8
SIDEWAYS = ("left", "right")
DULLEST, LOUDEST = 0.05, 0.5  # loudness


@dataclass(frozen=True)
class Talk:
    """One clip: what it shows, its picture, its sound and the law that its centre follows.

    frames: uint8 [P, 64, 64, 3]. picture: uint8 [64, 64, 3]. sound: float32 [samples] at 16 kHz. rows: [P], the row of
    the centre; voiced: bool [P].
    """

    subject: Subject
    frames: np.ndarray
    picture: np.ndarray
    sound: np.ndarray
    rows: np.ndarray
    voiced: np.ndarray

    @property
    def prompt(self) -> str:
        """What the text says: no colour."""
        return prompt_of(self.subject)


def prompt_of(subject: Subject) -> str:
    """Returns the prompt of a talking digit."""
    return f"a {DIGITS[subject.digit]} moves {subject.direction}"


def parse_talk(prompt: str) -> Subject:
    """Reads `a <digit> moves <left|right>`; the colour is left empty. Errors: ValueError for anything else."""
    words = prompt.lower().replace(",", " ").replace(".", " ").split()
    fits = len(words) == 4 and (words[0], words[2]) == ("a", "moves") and words[1] in DIGITS and words[3] in SIDEWAYS
    if not fits:
        raise ValueError(
            f"{prompt[:80]!r} is not a prompt of the talking digits; write `a <digit> moves <left|right>`, e.g. "
            "`a three moves left`: the picture gives the colour, the sound the height"
        )
    return Subject("", DIGITS.index(words[1]), words[3])


def row_of(pitch):
    """Returns the row of the centre at a pitch in Hz."""
    return ROWS[0] + (ROWS[1] - ROWS[0]) * np.log2(np.asarray(pitch) / LOW) / OCTAVES


def pitch_of(row):
    """Returns the pitch in Hz that puts the centre on a row."""
    return LOW * 2 ** ((np.asarray(row) - ROWS[0]) / (ROWS[1] - ROWS[0]) * OCTAVES)


def draw_law(num_frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns (row of the centre, whether it hums) of each frame; it begins at rest."""
    rows, voiced = [REST], [False]
    while len(rows) < num_frames:
        for target in rng.uniform(ROWS[1], ROWS[0], int(rng.integers(1, 4))):  # a phrase: gliding from tone to tone
            _glide(rows, target, rng.uniform(1.0, FASTEST))
            rows += [rows[-1]] * int(rng.integers(0, 4))
        _glide(rows, REST, rng.uniform(1.5, FASTEST))
        voiced += [True] * (len(rows) - len(voiced))
        rest = int(rng.integers(2, 7))
        rows += [REST] * rest
        voiced += [False] * rest
    return np.array(rows[:num_frames]), np.array(voiced[:num_frames])


def _glide(rows: list[float], target: float, step: float) -> None:
    while abs(target - rows[-1]) > step:
        rows.append(rows[-1] + step * np.sign(target - rows[-1]))
    rows.append(float(target))


def hum(rows: np.ndarray, voiced: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the sound [samples] of a law: any timbre, any loudness; a rest is silent. Frame n lies at n / 8 s."""
    count = len(rows) * RATE // FPS
    time = np.arange(count) / RATE * FPS
    places = np.arange(len(rows))
    pitch = pitch_of(np.interp(time, places, rows))
    loud = np.interp(time, places, voiced.astype(np.float64))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE + rng.uniform(0, 2 * np.pi)
    weights = rng.uniform(0, 1, HARMONICS) * np.arange(1, HARMONICS + 1) ** -rng.uniform(0.3, 2.0)
    weights[0] += 0.3
    wave = sum(w * np.sin(n * phase + rng.uniform(0, 2 * np.pi)) for n, w in enumerate(weights, 1))
    wave = wave / np.abs(wave).max() * np.exp(rng.uniform(np.log(DULLEST), np.log(LOUDEST)))
    tremble = 1 + rng.uniform(0, 0.3) * np.sin(2 * np.pi * rng.uniform(2, 6) * np.arange(count) / RATE)
    return (wave * np.sqrt(loud) * tremble).astype(np.float32)


def draw(sprite: np.ndarray, colour: str, centre) -> np.ndarray:
    """Returns one frame [64, 64, 3] in [0, 1] of a sprite with its centre at (x, y), which may lie between pixels."""
    base = np.zeros((SIZE, SIZE), np.float32)
    base[:SPRITE, :SPRITE] = sprite
    whole, part = np.divmod(np.asarray(centre) - SPRITE / 2, 1)
    ink = np.zeros_like(base)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = (part[0] if dx else 1 - part[0]) * (part[1] if dy else 1 - part[1])
        if share:
            ink += share * np.roll(base, (int(whole[1]) + dy, int(whole[0]) + dx), (0, 1))
    return ink[..., None] * np.float32(COLOURS[colour])


def render_talk(subject: Subject, num_frames: int, rng: np.random.Generator) -> Talk:
    """Returns a clip of a digit that begins as its picture shows it: centred, at rest."""
    sprites = handwriting(EXEMPLARS)[subject.digit]
    sprite = sprites[rng.integers(len(sprites))]
    rows, voiced = draw_law(num_frames, rng)
    across = SIZE / 2 + DIRECTIONS[subject.direction][0] * SPEED * np.arange(num_frames)
    frames = np.stack([draw(sprite, subject.colour, place) for place in zip(across % SIZE, rows, strict=True)])
    picture = draw_picture(subject, rng)
    return Talk(subject, quantise(frames), picture, hum(rows, voiced, rng), rows, voiced)


def draw_picture(subject: Subject, rng: np.random.Generator) -> np.ndarray:
    """Returns the portrait: a digit of the subject's colour at rest, centred, in a handwriting of its own."""
    sprites = handwriting(EXEMPLARS)[subject.digit]
    return quantise(draw(sprites[rng.integers(len(sprites))], subject.colour, (SIZE / 2, REST)))


def random_talk(index: int, num_frames: int, seed: int = 0) -> Talk:
    """Returns clip number `index` of the endless set `seed`."""
    rng = np.random.default_rng((seed, index))
    subject = Subject(
        list(COLOURS)[rng.integers(len(COLOURS))], int(rng.integers(10)), SIDEWAYS[int(rng.integers(len(SIDEWAYS)))]
    )
    return render_talk(subject, num_frames, rng)
