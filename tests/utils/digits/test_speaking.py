"""Talking digits: each condition has its law, the sound can be read back, and the metrics say so."""

from __future__ import annotations

import numpy as np
import pytest

from utils.digits.speaking import (
    FASTEST,
    FPS,
    HIGH,
    LOW,
    RATE,
    REST,
    ROWS,
    SPEED,
    draw_law,
    parse_talk,
    pitch_of,
    random_talk,
    row_of,
)
from utils.digits.talks import LAGS, lag_curve, measure_talks, read_talk

FRAMES = 41
TALKS = [random_talk(index, FRAMES, seed=7) for index in range(6)]
READ = [read_talk(talk.frames, talk.subject) for talk in TALKS]
LAWS = [talk.rows for talk in TALKS]


def test_pitch_and_row_are_one_law():
    assert row_of(LOW) == ROWS[0] and row_of(HIGH) == ROWS[1]
    assert row_of((LOW * HIGH) ** 0.5) == pytest.approx(REST)
    assert pitch_of(row_of(200.0)) == pytest.approx(200.0)


@pytest.mark.parametrize("seed", range(4))
def test_a_law_keeps_its_limits(seed):
    rows, voiced = draw_law(200, np.random.default_rng(seed))
    assert rows.min() >= ROWS[1] and rows.max() <= ROWS[0] and np.abs(np.diff(rows)).max() <= FASTEST + 1e-9
    assert (rows[~voiced] == REST).all() and voiced.any() and not voiced[0]
    assert rows.std() > 3


def test_a_clip_is_a_function_of_its_number():
    again = random_talk(2, FRAMES, seed=7)
    assert (again.frames == TALKS[2].frames).all() and (again.sound == TALKS[2].sound).all()
    assert (random_talk(3, FRAMES, seed=7).sound != TALKS[2].sound).any()


def test_the_sound_has_the_pitch_of_the_law():
    """Measured where it hums, by the strongest of the harmonics' common divisor: autocorrelation."""
    for talk in TALKS[:3]:
        humming = [n for n in range(2, FRAMES - 2) if talk.voiced[n - 1 : n + 2].all()]
        for frame in humming[::6]:
            place = frame * RATE // FPS
            piece = talk.sound[place - 800 : place + 800].astype(float)
            lags = np.arange(int(RATE / 560), int(RATE / 120))
            strength = [np.corrcoef(piece[lag:], piece[:-lag])[0, 1] for lag in lags]
            best = max(strength)
            found = RATE / lags[next(i for i, s in enumerate(strength) if s > 0.97 * best)]
            assert found == pytest.approx(pitch_of(talk.rows[frame]), rel=0.08)


def test_rests_are_silent():
    for talk in TALKS:
        quiet = [n for n in range(1, FRAMES - 1) if not talk.voiced[n - 1 : n + 2].any()]
        for frame in quiet:
            place = frame * RATE // FPS
            assert np.abs(talk.sound[place - 500 : place + 500]).max() < 1e-6


def test_it_moves_sideways_as_the_text_says():
    for talk, read in zip(TALKS, READ, strict=True):
        assert np.nanmean(read["direction"]) == 1 and talk.subject.direction in talk.prompt
    assert SPEED * FRAMES > 64, "it goes round"


def test_real_clips_measure_as_real():
    found = measure_talks(READ, LAWS)
    assert found["follow"] > 0.999 and found["slope"] == pytest.approx(1, abs=0.01) and found["lag"] == 0
    assert found["rms"] < 0.1 and found["digit"] == found["colour"] == found["direction"] == 1
    assert [third["lag"] for third in found["thirds"]] == [0, 0, 0]


def test_another_sound_does_not_fit():
    assert abs(measure_talks(READ, LAWS[1:] + LAWS[:1])["follow"]) < 0.5


@pytest.mark.parametrize("late", [-3, 4])
def test_a_late_picture_is_found(late):
    rows = np.stack([np.roll(law, late) for law in LAWS])
    wanted = np.stack(LAWS)
    curve = lag_curve(rows[:, LAGS:-LAGS], wanted[:, LAGS:-LAGS])
    assert max(curve, key=curve.get) == late


def test_a_wrong_colour_and_an_empty_frame_are_seen():
    talk = TALKS[0]
    swapped = read_talk(talk.frames[..., ::-1].copy(), talk.subject)
    white = talk.subject.colour in ("white", "purple", "green")
    assert swapped["colour"].mean() < 0.5 or white
    empty = read_talk(np.zeros_like(talk.frames), talk.subject)
    assert np.isnan(empty["row"]).all() and not empty["digit"].any()
    assert np.isnan(measure_talks([empty], [talk.rows])["follow"])


@pytest.mark.parametrize("prompt", ["a red three moves left", "a three moves up", "three left", ""])
def test_other_prompts_are_refused(prompt):
    with pytest.raises(ValueError, match="not a prompt of the talking digits; write `a <digit> moves <left|right>`"):
        parse_talk(prompt)


def test_counts_must_fit():
    with pytest.raises(ValueError, match="1 videos and 6 laws"):
        measure_talks(READ[:1], LAWS)
    with pytest.raises(ValueError, match="the videos have 41 frames and a law has 9"):
        measure_talks(READ[:1], [LAWS[0][:9]])
