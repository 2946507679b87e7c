"""`evaluate.py compare`: known differences, folders by name, and what it says about videos that do not fit."""

import json
import math

import numpy as np
import pytest

from scripts import evaluate
from utils.media.mp4 import VideoWriter
from utils.media.video import read_video


def save_video(path, shift=0, num_frames=5, size=(32, 48), fps=8, blink=0):
    """Writes grey stripes that move, brighter by `shift`, every second frame brighter by `blink`; returns the path."""
    ramp = (np.arange(size[1]) * 4)[None, None, :, None] + np.arange(num_frames)[:, None, None, None]
    level = np.clip(40 + ramp % 120 + shift + blink * (np.arange(num_frames) % 2)[:, None, None, None], 0, 255)
    path.parent.mkdir(exist_ok=True)
    with VideoWriter(path, fps, crf=0) as video:
        video.write(np.broadcast_to(level, (num_frames, *size, 3)).astype(np.uint8))
    return path


def run(tmp_path, *argv):
    """Returns (the saved JSON, the saved markdown); asserts that the plot is a picture."""
    output = tmp_path / "result/compared.json"
    assert evaluate.main(["compare", *map(str, argv), "--output", str(output)]) == 0
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return json.loads(output.read_text()), output.with_suffix(".md").read_text()


def refusal(capsys, *argv):
    assert evaluate.main(["compare", *map(str, argv)]) == 2
    return capsys.readouterr().err


def test_a_video_equals_itself(tmp_path, capsys):
    a, b = save_video(tmp_path / "a.mp4"), save_video(tmp_path / "b.mp4")
    result, text = run(tmp_path, a, b)
    row = result["rows"]["a.mp4 / b.mp4"]
    assert (row["psnr"], row["ssim"], row["frames"]) == ("inf", 1, 5) and float(row["psnr"]) == math.inf
    assert row["sharpness"]["a"] == row["sharpness"]["b"] > 1
    assert row["flicker"]["a"] == row["flicker"]["b"] > 0.5 and row["per_frame"]["flicker_a"][0] is None
    assert "| a.mp4 / b.mp4 | 5 | inf dB | 1.0000 |" in text and text.strip() in capsys.readouterr().out


def test_known_difference_of_one_frame(tmp_path):
    a, b = save_video(tmp_path / "a.mp4"), save_video(tmp_path / "b.mp4", shift=20)
    frames = [read_video(path)[0].astype(float) for path in (a, b)]
    square = ((frames[0] - frames[1]) ** 2).mean((1, 2, 3))
    result, _ = run(tmp_path, a, b)
    row = result["rows"]["a.mp4 / b.mp4"]
    assert row["psnr"] == pytest.approx(10 * np.log10(255**2 / square.mean()), abs=1e-4)
    assert row["psnr"] == pytest.approx(22.1, abs=0.3)  # 20 levels
    assert row["per_frame"]["psnr"] == pytest.approx(10 * np.log10(255**2 / square), abs=1e-4)
    assert 0.8 < row["ssim"] < 0.999


def test_flicker_is_seen_in_the_video_that_has_it(tmp_path):
    result, _ = run(tmp_path, save_video(tmp_path / "a.mp4"), save_video(tmp_path / "b.mp4", blink=30))
    flicker = result["rows"]["a.mp4 / b.mp4"]["flicker"]
    assert flicker["b"] > flicker["a"] + 20


def test_folders_are_matched_by_name(tmp_path):
    for name, shift in (("one.mp4", 0), ("two.mp4", 10), ("lonely.mp4", 0), ("half.partial.mp4", 0)):
        save_video(tmp_path / "a" / name)
        save_video(tmp_path / "b" / name.replace("lonely", "other"), shift=shift)
    result, text = run(tmp_path, tmp_path / "a", tmp_path / "b")
    assert list(result["rows"]) == ["one.mp4", "two.mp4"]
    assert result["unmatched"] == {"a": ["lonely.mp4"], "b": ["other.mp4"]}
    assert result["rows"]["one.mp4"]["psnr"] == "inf" and result["rows"]["two.mp4"]["psnr"] < 40
    pooled = 10 * np.log10(255**2 / (result["rows"]["two.mp4"]["mse"] / 2))
    assert result["mean"]["pairs"] == 2 and result["mean"]["psnr"] == pytest.approx(pooled, abs=1e-3)
    assert f"only in {tmp_path / 'b'}: other.mp4" in text and "| mean of 2 |" in text


def test_videos_that_do_not_fit_are_named(tmp_path, capsys):
    a, short = save_video(tmp_path / "a.mp4"), save_video(tmp_path / "short.mp4", num_frames=3)
    assert "short.mp4 ends after 3 frames" in (printed := refusal(capsys, a, short)) and "--frames 3" in printed
    assert "short.mp4 ends after 3 frames" in refusal(capsys, short, a)
    result, _ = run(tmp_path, a, short, "--frames", 3)
    assert result["rows"]["a.mp4 / short.mp4"]["frames"] == 3
    assert "4 are requested, lower --frames" in refusal(capsys, a, short, "--frames", 4)
    assert "have 5 frames, 6 are requested" in refusal(capsys, a, a, "--frames", 6)
    assert "--frames is 0" in refusal(capsys, a, a, "--frames", 0)
    small = save_video(tmp_path / "small.mp4", size=(32, 32))
    assert "48 x 32" in (printed := refusal(capsys, a, small)) and "small.mp4 is 32 x 32" in printed
    slow = save_video(tmp_path / "slow.mp4", fps=4)
    assert "8 frames per second" in (printed := refusal(capsys, a, slow)) and "--any_fps" in printed
    assert run(tmp_path, a, slow, "--any_fps")[0]["rows"]["a.mp4 / slow.mp4"]["psnr"] == "inf"


def test_paths_that_do_not_fit_are_named(tmp_path, capsys):
    a = save_video(tmp_path / "a" / "x.mp4")
    save_video(tmp_path / "b" / "y.mp4")
    assert "does not exist" in refusal(capsys, a, tmp_path / "none.mp4")
    assert "one of" in refusal(capsys, a, tmp_path / "b")
    assert "no file name in common" in refusal(capsys, tmp_path / "a", tmp_path / "b")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    for pair in ((a, broken), (broken, a)):
        assert "broken.mp4 cannot be read" in refusal(capsys, *pair)


def test_a_video_is_read_frame_by_frame(tmp_path, monkeypatch):
    """At most two frames of each video are alive: a long video must not be held in memory."""
    import weakref

    from scripts.measure.compare import compare_pair
    from utils.media import video

    alive, most = weakref.WeakSet(), []

    class Frame(np.ndarray):
        __hash__ = object.__hash__

    decode = video._decode

    def counted(*args):
        for time, frame in decode(*args):
            frame = frame.view(Frame)
            alive.add(frame)
            most.append(len(alive))
            yield time, frame
            del frame

    monkeypatch.setattr(video, "_decode", counted)
    a = save_video(tmp_path / "a.mp4", num_frames=12)
    compare_pair(a, a)
    assert len(most) == 24 and max(most) <= 8  # of each: the first, one shown, one before, one being decoded
