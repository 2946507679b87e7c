"""What is asked for: prompt files, extended prompts, the closed world of the digits model."""

from __future__ import annotations

import json

import pytest

from tests.digits_fixture import PROMPTS, videos


def test_blank_lines_are_skipped_and_keep_the_seeds_of_the_others(door, prompts, tmp_path):
    for name, lines in (("a", PROMPTS), ("b", ("", PROMPTS[1], "   ", ""))):
        path = prompts(*lines, name=f"{name}.txt")
        assert door("--data_path", path, "--output_folder", tmp_path / name) == 0, door.error
    (name,) = videos(tmp_path / "b")
    assert videos(tmp_path / "b")[name] == videos(tmp_path / "a")[name]


@pytest.mark.parametrize("content", ["", "\n\n", "  \n\t\n"])
def test_a_file_without_prompts_is_refused(door, tmp_path, content):
    path = tmp_path / "none.txt"
    path.write_text(content)
    assert f"{path} holds no prompt" in door.fails("--data_path", path, "--output_folder", tmp_path / "out")


def test_nothing_to_do_and_too_much_to_do(door, prompts, tmp_path):
    assert "--prompt" in door.fails("--output_folder", tmp_path / "out")
    path = prompts(PROMPTS[0])
    assert "either prompt or path" in door.fails("--prompt", PROMPTS[0], "--data_path", path)
    assert "extended_path needs path" in door.fails("--prompt", PROMPTS[0], "--extended_prompt_path", path)
    assert "is not a file" in door.fails("--data_path", tmp_path / "missing.txt")
    assert "is a folder and not a file (for images" in door.fails("--data_path", tmp_path)


def test_extended_prompts_condition_and_the_plain_ones_name(door, prompts, tmp_path):
    path, longer = prompts("plain"), prompts(PROMPTS[0], name="extended.txt")
    out, plain = tmp_path / "out", tmp_path / "plain"
    assert door("--data_path", path, "--extended_prompt_path", longer, "--output_folder", out) == 0, door.error
    assert json.loads((out / "plain-0.json").read_text())["prompt"] == PROMPTS[0]
    assert door("--prompt", PROMPTS[0], "--output_folder", plain) == 0
    assert list(videos(out).values()) == list(videos(plain).values())


@pytest.mark.parametrize(("extended", "words"), [(PROMPTS[:2], "has 3 lines"), (("x", "", "y"), "line 2 is blank")])
def test_extended_prompts_must_match_line_by_line(door, prompts, tmp_path, extended, words):
    path, longer = prompts(*PROMPTS), prompts(*extended, name="extended.txt")
    said = door.fails("--data_path", path, "--extended_prompt_path", longer, "--output_folder", tmp_path / "out")
    assert words in said and str(longer) in said


def test_words_outside_the_digits_world_are_named(door, prompts, tmp_path):
    out = tmp_path / "out"
    said = door.fails("--data_path", prompts(PROMPTS[0], "a pink horse moves right"), "--output_folder", out)
    assert "['pink', 'horse']" in said and "purple" in said
    assert not out.exists()
    assert "does not follow the grammar" in door.fails("--prompt", "red three moves right", "--output_folder", out)
    assert not out.exists()
