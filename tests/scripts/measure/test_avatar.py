"""`evaluate.py avatar`: what is heard with which face, identity, drift, the user's weights, and bad input refused."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.measure import avatar_models, avatar_windows
from scripts.measure.avatar_input import Subject
from scripts.measure.avatar_models import Models, load_likeness, load_syncnet
from scripts.measure.avatar_windows import Plan, measure
from tests.scripts.measure.evaluation import refusal, run
from tests.utils.media.test_audio import save
from utils.media.audio import ArraySound
from utils.media.mp4 import VideoWriter
from utils.metrics.syncnet import SyncNet

SIZE, RATE = 64, 48_000
FACE = ("--face", 8, 8, 56, 56)
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def write(path, frames, fps=25, sound=None, crf=0):
    track = None if sound is None else ArraySound(sound, RATE)
    with VideoWriter(path, fps, crf=crf, sound=track) as video:
        video.write(frames)
    return path


def picture(seed=0):
    """A picture of coarse patches, which a video keeps."""
    patches = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return patches.repeat(SIZE // 8, 0).repeat(SIZE // 8, 1)


def still(count, seed=0):
    return np.repeat(picture(seed)[None], count, 0)


def hum(seconds):
    return 0.3 * np.sin(np.arange(int(seconds * RATE)) / 20).astype(np.float32)


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    """A folder with a talking video, its portrait, and a list of samples."""
    folder = tmp_path_factory.mktemp("talks")
    write(folder / "anchor-0.mp4", still(26), sound=hum(1.2))
    Image.fromarray(picture()).save(folder / "anchor.png")
    save(folder / "voice.wav", 16_000, seconds=1.2)
    sample = {"prompt": "a woman speaks", "image": "anchor.png", "audio": "voice.wav", "num_clip": 1}
    (folder / "list.json").write_text(json.dumps({"anchor": sample | {"face": [8, 8, 56, 56]}}))
    return folder


def test_random_weights_go_all_the_way_and_say_so(talks, tmp_path):
    given = ("--videos", talks, "--sample_list", talks / "list.json", "--syncnet", "random", "--identity", "random")
    status, result, text = run(tmp_path, "avatar", *given)
    row = result["rows"]["anchor-0"]
    assert status == 0 and row["seconds"] == 1.04 and len(row["windows"]) == 1
    assert row["first"]["sync_c"] > 0 and row["first"]["sync_d"] > 0
    assert -15 <= row["first"]["offset"] <= 15
    assert row["first"]["identity"] == pytest.approx(1, abs=0.01)  # a still of the portrait
    assert len(row["identity"]) == 3 and row["drift"]["sync_c"] is None
    assert row["sound"] == "its own track" and row["reference"].endswith("anchor.png")
    assert len(result["notes"]) == 2 and all("random weights" in note and note in text for note in result["notes"])
    with open(tmp_path / "result/table_windows.csv") as file:
        (window,) = csv.DictReader(file)
    assert float(window["sync_d"]) == pytest.approx(row["first"]["sync_d"], rel=1e-4)
    assert window["syncnet_weights"] == window["identity_weights"] == "random" and float(window["identity"]) > 0.9
    with open(tmp_path / "result/table.csv") as file:
        (line,) = csv.DictReader(file)
    assert line["video"] == "anchor-0" and line["mean_psnr"] == "" and float(line["fps"]) == 25
    assert (tmp_path / "result/table.png").stat().st_size > 5_000


@pytest.mark.parametrize(("fps", "count"), [(25, 150), (8, 48), (50, 300)])
@pytest.mark.parametrize("own", [True, False])
def test_a_face_is_heard_with_the_sound_of_its_time(tmp_path, monkeypatch, fps, count, own):
    """Flash and click of each second meet in every window, whatever the video's rate and wherever its sound is from."""
    frames, sound = np.full((count, SIZE, SIZE, 3), 40, np.uint8), np.zeros(6 * RATE, np.float32)
    for second in range(1, 6):
        frames[second * fps], sound[second * RATE : second * RATE + 480] = 220, 0.8
    video = write(tmp_path / "v.mp4", frames, fps, sound if own else None)
    save(tmp_path / "s.wav", RATE, samples=sound[None])
    seen = []

    def listen(net, faces, samples):
        flashes, clicks = (
            np.flatnonzero(faces.mean((1, 2, 3)) > 130) / 25,
            np.flatnonzero(np.abs(samples) > 0.3) / 16_000,
        )
        seen.append((len(faces), len(samples)))
        starts = clicks[np.r_[True, np.diff(clicks) > 0.5]]
        beginnings = flashes[np.r_[True, np.diff(flashes) > 0.5]]
        assert len(starts) == len(beginnings) and np.abs(starts - beginnings).max() <= 0.02 + 0.5 / min(fps, 25)

    monkeypatch.setattr(avatar_windows, "sync_score", listen)
    subject = Subject("v", video, sounds=(tmp_path / "s.wav",), face=(0, 0, SIZE, SIZE))
    rows = measure(subject, Models(SyncNet(), None), Plan(window=2.0))["windows"]
    assert [(row["begin"], row["end"]) for row in rows] == [(0, 2), (2, 4), (4, 6)]
    assert [samples for _, samples in seen] == [faces * 640 for faces, _ in seen]
    assert sum(faces for faces, _ in seen) == 150 and all(abs(faces - 50) <= 1 for faces, _ in seen)


def test_windows_tell_what_changes_along_a_video(tmp_path):
    """A video that becomes another person, brighter and greyer; a rest shorter than half a window is left out."""
    frames = np.concatenate([still(20), np.full((28, SIZE, SIZE, 3), 200, np.uint8)])
    video = write(tmp_path / "v.mp4", frames, 8)
    Image.fromarray(picture()).save(tmp_path / "p.png")
    found = measure(Subject("v", video, tmp_path / "p.png"), Models(None, load_likeness("random")), Plan(window=2.5))
    assert [row["frames"] for row in found["windows"]] == [20, 20] and found["seconds"] == 6
    drift = found["drift"]
    assert drift["identity"] < -0.05 and drift["sharpness"] < -5 and drift["saturation"] < -20
    assert drift["brightness"] > 50 and drift["sync_c"] is None and drift["psnr"] is None
    assert found["first"]["identity"] == pytest.approx(1, abs=0.01)
    cut = measure(Subject("v", video), Models(None, load_likeness("random")), Plan(2.5, 0.5, 2.0))
    assert cut["seconds"] == 2 and cut["reference"] == "its first frame"
    assert [time for time, _ in cut["identity"]] == [0, 0.5, 1, 1.5]


def test_a_recorded_truth_is_compared_frame_by_frame(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    truth = still(20)
    write(tmp_path / "v.mp4", truth, 8)
    write(folder / "v.mp4", np.concatenate([truth, truth[:4]]), 8)  # up to whole chunks
    write(folder / "w.mp4", truth, 8)
    status, result, text = run(tmp_path, "avatar", "--videos", folder, "--truth", tmp_path)
    rows = result["rows"]
    assert status == 0 and rows["v"]["truth_frames"] == 20 and rows["w"]["truth_frames"] == 0
    assert rows["v"]["mean"]["psnr"] == "inf" and rows["v"]["mean"]["ssim"] == 1 and rows["w"]["mean"]["psnr"] is None
    assert "frames compared with a recorded truth: v 20; w 0" in text
    darker = write(tmp_path / "d.mp4", truth // 2, 8)
    (row,) = run(tmp_path, "avatar", "--videos", darker, "--truth", tmp_path / "v.mp4")[1]["rows"].values()
    square = np.square(truth.astype(float) - truth // 2).mean()
    assert row["mean"]["psnr"] == pytest.approx(
        10 * math.log10(255**2 / square), abs=0.3
    )  # but for the codec's colours
    assert row["mean"]["ssim"] < 0.95


@pytest.mark.parametrize("kind", ["CLIPVision", "CLIP", "Dinov2", "ViT"])
def test_a_folder_of_the_users_sees_as_its_library_does(tmp_path, kind):
    import transformers

    torch.manual_seed(0)
    tower = SMALL | ({"mlp_ratio": 2} if kind == "Dinov2" else {"intermediate_size": 32})
    if kind == "CLIP":
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.CLIPConfig(text_config=text | {"vocab_size": 50}, vision_config=tower, projection_dim=8)
        model = transformers.CLIPModel(config)
    else:
        name = {"CLIPVision": "CLIPVisionModelWithProjection"}.get(kind, f"{kind}Model")
        model = getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**tower))
    model.eval().save_pretrained(tmp_path)
    mean, std = [0.2, 0.3, 0.4], [0.5, 0.6, 0.7]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    likeness, frames = load_likeness(str(tmp_path)), np.stack([picture(1)[:28, :28], picture(2)[:28, :28]])
    pixels = torch.from_numpy(frames / 255 - mean).float().div(torch.tensor(std)).permute(0, 3, 1, 2)
    with torch.no_grad():
        if kind == "CLIP":
            expected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        else:
            out = model(pixel_values=pixels)
            expected = out.image_embeds if kind == "CLIPVision" else out.last_hidden_state[:, 0]
    assert torch.allclose(likeness(frames), torch.nn.functional.normalize(expected, dim=-1), atol=1e-5)


def test_syncnets_weights_are_read_as_they_were_published(tmp_path, capsys, talks):
    """A torch archive of old, without the counters that later releases write."""
    net = load_syncnet("random")
    state = {name: tensor for name, tensor in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "syncnet_v2.model", _use_new_zipfile_serialization=False)
    found = load_syncnet(str(tmp_path / "syncnet_v2.model")).state_dict()
    assert all((found[name] == tensor).all() for name, tensor in state.items())
    torch.save({"netfclip.0.weight": torch.zeros(2)}, tmp_path / "other.model")
    message = refusal(capsys, "avatar", "--videos", talks, *FACE, "--syncnet", tmp_path / "other.model")
    assert "SyncNet's weights" in message and "missing" in message and "mis-shaped" in message


def test_a_model_that_is_none_is_refused(tmp_path, capsys, talks):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for identity, part in ((tmp_path, "model_type 'bert'"), (tmp_path / "x", "not there"), (talks, "config.json is")):
        assert part in refusal(capsys, "avatar", "--videos", talks, "--identity", identity)
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    assert "no weights" in refusal(capsys, "avatar", "--videos", talks, "--identity", tmp_path)
    assert "github.com/joonson" in refusal(capsys, "avatar", "--videos", talks, "--syncnet", tmp_path / "no.model")


@pytest.fixture
def no_weights(monkeypatch):
    """Fails a test that reads weights."""

    def read(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(avatar_models, "load_models", read)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--videos", "nowhere"), "nowhere does not exist"),
        (("--videos", "TALKS/anchor.png"), "anchor.png"),
        (("--videos", "TALKS", "--window", 0.1), "--window is 0.1"),
        (("--videos", "TALKS", "--every", "nan"), "--every is nan"),
        (("--videos", "TALKS", "--seconds", 0.5), "--seconds is 0.5"),
        (("--videos", "TALKS", "--truth", "nowhere"), "--truth is nowhere"),
        (("--videos", "TALKS", "--truth", "TALKS/voice.wav"), "voice.wav"),
        (("--videos", "TALKS", "--image", "TALKS/voice.wav"), "cannot be read as an image"),
        (("--videos", "TALKS", "--syncnet", "random"), "--face LEFT TOP RIGHT BOTTOM"),
        (("--videos", "TALKS", "--face", 0, 0, 65, 10), "64 x 64 pixels"),
        (("--videos", "TALKS", "--sample_list", "TALKS/voice.wav"), "voice.wav"),
        (("--videos", "TALKS", "--sample_list", "nowhere.json"), "nowhere.json is not a file"),
    ],
)
@pytest.mark.usefixtures("no_weights")
def test_bad_input_is_told_before_weights_are_read(talks, capsys, given, message):
    told = [str(word).replace("TALKS", str(talks)) for word in given]
    assert message in refusal(capsys, "avatar", *told)


@pytest.mark.usefixtures("no_weights")
def test_videos_that_are_no_use_are_all_named(tmp_path, capsys, talks):
    write(tmp_path / "a.mp4", still(20))
    write(tmp_path / "b.mp4", still(30))
    write(tmp_path / "c.mp4", still(30), sound=hum(0.5))
    message = refusal(capsys, "avatar", "--videos", tmp_path, *FACE, "--syncnet", "random")
    assert "2 problems" in message and "shows 0.8 s" in message and "b.mp4 has no sound track" in message
    truth = ("--truth", write(tmp_path / "t.mp4", np.zeros((30, 32, 32, 3), np.uint8)))
    assert "32 x 32 pixels at 25 a second" in refusal(capsys, "avatar", "--videos", tmp_path / "b.mp4", *truth)
    other = json.dumps({"anchor": {}, "lost": {}})
    (tmp_path / "l.json").write_text(other)
    listed = ("avatar", "--videos", talks, "--sample_list", tmp_path / "l.json")
    assert "1 of 2 samples have no video: lost" in refusal(capsys, *listed)


def test_a_video_damaged_farther_on_costs_no_other(tmp_path, capsys):
    folder = tmp_path / "v"
    folder.mkdir()
    for name in "ab":
        write(folder / f"{name}.mp4", np.random.default_rng(0).integers(0, 256, (100, SIZE, SIZE, 3), dtype=np.uint8))
    data = bytearray((folder / "a.mp4").read_bytes())
    place = data.index(b"mdat", len(data) // 2) + 4
    data[place : place + 4_000] = b"\xff" * 4_000
    (folder / "a.mp4").write_bytes(data)
    message = refusal(capsys, "avatar", "--videos", folder, "--output", tmp_path / "o.json")
    assert "a could not be measured" in message
    result = json.loads((tmp_path / "o.json").read_text())
    assert list(result["rows"]) == ["b"] and list(result["failed"]) == ["a"]
    assert "not measured: a" in (tmp_path / "o.md").read_text()
