"""inference.py on scripts: videos whose prompt changes, their reports, and what is refused."""

from __future__ import annotations

import json

import pytest

from tests import digits_fixture
from tests.digits_fixture import PROMPTS, files, videos

SIX_FRAMES = ("batch=2", "generation.chunk=2", "num_output_frames=6")


def video(*ends, **fields) -> str:
    """One line: the digits prompts in turn, each up to its end in latent frames."""
    cues = [{"text": PROMPTS[i % 3]} | ({} if end is None else {"end_frame": end}) for i, end in enumerate(ends)]
    return json.dumps({"prompts": cues, **fields})


@pytest.fixture
def script(prompts):
    """script(*lines) -> the path of a JSONL file."""
    return lambda *lines, name="videos.jsonl": prompts(*lines, name=name)


def reports(folder) -> dict[str, dict]:
    return {name: json.loads(text) for name, text in files(folder, "*.json").items()}


def test_a_script_makes_videos_and_reports(door, script, tmp_path):
    path, out = (
        script(video(1, None, name="x", seed=5), video(1, 2, None), video(1, 2, length=4), video(1, None)),
        tmp_path,
    )
    status = door("--data_path", path, "--output_folder", out, *SIX_FRAMES)
    assert status == 2 and "line 2" not in door.error, "the third video ends at 2 and is 4 long"
    path = script(video(1, None, name="x", seed=5), video(1, 3, None), video(1, None, length=4), video(1, None))
    status = door("--data_path", path, "--output_folder", out, *SIX_FRAMES)
    assert status == 0, door.error
    found = reports(out)
    assert set(found) == {"x-0.json", f"{PROMPTS[0]}-0.json", f"{PROMPTS[0]}~2-0.json", f"{PROMPTS[0]}~3-0.json"}
    first, second, third, _ = (found[name] for name in ("x-0.json", *sorted(set(found) - {"x-0.json"})))
    assert (first["seed"], second["seed"]) == (5, 0)
    assert [(s["text"], s["asked_frame"], s["frame"]) for s in first["switches"]] == [
        (PROMPTS[0], 0, 0),
        (PROMPTS[1], 1, 2),
    ]
    assert [s["frame"] for s in second["switches"]] == [0, 2, 4]
    assert second["switches"][0]["recache_ms"] is None and second["switches"][1]["recache_ms"] > 0
    assert [r["latent_frames"] for r in (first, second, third)] == [6, 6, 4]
    again = videos(out)
    assert door("--data_path", path, "--output_folder", out, *SIX_FRAMES) == 0
    assert videos(out) == again and "4 of 4 videos are finished" in door.error


def test_the_switch_is_seen_from_its_frame_on(door, script, tmp_path):
    flags = ("output.latents=true",)
    assert door("--data_path", script(video(2, None)), "--output_folder", tmp_path / "a", *flags) == 0, door.error
    assert door("--prompt", PROMPTS[0], "--output_folder", tmp_path / "b", *flags) == 0, door.error
    from safetensors.torch import load_file

    with_switch, without = (load_file(tmp_path / n / f"{PROMPTS[0]}-0.safetensors")["latents"] for n in "ab")
    assert (with_switch[:2] == without[:2]).all()
    assert (with_switch[2] - without[2]).abs().max() > 1e-3


def test_videos_do_not_depend_on_what_is_made_with_them(door, script, tmp_path):
    """One schedule is one batch; seeds and negative prompts stay each video's own."""
    lines = [video(1, None, seed=1), video(1, None, negative_prompt=PROMPTS[2]), video(2, None), video(1, None)]
    flags = ("output.latents=true", "output.save_with_index=true")
    made = []
    for name, size in (("a", 1), ("b", 3)):
        path, out = script(*lines), tmp_path / name
        assert door("--data_path", path, "--output_folder", out, f"batch={size}", *flags) == 0, door.error
        from safetensors.torch import load_file

        made.append([load_file(out / f"{n}-0.safetensors")["latents"] for n in range(4)])
    bound = digits_fixture.rounding(passes=12)
    assert all((a - b).abs().max() < bound for a, b in zip(*made, strict=True))
    a = made[0]
    assert all((a[i] - a[j]).abs().max() > 1e-3 for i in range(4) for j in range(i))


def test_the_short_form_takes_switch_frames(door, script, tmp_path):
    path = script(json.dumps({"prompts": PROMPTS[:2]}))
    assert door("--data_path", path, "--switch_frames", "1", "--output_folder", tmp_path) == 0, door.error
    (report,) = reports(tmp_path).values()
    assert [s["frame"] for s in report["switches"]] == [0, 1]
    said = door.fails("--data_path", path, "--switch_frames", "2, 1", "--output_folder", tmp_path / "none")
    assert "switch_frames is '2, 1'" in said
    assert "2 prompts and 0 data.switch_frames" in door.fails("--data_path", path, "--output_folder", tmp_path / "none")
    assert not (tmp_path / "none").exists()


BAD = [
    ("{", "line 2, column 2: not JSON"),
    (video(2, 1, None), "line 2: prompts[1] ends at latent frame 1"),
    (video(1, None, length=2.5), "line 2: length is 2.5"),
    ('{"prompts": [{"text": "a pink horse moves right"}]}', "line 2: prompts[0]: "),
    (video(3, None), "line 2: prompts[1] would start at latent frame 3, after the last chunk"),
    (video(1, None, height=33), "line 2: height 33 is not a multiple"),
]


@pytest.mark.parametrize(("line", "words"), BAD, ids=[w for _, w in BAD])
def test_a_bad_line_stops_all_or_is_left_out(door, script, tmp_path, line, words):
    path, out = script(video(1, None), line), tmp_path / "out"
    assert words in door.fails("--data_path", path, "--output_folder", out)
    assert not out.exists(), "refused before the first frame"
    said = door.fails("--data_path", path, "--output_folder", out, "--keep-going")
    assert words in said and f"1 videos are in {out}" in door.error
    assert list(videos(out)) == [f"{PROMPTS[0]}-0.mp4"]


def test_scripts_need_the_causal_pipeline_and_no_second_file(door, script, prompts, tmp_path):
    path = script(video(1, None))
    said = door.fails("--data_path", path, "--output_folder", tmp_path, "pipeline={name: bidirectional}")
    assert "write pipeline.name=causal" in said
    said = door.fails("--data_path", path, "--extended_prompt_path", prompts("x"), "--output_folder", tmp_path)
    assert "is a script; drop it" in said


def test_a_size_of_its_own(door, script, tmp_path):
    path = script(video(1, None, width=64), video(1, None))
    assert door("--data_path", path, "--output_folder", tmp_path, "output.latents=true") == 0, door.error
    from safetensors.torch import load_file

    shapes = {load_file(p)["latents"].shape[-2:] for p in tmp_path.glob("*.safetensors")}
    assert shapes == {(4, 4), (4, 8)}
