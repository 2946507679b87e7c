"""scripts/encode_latents.py: digits, a folder of videos, and shards as an LMDB."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import encode_latents
from tests.architecture.source import ROOT
from utils.claims import claimed
from utils.data.latents import LatentFolder, read_facts, shard_path
from utils.data.lmdb_store import LmdbPairs
from utils.data.pairs import PairFolder, write_pairs
from utils.media.mp4 import VideoWriter

VAE = str(ROOT / "assets/digits/vae")


@pytest.fixture
def videos(tmp_path):
    """Three videos of 5 frames of 32 x 32 with captions, and the flags that encode them."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(3):
        frames = np.random.default_rng(number).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
        with VideoWriter(folder / f"{number}.mp4", 8) as writer:
            writer.write(frames)
        (folder / f"{number}.txt").write_text(f"clip {number}")
    return folder


def encode(folder, output, *more) -> int:
    size = ("--frames", "5", "--height", "32", "--width", "32", "--shard_clips", "2")
    return encode_latents.main(["folder", "--vae", VAE, "--input", str(folder), "--output", str(output), *size, *more])


def test_a_folder_of_videos_resumes(videos, tmp_path, capsys):
    output = tmp_path / "latents"
    assert encode(videos, output) == 0, capsys.readouterr().err
    clips = LatentFolder(output)
    assert [prompt for _, prompt in (clips[i] for i in range(3))] == ["clip 0", "clip 1", "clip 2"]
    assert clips[0][0].shape == (2, 16, 4, 4) and clips[0][0].dtype == torch.float16
    assert json.loads(read_facts(shard_path(output, 0))["files"]) == ["0.mp4", "1.mp4"]
    stamp = shard_path(output, 0).stat().st_mtime_ns
    shard_path(output, 1).unlink()
    assert encode(videos, output) == 0
    assert shard_path(output, 0).stat().st_mtime_ns == stamp and len(LatentFolder(output)) == 3
    assert torch.equal(LatentFolder(output)[2][0], clips[2][0])


def test_a_bad_file_stops_or_is_skipped(videos, tmp_path, capsys):
    (videos / "1.txt").unlink()
    assert encode(videos, tmp_path / "a") == 2
    assert "1.mp4 has no caption" in capsys.readouterr().err
    assert encode(videos, tmp_path / "a", "--on_bad", "skip") == 0
    assert LatentFolder(tmp_path / "a").prompts == ["clip 0", "clip 2"]


def test_a_changed_folder_is_refused(videos, tmp_path, capsys):
    assert encode(videos, tmp_path / "a") == 0
    (videos / "0.mp4").rename(videos / "9.mp4")
    (videos / "0.txt").rename(videos / "9.txt")
    assert encode(videos, tmp_path / "a") == 2
    assert "the folder has changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"), [("--frames", "1"), ("--resize", "stretch"), ("--fps", "4"), ("--dtype", "bf16")]
)
def test_other_settings_are_refused(videos, tmp_path, capsys, flag, value):
    assert encode(videos, tmp_path / "a") == 0
    assert encode(videos, tmp_path / "a", flag, value) == 2
    assert f"{flag[2:]}: " in capsys.readouterr().err


def test_new_files_are_added_and_changed_ones_named(videos, tmp_path, capsys):
    output = tmp_path / "a"
    assert encode(videos, output) == 0
    for name in ("00", "7"):  # before and behind the others
        (videos / f"{name}.MP4").write_bytes((videos / "0.mp4").read_bytes())
        (videos / f"{name}.txt").write_text(f"clip {name}")
    assert encode(videos, output) == 0, capsys.readouterr().err
    assert LatentFolder(output).prompts == ["clip 0", "clip 1", "clip 2", "clip 00", "clip 7"]
    (videos / "2.txt").write_text("another")
    assert encode(videos, output) == 2
    assert "2.mp4, which is no longer the same (caption)" in capsys.readouterr().err


def test_a_shard_that_another_run_makes_is_left(videos, tmp_path, caplog):
    output = tmp_path / "a"
    with claimed([shard_path(output, 0)]):
        assert encode(videos, output) == 0
    assert "1 shards" in caplog.text and LatentFolder(output).prompts == ["clip 2"]
    assert encode(videos, output) == 0 and len(LatentFolder(output)) == 3


def test_what_is_not_encoded_is_named(videos, tmp_path, caplog):
    (videos / "more").mkdir()
    (videos / "9.txt").write_text("no video")
    (videos / "8.mp4x").write_bytes(b"rubbish")
    (videos / "5.unknown").write_bytes((videos / "0.mp4").read_bytes())  # told by its content
    (videos / "5.txt").write_text("clip 5")
    assert encode(videos, tmp_path / "a") == 0
    assert LatentFolder(tmp_path / "a").prompts[-1] == "clip 5"
    for name in ("more", "9.txt", "8.mp4x"):
        assert name in caplog.text


def test_wrong_sizes_are_refused(videos, tmp_path, capsys):
    assert encode(videos, tmp_path / "a", "--width", "33") == 2
    assert "multiples" in capsys.readouterr().err
    assert encode(videos, tmp_path / "a", "--frames", "6") == 2
    assert "4n+1" in capsys.readouterr().err


def test_images_have_one_latent_frame(tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (40, 40), (0, 255, 0)).save(folder / "a.png")
    (folder / "a.txt").write_text("green")
    assert encode(folder, tmp_path / "latents") == 0, capsys.readouterr().err
    assert LatentFolder(tmp_path / "latents")[0][0].shape == (1, 16, 4, 4)


def test_digits_are_encoded_as_before(tmp_path):
    flags = ["--clips", "2", "--frames", "5", "--shard_clips", "2", "--batch", "2", "--output", str(tmp_path)]
    assert encode_latents.main(["digits", "--vae", VAE, *flags]) == 0
    clips = LatentFolder(tmp_path)
    assert len(clips) == 2 and clips[0][0].shape == (2, 16, 8, 8) and "moves" in clips.prompts[0]


def test_shards_become_an_lmdb(tmp_path, capsys):
    write_pairs(tmp_path / "pairs", 0, torch.randn(3, 2, 2, 4, 2, 2), ["a", "b", "c"], (1.0, 0.0))
    flags = ["--input", str(tmp_path / "pairs"), "--output", str(tmp_path / "store"), "--num_shards", "2"]
    assert encode_latents.main(["lmdb", *flags]) == 0, capsys.readouterr().err
    store, pairs = LmdbPairs(tmp_path / "store"), PairFolder(tmp_path / "pairs")
    assert store.sigmas == (1.0, 0.0) and len(store) == 3
    assert torch.equal(store[0][0], pairs[0][0]) and store[1][1] == "c"
    assert encode_latents.main(["lmdb", *flags]) == 2
    assert "exists" in capsys.readouterr().err
