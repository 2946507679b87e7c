"""A pose video under a talking one: as published on a clip, of another rate or length, by chunks, in the network."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.pose import PoseStream
from pipeline.track import Fixed
from tests import avatar_fixture as avatar
from tests.pipeline.test_audio_driven import NOISE, SOUND, text, video, voice
from utils.media.audio import ArraySound
from utils.media.mp4 import VideoWriter
from utils.media.video import read_video
from wan.geometry import Geometry, Span

GEOMETRY, FPS = Geometry(64, 64), 8
VAE = avatar.bundle().vae


def write(path, count, fps=FPS, size=64):
    """A bright bar that moves: no frame is the one before."""
    frames = np.zeros((count, size, size, 3), np.uint8)
    for number in range(count):
        frames[number, :, (5 * number) % (size - 8) : (5 * number) % (size - 8) + 8] = 200
    with VideoWriter(path, fps) as out:
        out.write(frames)
    return path


@pytest.fixture(scope="module")
def pose(tmp_path_factory):
    return write(tmp_path_factory.mktemp("pose") / "pose.mp4", 40)


def test_it_is_the_published_rule_on_one_clip(pose):
    """First frame once more before it, whole clip encoded, its first latent left out; lead 3 drops no frame."""
    frames = torch.from_numpy(read_video(pose)[0]).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    wanted = VAE.encode(torch.cat((frames[:1], frames[:24]))[None])[:, 1:]
    found = PoseStream(VAE, pose, GEOMETRY, FPS, lead=3).latents(Span(0, 6))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    in_step = VAE.encode(torch.cat((*[frames[:1]] * 4, frames[:21]))[None])[:, 1:]
    torch.testing.assert_close(PoseStream(VAE, pose, GEOMETRY, FPS).latents(Span(0, 6)), in_step, atol=1e-5, rtol=1e-5)


def test_any_order_of_chunks_gives_the_same_bits(pose):
    stream = PoseStream(VAE, pose, GEOMETRY, FPS)
    whole = stream.latents(Span(0, 9))
    for span in (Span(6, 9), Span(0, 3), Span(3, 6), Span(3, 6)):
        assert torch.equal(stream.latents(span), whole[:, span.start : span.stop])


def test_another_rate_or_size_is_taken_by_time(pose, tmp_path):
    """Twice the rate: every second frame. Another size is scaled."""
    frames = read_video(pose)[0]
    with VideoWriter(tmp_path / "fast.mp4", 2 * FPS, crf=0) as out:
        out.write(frames.repeat(2, 0))
    with VideoWriter(tmp_path / "wide.mp4", FPS, crf=0) as out:
        out.write(frames.repeat(2, 1).repeat(2, 2))
    wanted = PoseStream(VAE, pose, GEOMETRY, FPS).latents(Span(0, 5))
    other = PoseStream(VAE, pose, GEOMETRY, FPS / 2).latents(Span(0, 5))
    assert (wanted - other).abs().mean() > 0.1
    for name in ("fast.mp4", "wide.mp4"):
        found = PoseStream(VAE, tmp_path / name, GEOMETRY, FPS).latents(Span(0, 5))
        assert (wanted - found).abs().mean() < 0.1 * (wanted - other).abs().mean()


def test_behind_its_end_the_pose_is_black_and_said_so(tmp_path, caplog):
    short = write(tmp_path / "short.mp4", 9)
    frames = torch.from_numpy(read_video(short)[0]).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    black = torch.full((12, 3, 64, 64), -1.0)
    with caplog.at_level(logging.WARNING):
        found = PoseStream(VAE, short, GEOMETRY, FPS, lead=3).latents(Span(0, 5))
    wanted = VAE.encode(torch.cat((frames[:1], frames, black))[None, :21])[:, 1:]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert "ends after 1.125 s" in caplog.text


def test_the_network_follows_it_and_a_late_chunk_knows_its_own(pose):
    pipeline = avatar.pipeline()
    without, track = video(pipeline, voice(pipeline).track, 3), voice(pipeline, pose=pose).track
    made = video(pipeline, track, 6)
    assert not torch.equal(without, made[:, :3])
    late = voice(pipeline, pose=pose).track
    for span in pipeline.spans(15):
        track.at(span)
    for span in pipeline.spans(15)[::-1]:
        own, again = track.at(span).cut(span), late.at(span).cut(span)
        assert torch.equal(own.pose, again.pose) and own.pose.shape[1] == len(span)
    assert torch.equal(made, video(pipeline, track.over(Fixed(text())), 6))


def test_a_batch_and_clips_take_it_too(pose):
    clips = avatar.pipeline(clip_frames=3, steps=1)
    with_pose, without = (video(clips, voice(clips, **more).track, 6) for more in ({"pose": pose}, {}))
    assert not torch.equal(with_pose[:, 3:], without[:, 3:])
    pipeline = avatar.pipeline()
    condition = replace(avatar.bundle().condition(["a three moves left"] * 2, None), key="two")
    sounds = [[SOUND] for _ in range(2)]
    both = pipeline.voice(condition, avatar.portrait()[None].repeat(2, 1, 1, 1), sounds, FPS, pose=pose)
    chunks = pipeline.generate(both.track, lambda span, k: NOISE(span, k).repeat(2, 1, 1, 1, 1), 2, 3)
    made = torch.cat([chunk.latents for chunk in chunks], 1)
    assert torch.equal(made[0], made[1])
    torch.testing.assert_close(made[:1], video(pipeline, voice(pipeline, pose=pose).track, 3), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("clips", "wanted"), [(1, 9), (2, 12), (0, 12)])
def test_num_clip_counts_windows(clips, wanted):
    """5.6 s of sound at 8 frames a second are 45 frames, so 12 latent frames; the window is 9."""

    class Talk:
        sounds, num_clip = (), 0

        def open(self):
            return [ArraySound(SOUND.samples[: int(5.6 * 16_000)], 16_000)]

    assert avatar.pipeline(num_clip=clips).length(Talk(), FPS) == wanted
    mine = Talk()
    mine.num_clip = 1
    assert avatar.pipeline(num_clip=clips).length(mine, FPS) == 9
