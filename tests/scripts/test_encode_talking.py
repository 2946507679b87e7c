"""scripts/encode_latents.py: talking videos with their sound, and talking digits drawn there."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import encode_latents
from tests.architecture.source import ROOT
from trainer.preflight import find_misheard
from trainer.sources.config import TalkingConfig
from utils.data.latents import read_facts, shard_path
from utils.data.talking import TalkingFolder
from utils.data.talking_media import find_portrait
from utils.digits.speaking import FPS, RATE, random_talk
from utils.media.audio import ArraySound, LiveSound
from utils.media.mp4 import VideoWriter
from utils.rng import Rng
from wan.audio.config import AudioConfig
from wan.generation import GenerationConfig
from wan.ledger import CacheConfig

VAE, EAR = str(ROOT / "assets/digits/vae"), str(ROOT / "assets/digits_s2v/audio_encoder")
FRAMES, SEED = 33, 3
LATENTS = 9
TALKS = [random_talk(number, FRAMES, SEED) for number in range(3)]


def louder(sound: np.ndarray) -> ArraySound:
    """Returns a sound at the rate of a video's track."""
    live = LiveSound(48_000)
    live.append(sound, RATE)
    return ArraySound(live.read(0, live.length), 48_000)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three talking digits as files: two with a portrait beside them."""
    folder = tmp_path_factory.mktemp("talks")
    for number, talk in enumerate(TALKS):
        with VideoWriter(folder / f"{number}.mp4", FPS, crf=1, sound=louder(talk.sound)) as video:
            video.write(talk.frames)
        (folder / f"{number}.txt").write_text(talk.prompt)
        if number != 1:
            Image.fromarray(talk.picture).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def talks(made, tmp_path):
    """A copy of them."""
    folder = tmp_path / "talks"
    folder.mkdir()
    for path in made.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def encode(folder, output, *more) -> int:
    flags = ["--frames", str(FRAMES), "--height", "64", "--width", "64", "--fps", str(FPS), "--left", "4"]
    flags += ["--shard_clips", "2", "--input", str(folder), "--output", str(output), "--ear", EAR, "--vae", VAE]
    return encode_latents.main(["talking", *flags, *map(str, more)])


def draw(output, *more) -> int:
    flags = ["--vae", VAE, "--ear", EAR, "--clips", "3", "--shard_clips", "3", "--frames", str(FRAMES)]
    return encode_latents.main(["speaking_digits", *flags, "--output", str(output), *map(str, more)])


@pytest.fixture(scope="module")
def both(made, tmp_path_factory):
    """The clips of the files, and the same digits encoded as they are drawn."""
    output = tmp_path_factory.mktemp("both")
    assert encode(made, output / "files") == 0 and draw(output / "drawn", "--seed", SEED) == 0
    return TalkingFolder(output / "files"), TalkingFolder(output / "drawn")


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.flatten().float(), b.flatten().float())))[0, 1])


def test_files_are_encoded_as_their_digits_are(both):
    files, drawn = both
    assert files.prompts == drawn.prompts == [talk.prompt for talk in TALKS]
    for number in range(3):
        read, true = files.clip(number), drawn.clip(number)
        assert read.latents.shape == (LATENTS, 16, 8, 8) and read.audio.shape == (1, 4 * LATENTS, 4, 64)
        assert read.audio.dtype == read.latents.dtype == torch.float16
        if number != 1:
            assert torch.allclose(read.reference, true.reference, atol=1e-3), "a picture comes as it was drawn"
            assert correlation(read.latents, true.latents) > 0.999, "through H.264"


def test_sound_and_picture_of_a_file_are_in_step(both):
    """Its sound heard a frame late, or early, fits less."""
    files, drawn = both
    read = torch.cat([files.clip(number).audio for number in range(3)])[:, 3:]
    true = torch.cat([drawn.clip(number).audio for number in range(3)])[:, 3:]
    fit = correlation(read, true)
    assert fit > 0.999
    for late, early in ((read[:, 1:], true[:, :-1]), (read[:, :-1], true[:, 1:])):
        assert correlation(late, early) < 0.95


def test_a_video_without_a_picture_shows_itself(both):
    """Its portrait is one of its frames."""
    files, drawn = both
    assert not torch.equal(files.clip(1).reference, drawn.clip(1).reference)


def test_a_portrait_comes_from_behind_the_clip(tmp_path):
    frames = np.zeros((24, 32, 32, 3), np.uint8) + 10 * np.arange(24, dtype=np.uint8)[:, None, None, None]
    with VideoWriter(tmp_path / "a.mp4", 8) as video:
        video.write(frames)
    found = {round(find_portrait(tmp_path / "a.mp4", 2.0, Rng(seed)).mean() / 10) for seed in range(40)}
    assert found == set(range(16, 24))
    whole = {round(find_portrait(tmp_path / "a.mp4", 3.0, Rng(seed)).mean() / 10) for seed in range(40)}
    assert min(whole) < 12 and max(whole) <= 23, "a video as long as its clip: one of its own"
    again = find_portrait(tmp_path / "a.mp4", 2.0, Rng(0))
    assert (again == find_portrait(tmp_path / "a.mp4", 2.0, Rng(0))).all()


def test_a_killed_run_goes_on(talks, tmp_path):
    output = tmp_path / "a"
    assert encode(talks, output) == 0
    before = TalkingFolder(output).clip(2)
    stamp = shard_path(output, 0).stat().st_mtime_ns
    shard_path(output, 1).unlink()
    assert encode(talks, output) == 0
    again = TalkingFolder(output).clip(2)
    assert shard_path(output, 0).stat().st_mtime_ns == stamp
    assert torch.equal(before.latents, again.latents) and torch.equal(before.audio, again.audio)
    files = json.loads(read_facts(shard_path(output, 0))["made_from"])["files"]
    assert files[0]["picture"]["name"] == "0.png" and files[1]["picture"] is None


@pytest.mark.parametrize(
    ("flag", "value"), [("--left", 2), ("--lead", 1), ("--window", "file"), ("--chunk", 1), ("--seed", 1), ("--fps", 4)]
)
def test_other_settings_are_refused(talks, tmp_path, capsys, flag, value):
    for name in ("1", "2"):
        (talks / f"{name}.txt").unlink()
    assert encode(talks, tmp_path / "a", "--on_bad", "skip", "--frames", 5) == 0
    assert encode(talks, tmp_path / "a", "--on_bad", "skip", "--frames", 5, flag, value) == 2
    assert f"{flag[2:]}: " in capsys.readouterr().err


def test_a_changed_portrait_is_refused(talks, tmp_path, capsys):
    assert encode(talks, tmp_path / "a", "--frames", 5) == 0
    Image.new("RGB", (64, 64), (9, 9, 9)).save(talks / "0.png")
    assert encode(talks, tmp_path / "a", "--frames", 5) == 2
    assert "0.mp4, which is no longer the same (picture." in capsys.readouterr().err


def test_bad_files_stop_or_are_left_out(talks, tmp_path, capsys, caplog):
    silent = talks / "silent.mp4"
    with VideoWriter(silent, FPS) as video:
        video.write(TALKS[0].frames)
    silent.with_suffix(".txt").write_text("a three moves left")
    (talks / "0.png").write_bytes(b"rubbish")
    (talks / "lonely.png").write_bytes((talks / "2.png").read_bytes())
    assert encode(talks, tmp_path / "a", "--frames", 5) == 2
    assert "0.png" in capsys.readouterr().err
    (talks / "0.png").unlink()
    assert encode(talks, tmp_path / "a", "--frames", 5) == 2
    assert "silent.mp4 has no sound track" in capsys.readouterr().err
    assert encode(talks, tmp_path / "a", "--frames", 5, "--on_bad", "skip") == 0
    assert len(TalkingFolder(tmp_path / "a")) == 3
    assert "1 pictures have no video of their name: lonely.png" in caplog.text


def test_a_sound_that_ends_early_is_refused(tmp_path, capsys):
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        pictures, sound = file.add_stream("libx264", rate=FPS), file.add_stream("aac", rate=16_000)
        pictures.width, pictures.height, pictures.pix_fmt, sound.layout = 64, 64, "yuv420p", "mono"
        for frame in TALKS[0].frames[:FRAMES]:
            file.mux(pictures.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        frame = av.AudioFrame.from_ndarray(TALKS[0].sound[None, :16_000], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        file.mux(sound.encode(frame))
        file.mux(sound.encode(None))
        file.mux(pictures.encode(None))
    (tmp_path / "a.txt").write_text("a three moves left")
    assert encode(tmp_path, tmp_path / "out") == 2
    assert "s of sound for a clip of 4.12 s; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--height", 96), "must be multiples of 64"),
        (("--left", -1), "left"),
        (("--look_ahead", 1, "--window", "file"), "leave look_ahead out"),
        (("--lead", 9), "lead"),
        (("--fps", 0), "--fps is 0"),
        (("--chunk", 0), "--chunk 0"),
        (("--frames", 6), "4n+1"),
        (("--ear", VAE), "not a wav2vec2 folder"),
        (("--input", "nowhere"), "nowhere is not a folder"),
        (("--input", str(ROOT / "assets")), "no videos"),
    ],
)
def test_wrong_flags_are_refused(made, tmp_path, capsys, flags, words):
    assert encode(made, tmp_path / "a", *flags) == 2
    assert words in capsys.readouterr().err


def test_batches_need_not_fill_a_shard(tmp_path):
    """Two and one make the three of a shard, with the same clips as one at a time, and none twice."""
    assert (
        draw(tmp_path / "a", "--batch", 2, "--frames", 5) == 0
        and draw(tmp_path / "b", "--batch", 1, "--frames", 5) == 0
    )
    two, one = TalkingFolder(tmp_path / "a"), TalkingFolder(tmp_path / "b")
    assert two.prompts == one.prompts and len(two) == 3
    for number in range(3):
        assert torch.equal(two.clip(number).audio, one.clip(number).audio)
        assert torch.allclose(two.clip(number).latents.float(), one.clip(number).latents.float(), atol=2e-3)


def test_shards_that_were_heard_otherwise_are_refused(both):
    """Both sides are named; files and drawn digits, both say how they were heard."""
    generation = GenerationConfig(cache=CacheConfig(9, content="same_step"))
    for folder in both:
        config = TalkingConfig(path=str(folder.folder), frames=6, audio=AudioConfig(left=4.0))
        assert config.build(generation).clips.prompts == folder.prompts
        for audio, words in (
            (AudioConfig(), "heard with --left 4.0 and the recipe says audio.left=8.0"),
            (AudioConfig(left=4.0, lead=3), "--lead 0 and the recipe says audio.lead=3"),
            (AudioConfig("file", 4.0), "--window chunk and the recipe says audio.window=file"),
        ):
            with pytest.raises(ValueError, match=words):
                replace(config, audio=audio).build(generation)
        with pytest.raises(ValueError, match="--chunk 3 and the recipe says generation.chunk=2"):
            config.build(replace(generation, chunk=2))
        found = list(find_misheard(replace(config, audio=AudioConfig()), generation))
        assert [key for key, _ in found] == ["trainer.source.path"]
