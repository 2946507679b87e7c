"""Scripts: both forms, and what is refused, with its line and field."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.data.schedules import FRAME, PIXEL_FRAME, SECOND, Cue, Moment, parse_switch_frames, read_schedules

GOOD = '{"prompts": [{"text": "a", "end_frame": 6}, {"text": "b"}]}'


@pytest.fixture
def read(tmp_path):
    """read(*lines, **arguments) -> the videos of a file with these lines."""

    def of(*lines, **arguments):
        path = tmp_path / "videos.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return read_schedules(path, **arguments)

    return of


def test_a_prompt_with_its_end(read):
    (video,) = read(
        '{"prompts": [{"text": "a", "end_frame": 6}, {"text": "b ", "end": "4.5s"}, '
        '{"text": "c", "end_pixel_frame": 90}, {"text": "d"}]}'
    )
    ends = [Moment(6, FRAME), Moment(4.5, SECOND), Moment(90, PIXEL_FRAME), None]
    assert video.cues == tuple(Cue(text, end) for text, end in zip("abcd", ends, strict=True))
    assert (video.seed, video.length, video.negative_prompt, video.height, video.width) == (None, None, None, 0, 0)


def test_texts_alone_take_the_frames_of_the_configuration(read):
    (video,) = read('{"prompts": ["a", "b", "c"]}', switch_frames=(40, 80))
    assert video.cues == (Cue("a", Moment(40, FRAME)), Cue("b", Moment(80, FRAME)), Cue("c"))
    (video,) = read('{"prompts": ["a"]}')
    assert video.cues == (Cue("a"),)


def test_what_a_line_may_say(read):
    extra = {"seed": 4, "length": "20s", "negative_prompt": "", "height": 64, "width": 32, "name": "x"}
    first, second = read(json.dumps({"prompts": ["a"], **extra}), "", '{"prompts": ["b"], "length": 9, "id": 7}')
    assert (first.seed, first.length, first.negative_prompt) == (4, Moment(20, SECOND), "")
    assert (first.height, first.width, first.text, first.index) == (64, 32, "x", 0)
    assert (second.length, second.text, second.index) == (Moment(9, FRAME), "7", 2)


def test_videos_with_one_schedule_share_it(read):
    videos = read(
        '{"prompts": [{"text": "a", "end_frame": 6}, {"text": "b"}], "seed": 1}',
        '{"prompts": [{"text": "c", "end_frame": 6}, {"text": "d"}], "negative_prompt": "e"}',
        '{"prompts": [{"text": "a", "end_frame": 7}, {"text": "b"}]}',
        '{"prompts": [{"text": "a", "end_frame": 6}, {"text": "b"}], "length": 9}',
        '{"prompts": [{"text": "a", "end_frame": 6}, {"text": "b"}], "width": 64}',
    )
    assert videos[0].schedule == videos[1].schedule
    assert len({video.schedule for video in videos}) == 4


def prompts(*entries) -> str:
    return json.dumps({"prompts": list(entries)})


BAD = [
    ('{"prompts": ["a",]}', "column 1[78]: not JSON"),
    ("a red three", "column 1: not JSON"),
    ("[1]", "got list; write an object"),
    ('{"prompts": ["a"], "prompts": ["b"]}', "prompts is written twice"),
    ('{"prompts": ["a"], "seed": NaN}', "NaN is not a number"),
    ("{}", "prompts is missing"),
    (prompts(), r"prompts is \[\]; write a list"),
    ('{"prompts": "a"}', "prompts is 'a'; write a list"),
    ('{"prompt": ["a"]}', "unknown key 'prompt'; did you mean prompts"),
    ('{"prompts": ["a"], "xyzzy": 1}', "unknown key 'xyzzy'; allowed: prompts, seed"),
    (
        prompts({"text": "a", "end_frames": 3}, {"text": "b"}),
        r"prompts\[0\]: unknown key 'end_frames'; did you mean end_",
    ),
    (prompts({"text": "a", "end_frame": 3}, "b"), "mixes texts and objects"),
    (prompts({"text": "a", "end_frame": 3}, {"text": " "}), r"prompts\[1\].text is empty"),
    (prompts({"text": "a", "end_frame": 3}, {"text": 5}), r"prompts\[1\].text is 5; write text"),
    (prompts({"text": "a", "end_frame": 3}, {"end_frame": 9}), r"prompts\[1\]: text is missing"),
    (prompts("a", ""), "2 prompts and 0 data.switch_frames"),
    (prompts({"text": "a"}, {"text": "b"}), r"prompts\[0\]: it has no end, which only the last"),
    (prompts({"text": "a", "end_frame": 3, "end": "1s"}, {"text": "b"}), "end_frame and end both tell"),
    (prompts({"text": "a", "end_frame": 0}, {"text": "b"}), "end_frame is 0; write a whole number from 1"),
    (prompts({"text": "a", "end_frame": 3.5}, {"text": "b"}), "end_frame is 3.5; write a whole number"),
    (prompts({"text": "a", "end_frame": True}, {"text": "b"}), "end_frame is True; write a whole number"),
    (prompts({"text": "a", "end_frame": None}, {"text": "b"}), "end_frame is null"),
    (prompts({"text": "a", "end_pixel_frame": "9"}, {"text": "b"}), "end_pixel_frame is '9'; write a whole"),
    (prompts({"text": "a", "end": 4.5}, {"text": "b"}), r'prompts\[0\].end is 4.5; write a time like "4.5s"'),
    (prompts({"text": "a", "end": "0s"}, {"text": "b"}), "end is '0s'"),
    (prompts({"text": "a", "end": "-1s"}, {"text": "b"}), "end is '-1s'"),
    (
        prompts({"text": "a", "end_frame": 6}, {"text": "b", "end_frame": 6}, {"text": "c"}),
        r"prompts\[1\] ends at latent frame 6, which is not after the end of an earlier one \(latent frame 6\)",
    ),
    (prompts({"text": "a", "end": "9s"}, {"text": "b", "end_frame": 2}, {"text": "c", "end": "3s"}), "not after"),
    ('{"prompts": ["a"], "seed": -1}', "seed is -1; write a whole number from 0"),
    ('{"prompts": ["a"], "seed": "x"}', "seed is 'x'"),
    ('{"prompts": ["a"], "length": 0}', "length is 0"),
    ('{"prompts": ["a"], "length": "20"}', "length is '20'; write a time"),
    ('{"prompts": ["a"], "height": 0}', "height is 0"),
    ('{"prompts": ["a"], "negative_prompt": 5}', "negative_prompt is 5; write text"),
    ('{"prompts": ["a"], "name": 5}', "name is 5; write text"),
    ('{"prompts": ["a"], "name": "x", "id": 5}', "name and id mean the same"),
    ('{"prompts": [{"text": "a", "end_frame": 9}], "length": 9}', "both tell the video's length"),
    (prompts({"text": "a\u0007", "end_frame": 6}, {"text": "b"}), r"prompts\[0\].text, column 2: .* U\+0007"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[m for _, m in BAD])
def test_a_bad_line_is_refused_with_line_and_field(read, line, message):
    with pytest.raises(ValueError, match=f"videos.jsonl, line 3.*{message}"):
        read(GOOD, "", line)


def test_all_bad_lines_are_told_at_once(read):
    with pytest.raises(ValueError, match=r"line 1.*prompts is missing\D*\n.*line 3.*not JSON"):
        read("{}", GOOD, "{")


def test_going_on_leaves_the_bad_lines_out(read):
    refused: list[str] = []
    videos = read("{}", GOOD, "{", GOOD, refused=refused)
    assert [video.line for video in videos] == [2, 4]
    assert len(refused) == 2 and "line 1: prompts is missing" in refused[0] and "line 3" in refused[1]


def test_a_file_without_a_video_is_refused(read, tmp_path):
    with pytest.raises(ValueError, match="holds no video"):
        read("", " ")
    with pytest.raises(ValueError, match="line 1: prompts is missing"):
        read("{}", refused=[])
    with pytest.raises(ValueError, match="is not a file"):
        read_schedules(tmp_path / "none.jsonl")


@pytest.mark.parametrize("value", ["40, 80,120", [40, 80, 120], (40, 80, 120), ["40", "80", "120"]])
def test_switch_frames(value):
    assert parse_switch_frames(value) == (40, 80, 120)


def test_switch_frames_of_one_and_none():
    assert parse_switch_frames(40) == parse_switch_frames("40") == (40,)
    assert parse_switch_frames("") == parse_switch_frames(()) == ()


@pytest.mark.parametrize("value", ["40, x", [40.5], "80, 40", [0, 40], [40, 40], [True]])
def test_wrong_switch_frames(value):
    with pytest.raises(ValueError, match="switch_frames is"):
        parse_switch_frames(value)


@given(st.text())
def test_any_text_is_a_video_or_a_clear_refusal(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match="any.jsonl"):
        read_schedules(path)
