"""What a script's file may hold at its limits: bytes that are no text, numbers that are none, prompts of nothing."""

from __future__ import annotations

import json

import pytest

from utils.data.prompts import read_image_prompts, read_prompts
from utils.data.schedules import FRAME, Moment, read_schedules

GOOD = b'{"prompts": ["a"]}'


@pytest.fixture
def read(tmp_path):
    """read(*lines, **arguments) -> the videos of a file with these lines of bytes."""

    def of(*lines, end=b"\n", **arguments):
        path = tmp_path / "videos.jsonl"
        path.write_bytes(end.join(lines))
        return read_schedules(path, **arguments)

    return of


def test_a_line_that_is_not_utf8_is_one_bad_line(read):
    refused: list[str] = []
    bad = GOOD.replace(b"a", b"caf\xe9")
    videos = read(b"\xef\xbb\xbf" + GOOD, bad, b"", GOOD, end=b"\r\n", refused=refused)
    assert [video.line for video in videos] == [1, 4]
    assert [text.partition("videos.jsonl, ")[2] for text in refused] == [
        "line 2, byte 18: not UTF-8; save the file as UTF-8"
    ]
    with pytest.raises(ValueError, match=r"line 1, byte 18: not UTF-8.*\n.*line 2: prompts is missing"):
        read(bad, b"{}", GOOD)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            '"seed": 9223372036854775808',
            "seed is 9223372036854775808; write a whole number from 0 to 9223372036854775807",
        ),
        ('"seed": -1', "seed is -1; write a whole number from 0 to 9223372036854775807"),
        ('"seed": 1e400', "seed is inf; write a whole number"),
        (f'"seed": {"9" * 5000}', "seed is inf; write a whole number"),
        (f'"seed": -{"9" * 5000}', "seed is -inf; write a whole number"),
        (f'"length": {"9" * 5000}', "length is inf; write a whole number from 1"),
        (f'"id": {"9" * 5000}', "id is inf; write text"),
    ],
    ids=range(7),
)
def test_numbers_that_are_too_large_are_named_with_line_and_field(read, fields, words):
    line = f'{{"prompts": ["a"], {fields}}}'.encode()
    with pytest.raises(ValueError, match=f"videos.jsonl, line 2: {words}"):
        read(GOOD, line)
    assert len(read(GOOD, line, refused=[])) == 1


def test_long_numbers_stay_what_they_are(read):
    (video,) = read(f'{{"prompts": ["a"], "id": {"9" * 39}, "seed": 2147483647}}'.encode())
    assert (video.name, video.seed) == ("9" * 39, 2147483647)
    assert str(Moment(1234567, FRAME)) == "latent frame 1234567"


NOTHING = ["\u200b", "\u00a0\u200b\u00a0", "\u200d \ufeff", "\u2060"]


@pytest.mark.parametrize("text", NOTHING)
def test_a_prompt_of_which_nothing_is_seen_is_empty(read, tmp_path, text):
    for ascii_only in (True, False):
        with pytest.raises(ValueError, match=r"line 1: prompts\[0\] is empty"):
            read(json.dumps({"prompts": [text]}, ensure_ascii=ascii_only).encode())
    path = tmp_path / "prompts.txt"
    path.write_text(f"a\n{text}\n\u0915\u094d\u200d\u0937\n", encoding="utf-8")
    assert [(line.line, line.text) for line in read_prompts(path)] == [(1, "a"), (3, "\u0915\u094d\u200d\u0937")]
    (tmp_path / "1").mkdir()
    (tmp_path / "1/a.png").touch()
    rows = [{"file_name": "a.png", "caption": text}]
    (tmp_path / "target_crop_info_1.json").write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(ValueError, match="entry 1: 'caption' is missing or no text"):
        read_image_prompts(tmp_path)
