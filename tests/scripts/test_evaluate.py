"""scripts/evaluate.py: tables, verdicts, and what it says about bad folders."""

import json
from itertools import combinations

import numpy as np
import pytest

from scripts import evaluate
from tests.architecture.source import ROOT
from tests.scripts.measure.evaluation import refusal, run
from utils.digits.videos import prompt_numbers
from utils.digits.world import COLOURS, DIRECTIONS, all_prompts, balanced_prompts, parse_prompt, prompt_clip
from utils.media.mp4 import VideoWriter


def write(folder, indices, num_frames=17, frozen_after=None, **sidecar):
    for i in indices:
        clip, subject = prompt_clip(i, num_frames, 3)
        clip[frozen_after:] = clip[frozen_after:][:1] if frozen_after else clip[frozen_after:]
        with VideoWriter(folder / f"{i}.mp4", 8) as video:
            video.write(clip)
        (folder / f"{i}.json").write_text(json.dumps({"prompt": subject.text(), "seed": 3} | sidecar))


def test_videos_through_mp4_score_like_real_clips(tmp_path, capsys):
    folder = tmp_path / "good"
    folder.mkdir()
    write(folder, (1, 62, 123))
    (folder / "9.partial.mp4").write_bytes(b"half a file")
    status, result, text = run(tmp_path, "digits", "--videos", folder, "--partial", "--windows", 2)
    row = result["rows"]["good"]
    assert status == 0 and row["clips"] == 3 and result["frames"] == 17
    assert [row["metrics"][m]["mean"] for m in ("digit", "colour", "direction")] == [1, 1, 1]
    assert row["by"]["colour"] == {"red": 1, "yellow": 1}
    assert result["videos"]["good"] == {"folder": str(folder), "videos": 3, "prompts": 3, "seeds": ["3"]}
    assert "| good | 3 | 1.000 +-0.000 |" in text and text.strip() in capsys.readouterr().out


def test_a_clip_that_stops_fails_the_drift_verdict(tmp_path):
    folder = tmp_path / "real"  # named like a reference row: must not overwrite it
    folder.mkdir()
    write(folder, (5, 100), frozen_after=8)
    status, result, _ = run(tmp_path, "digits", "--videos", folder, "--partial", "--windows", 2)
    verdicts = {v["what"]: v["pass"] for v in result["verdicts"]}
    assert status == 1 and list(result["rows"]) == [str(folder)]
    assert verdicts["direction: last - first window"] is False and verdicts["colour: last - first window"] is True


def test_share_of_the_ceiling_is_judged():
    def row(digit, change=0.0):
        metrics = {m: {"mean": digit if m == "digit" else 0.9} for m in evaluate.GATED}
        return {"metrics": metrics, "drift": {m: {"change": {"mean": change}} for m in evaluate.GATED}}

    def passes(model, ceiling):
        rows = {"m": model, evaluate.CEILING: ceiling}
        return {v["what"]: v["pass"] for v in evaluate.check_models(rows, ["m"])}

    assert all(passes(row(0.55), row(0.9)).values())
    assert not passes(row(0.5), row(0.9))["digit: share of ceiling"]
    assert not passes(row(0.9, -0.11), row(0.9))["colour: last - first window"]


def test_all_prompts_are_asked_for(tmp_path, capsys):
    write(tmp_path, (0,))
    message = refusal(capsys, "digits", "--videos", tmp_path)
    assert "1 of the 240 prompts" in message and "--partial" in message


def test_bad_folders_are_named(tmp_path, capsys):
    assert "nothing to measure" in refusal(capsys, "digits")
    assert "no *.mp4" in refusal(capsys, "digits", "--videos", tmp_path)
    write(tmp_path, (0, 1))
    partial = ("digits", "--partial", "--videos", tmp_path)
    assert "has 17 frames, 33 are requested" in refusal(capsys, *partial, "--frames", 33)
    sidecar = tmp_path / "1.json"
    for content, message in [
        ("{", "is not JSON"),
        ('{"seed": 1}', "has no 'prompt'"),
        ("[]", "it must be an object"),
        ('{"prompt": "a pink one moves up", "seed": 1}', "'pink'"),
        ('{"prompt": "a red one moves up and a blue two moves up", "seed": 1}', "one-digit prompts"),
    ]:
        sidecar.write_text(content)
        assert message in refusal(capsys, *partial)
    sidecar.unlink()
    assert "no 1.json next to it" in refusal(capsys, *partial)
    write(tmp_path, (1,), num_frames=9)
    assert "mixes lengths" in refusal(capsys, *partial)
    assert "no config.json" in refusal(capsys, "codec", "--vae", tmp_path)


def test_codec_gate_passes_and_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "load_codec", lambda folder: None)
    monkeypatch.setattr(evaluate, "roundtrip", lambda codec, clip: clip)
    command = ("codec", "--vae", tmp_path, "--frames", 9, 17, "--clips", 3, "--windows", 2)
    status, result, text = run(tmp_path, *command)
    assert status == 0 and list(result["rows"]) == ["9 frames", "17 frames"] and len(result["verdicts"]) == 4
    assert result["rows"]["9 frames"]["psnr"] > 100 and "psnr_foreground" in text
    monkeypatch.setattr(evaluate, "roundtrip", lambda codec, clip: clip[..., ::-1].copy())  # red <-> blue
    status, result, _ = run(tmp_path, *command)
    assert status == 1 and any("colour" == v["what"] and not v["pass"] for v in result["verdicts"])


def test_roundtrip_goes_through_the_streaming_vae(tmp_path):
    from diffusers import AutoencoderKLWan

    sizes = dict(base_dim=4, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True])
    model = AutoencoderKLWan(**sizes, latents_mean=[0.5] * 4, latents_std=[2.0] * 4, attn_scales=[])
    model.save_pretrained(tmp_path / "vae")
    codec = evaluate.load_codec(tmp_path / "vae")
    clip, _ = prompt_clip(0, 9)
    out = evaluate.roundtrip(codec, clip)
    assert out.shape == clip.shape and out.dtype == np.uint8 and out.std() > 0
    with pytest.raises(ValueError, match="4n"):
        evaluate.roundtrip(codec, clip[:8])


def test_a_prompt_file_says_which_videos_must_be_there(tmp_path, capsys):
    folder, requested = tmp_path / "some", tmp_path / "requested.txt"
    folder.mkdir()
    write(folder, (1, 62, 123))
    requested.write_text("a red zero moves left\n" + prompt_clip(62, 1)[1].text() + "\n")
    status, result, _ = run(tmp_path, "digits", "--videos", folder, "--prompts", requested, "--windows", 2, "--real")
    assert (result["prompts"], result["num_prompts"], result["rows"]["some"]["clips"]) == (str(requested), 2, 2)
    assert result["videos"]["some"] == {
        "folder": str(folder),
        "videos": 2,
        "prompts": 2,
        "seeds": ["3"],
        "left_out": 1,
    }
    assert result["rows"]["real"]["clips"] == 2  # reference rows answer the same prompts
    requested.write_text(requested.read_text() + "a white nine moves up\n")
    message = refusal(capsys, "digits", "--videos", folder, "--prompts", requested)
    assert "2 of the 3 prompts, 'a white nine moves up' is missing" in message
    for text, printed in (
        ("a pink one moves up\n", "line 1: "),
        ("a red one moves up and a red two moves up", "2 digits"),
    ):
        requested.write_text(text)
        assert printed in refusal(capsys, "digits", "--videos", folder, "--prompts", requested)


def test_every_video_of_an_asked_prompt_counts(tmp_path, capsys):
    """A second, bad video of a prompt cannot be hidden, and a prompt that is requested twice needs two."""
    requested = tmp_path / "requested.txt"
    requested.write_text("a red zero moves right\n")
    write(tmp_path, (0,))
    (tmp_path / "again.json").write_text(json.dumps({"prompt": "a red zero moves right", "seed": 4}))
    with VideoWriter(tmp_path / "again.mp4", 8) as video:
        video.write(np.zeros((17, 64, 64, 3), np.uint8))
    _, result, _ = run(tmp_path, "digits", "--videos", tmp_path, "--prompts", requested, "--windows", 1)
    row = result["rows"][tmp_path.name]
    assert row["clips"] == 2 and row["metrics"]["colour"]["mean"] == 0.5
    (tmp_path / "again.mp4").unlink()
    requested.write_text("a red zero moves right\n" * 2)
    assert "1 of the 2 prompts" in refusal(capsys, "digits", "--videos", tmp_path, "--prompts", requested)


@pytest.mark.parametrize("count", (32, 128))
def test_shipped_prompt_files_follow_the_rule_and_are_even(count):
    prompts = (ROOT / f"prompts/digits_{count}.txt").read_text().splitlines()
    assert prompts == balanced_prompts(count) == balanced_prompts(200)[:count]
    assert len(set(prompts)) == count and set(prompts) <= set(all_prompts())
    subjects = [parse_prompt(p)[0] for p in prompts]
    kinds = {"digit": range(10), "colour": COLOURS, "direction": DIRECTIONS}
    for size in (1, 2):
        for names in combinations(kinds, size):
            found = [tuple(getattr(s, n) for n in names) for s in subjects]
            possible = np.prod([len(kinds[n]) for n in names])
            counts = [found.count(f) for f in set(found)] + [0] * int(possible > len(set(found)))
            assert max(counts) - min(counts) <= 1, names


def test_frechet_columns_stand_in_json_and_table(tmp_path):
    good, stills = tmp_path / "good", tmp_path / "stills"
    good.mkdir()
    stills.mkdir()
    indices = prompt_numbers(balanced_prompts(8))
    write(good, indices, num_frames=49)
    write(stills, indices, num_frames=49, frozen_after=16)
    _, result, text = run(tmp_path, "digits", "--videos", good, stills, "--partial", "--windows", 2)
    rows = {name: row["frechet"] for name, row in result["rows"].items()}
    assert set(rows["good"]) == {"all", "first", "last", "floor"}
    assert rows["good"]["floor"] == rows["stills"]["floor"] and len(rows["good"]["floor"]["draws"]) == 5
    assert rows["stills"]["last"]["mean"] > 1.1 * rows["good"]["last"]["mean"] > 0
    assert rows["good"]["first"]["mean"] == pytest.approx(rows["good"]["floor"]["mean"], rel=0.3)
    value = rows["stills"]["last"]
    shown = f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
    assert shown in text and "| frechet | looks | drift: digit" in text.splitlines()[4]
