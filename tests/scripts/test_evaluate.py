"""scripts/evaluate.py: tables, verdicts, and what it says about bad folders."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from utils.data.digits import prompt_clip
from utils.media_io import VideoWriter

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("evaluate", ROOT / "scripts/evaluate.py")
evaluate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(evaluate)


def write(folder, indices, num_frames=17, frozen_after=None, **sidecar):
    for i in indices:
        clip, subject = prompt_clip(i, num_frames, 3)
        clip[frozen_after:] = clip[frozen_after:][:1] if frozen_after else clip[frozen_after:]
        with VideoWriter(folder / f"{i}.mp4", 8) as video:
            video.write(clip)
        (folder / f"{i}.json").write_text(json.dumps({"prompt": subject.text(), "seed": 3} | sidecar))


def run(tmp_path, *argv):
    """Returns (exit status, the saved JSON, the saved markdown)."""
    output = tmp_path / "result/table.json"
    status = evaluate.main([*map(str, argv), "--output", str(output)])
    return status, json.loads(output.read_text()), output.with_suffix(".md").read_text()


def refusal(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*map(str, argv)])
    assert stop.value.code == 2
    return capsys.readouterr().err


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
        return {v["what"]: v["pass"] for v in evaluate.judge_models(rows, ["m"])}

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
    assert "has 17 frames, 33 are asked" in refusal(capsys, *partial, "--frames", 33)
    sidecar = tmp_path / "1.json"
    for content, message in [
        ("{", "is no JSON"),
        ('{"seed": 1}', "lacks ['prompt']"),
        ("[]", "lacks ['prompt', 'seed']"),
        ('{"prompt": "a pink one moves up", "seed": 1}', "'pink'"),
        ('{"prompt": "a red one moves up and a blue two moves up", "seed": 1}', "one-digit prompts"),
    ]:
        sidecar.write_text(content)
        assert message in refusal(capsys, *partial)
    sidecar.unlink()
    assert "no 1.json beside it" in refusal(capsys, *partial)
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
