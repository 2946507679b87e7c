"""Digits clips: grammar, motion, reproducibility, and the split between sprites and classifier."""

import numpy as np
import pytest

from utils.digits import world as digits
from utils.digits.world import DigitsConfig, Subject, all_prompts, parse_prompt, prompt_clip, random_clip, render


def test_every_prompt_parses_to_itself():
    prompts = all_prompts()
    assert len(set(prompts)) == 240
    assert [parse_prompt(p)[0].text() for p in prompts] == prompts
    assert {w for p in prompts for w in p.split()} == set(digits.WORDS) - {"and"}


def test_two_clauses_and_free_spelling():
    got = parse_prompt("  A Red seven moves left, and a WHITE\ntwo moves up. ")
    assert got == [Subject("red", 7, "left"), Subject("white", 2, "up")]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a pink seven jumps left", r"\['pink', 'jumps'\].*it knows"),
        ("a red seven left", "grammar"),
        ("", "grammar"),
        ("a red seven moves left and", "grammar"),
        ("seven a red moves left", "grammar"),
        (" and ".join(["a red one moves up"] * 3), "at most two"),
        ("\x00../etc a red one moves up", "does not know"),
    ],
)
def test_words_outside_the_grammar_are_named(prompt, message):
    with pytest.raises(ValueError, match=message):
        parse_prompt(prompt)


def test_message_about_a_huge_prompt_stays_short():
    with pytest.raises(ValueError) as error:
        parse_prompt("x" * 100_000 + " y" * 50_000)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("direction", list(digits.DIRECTIONS))
def test_torus_moves_two_pixels_a_frame_for_ever(direction):
    clip = render([Subject("white", 3, direction)], 70, np.random.default_rng(0))
    dx, dy = digits.DIRECTIONS[direction]
    np.testing.assert_array_equal(clip[1:], np.roll(clip[:-1], (2 * dy, 2 * dx), (1, 2)))
    np.testing.assert_array_equal(clip[32], clip[0])  # 32 frames of 2 pixels go round the canvas of 64


def test_bounce_sets_out_as_asked_and_stays_inside():
    config = DigitsConfig(motion="bounce")
    for seed in range(8):
        clip = render([Subject("white", 8, "right")], 60, np.random.default_rng(seed), config)
        seen = clip.max((1, 3)) > 0
        left = seen.argmax(1)
        assert (seen.sum(1) == seen[0].sum()).all()  # never cut by a wall, never wrapped
        assert (np.abs(np.diff(left)) <= 2).all() and np.diff(left).min() == -2
        assert left[1] > left[0] or left[0] >= 64 - digits.SPRITE


def test_start_is_on_the_grid():
    corners = set()
    for seed in range(60):
        clip = render([Subject("white", 0, "up")], 1, np.random.default_rng(seed), DigitsConfig(exemplars=1))
        ink = clip[0].max(-1)
        sprite = np.pad(digits.handwriting(1)[0][0], ((0, 36), (0, 36)))
        spots = [(y, x) for y in range(64) for x in range(64) if y % 8 == x % 8 == 0]
        corners |= {s for s in spots if np.array_equal(np.roll(sprite, s, (0, 1)), ink)}
    assert len(corners) > 30


def test_clips_depend_on_seed_and_index_only():
    first, prompt = random_clip(5, 9, seed=3)
    again, same = random_clip(5, 17, seed=3)
    assert prompt == same
    np.testing.assert_array_equal(first, again[:9])
    assert not np.array_equal(first, random_clip(6, 9, seed=3)[0])
    assert not np.array_equal(first, random_clip(5, 9, seed=4)[0])


def test_two_digits_are_both_drawn():
    clip, prompt = random_clip(1, 5, config=DigitsConfig(num_digits=2))
    subjects = parse_prompt(prompt)
    assert len(subjects) == 2 and clip.shape == (5, 64, 64, 3)
    assert (clip.max(-1) > 0).mean() > (random_clip(1, 5)[0].max(-1) > 0).mean()


def test_prompt_clip_shows_its_prompt_in_uint8():
    clip, subject = prompt_clip(123, 5)
    assert subject.text() == all_prompts()[123] and clip.dtype == np.uint8
    peak = clip.reshape(-1, 3)[clip.sum(-1).argmax()] / 255.0
    np.testing.assert_allclose(peak, digits.COLOURS[subject.colour], atol=0.01)


@pytest.mark.parametrize("exemplars", [0, 1, 8, 100])
def test_judge_and_sprites_share_no_handwriting(exemplars):
    sprites = np.concatenate(digits.handwriting(exemplars))
    unseen, labels = digits.unseen_handwriting(exemplars)
    assert len(sprites) + len(unseen) == 1797
    assert (np.bincount(labels, minlength=10) >= 70).all()
    scans, order = digits._scans()
    for rows in order:
        own, left = digits._split(rows, exemplars)
        assert not set(own) & set(left) and len(own) and len(left)


@pytest.mark.parametrize(
    "bad",
    [
        {"motion": "zigzag"},
        {"num_digits": 3},
        {"canvas": 60},
        {"canvas": 24},
        {"grid": 0},
        {"exemplars": 101},
        {"exemplars": -1},
        {"speed": 0},
    ],
)
def test_bad_knobs_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        random_clip(0, 1, config=DigitsConfig(**bad))


def test_preview_writes_a_gif_and_a_sheet(tmp_path, capsys):
    from PIL import Image

    digits.main(["--preview", "2", "--output", str(tmp_path)])
    assert capsys.readouterr().out.split() == [str(tmp_path / n) for n in ("digits.gif", "digits.png")]
    with Image.open(tmp_path / "digits.gif") as gif, Image.open(tmp_path / "digits.png") as sheet:
        assert gif.n_frames == 33 and gif.size == (128, 64)
        assert np.asarray(sheet).max() == 255
    with pytest.raises(ValueError, match="--preview 0"):
        digits.preview(0, tmp_path)
