"""Numbers that no video can have are refused with their knob or line; the other videos of a script are made."""

from __future__ import annotations

import json

import pytest

from tests.cli.test_starts import video
from tests.digits_fixture import PROMPTS, videos

KNOBS = [
    (["--seconds", "inf"], "seconds is inf; write 0 to 1000000"),
    (["--seconds", "nan"], "seconds is nan; write 0 to 1000000"),
    (["--seconds", "1e8"], "seconds is 100000000.0; write"),
    (["--seconds", "999999"], "seconds (second 999999) makes a video of 1999999 latent frames; write one of at most"),
    (["--duration", "500000h"], "seconds is 1800000000.0; write"),
    (["--num_output_frames", 2**31 - 2], "num_output_frames is 2147483646; write 1 to 1000000"),
    (["--seed", -1], "seed is -1; write 0 to 9223372036854775807"),
    (["--seed", 2**63], "seed is 9223372036854775808; write 0 to 9223372036854775807"),
    (["output.fps=nan"], "fps is nan"),
    (["output.fps=inf"], "fps is inf"),
    (["output.fps=1e300"], "fps is 1e+300"),
    (["--start_video", "in.mp4", "--start_seconds", "inf"], "start_seconds is inf; write"),
    (["--start_video", "in.mp4", "--start_seconds", "nan"], "start_seconds is nan; write"),
    (["--prompt", " \u200b"], "--prompt is ' \\u200b', which is empty; write a prompt"),
]


@pytest.mark.parametrize(("flags", "words"), KNOBS, ids=[words for _, words in KNOBS])
def test_a_number_that_no_video_has_is_refused_with_its_knob(door, tmp_path, flags, words):
    said = door("--prompt", PROMPTS[0], "--output_folder", tmp_path / "out", *flags)
    assert said == 2 and words in door.error and "Traceback" not in door.error
    assert not (tmp_path / "out").exists()


def test_a_start_of_weeks_is_refused(door, tmp_path):
    flags = ("--start_video", video(tmp_path / "in.mp4"), "--start_seconds", 2e9, "--output_folder", tmp_path / "out")
    assert "start_seconds is 2e+09, 4000000000 latent frames" in door.fails("--prompt", PROMPTS[0], *flags)


R, G = ({"text": text} for text in PROMPTS[:2])
LINES = [
    (
        {"prompts": [R | {"end_frame": 1}, G | {"end_frame": 2**31 - 2}]},
        "the end of prompts[1] (latent frame 2147483646) makes a video of 2147483646 latent frames; write one of at",
    ),
    ({"prompts": [R], "length": "500000h"}, "length (second 1800000000) makes a video of 3600000001 latent frames"),
    ({"prompts": [R], "length": 10_000_001}, "length (latent frame 10000001) makes a video of 10000001 latent frames"),
    ({"prompts": [R | {"end_pixel_frame": 2**31 - 1}]}, "the end of prompts[0] (pixel frame 2147483647) makes a video"),
    ({"prompts": [R], "seed": int("9" * 4000)}, "seed is inf; write a whole number from 0 to 9223372036854775807"),
    (b'{"prompts": ["\xe9"]}', "line 1, byte 15: not UTF-8"),
]


@pytest.mark.parametrize(("line", "words"), LINES, ids=[words for _, words in LINES])
def test_a_line_that_no_video_can_be_made_of_stops_no_other(door, tmp_path, line, words):
    path, out = tmp_path / "videos.jsonl", tmp_path / "out"
    lines = [
        line if isinstance(line, bytes) else json.dumps(line).encode(),
        json.dumps({"prompts": [R], "name": "good"}).encode(),
    ]
    path.write_bytes(b"\n".join(lines))
    said = door.fails("--data_path", path, "--output_folder", out)
    assert f"{path}, line 1" in said and words in said and not out.exists()
    said = door.fails("--data_path", path, "--output_folder", out, "--keep-going")
    assert f"{path}, line 1" in said and words in said
    assert list(videos(out)) == ["good-0.mp4"]
