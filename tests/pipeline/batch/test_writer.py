"""From chunks to files: whole or not at all, the same bytes for the same frames."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch

from pipeline.batch.request import Request
from pipeline.batch.writer import VideoBatchWriter, finished, write_sheet
from pipeline.config import OutputConfig
from pipeline.decoder import DECODED_TOGETHER
from pipeline.rollout import Chunk
from tests.digits_fixture import files
from utils.media.audio import ArraySound, FileSound
from utils.media.mp4 import VideoWriter
from utils.media.sound_track import RATE
from utils.media.video import read_video
from wan.codec.base import StreamingDecoder
from wan.geometry import Geometry, Span

GEOMETRY = Geometry(32, 32, latent_channels=2)
REQUESTS = [Request("x", 0, 0, "x-0"), Request("y", 1, 0, "y-0")]


class Codec(StreamingDecoder):
    """A decoder that shows each latent frame as its first channel's value; notes what it decodes together."""

    strides, latent_channels = (4, 8, 8), 2

    def __init__(self):
        self.lengths = []

    def decode_stream(self, latents, state):
        self.lengths.append(latents.shape[1])
        first = 1 if state is None else 4
        counts = [first] + [4] * (latents.shape[1] - 1)
        pixels = torch.cat([latents[:, f : f + 1, :1].repeat(1, n, 3, 8, 8) for f, n in enumerate(counts)], 1)
        return pixels.clamp(-1, 1), ("running",)


def chunks(*lengths, given=0):
    start = 0
    for n, length in enumerate(lengths):
        value = torch.linspace(-0.9, 0.9, 12)[start : start + length].view(1, -1, 1, 1, 1)
        latents = torch.cat((value, -value)).expand(-1, -1, 2, 4, 4)
        yield Chunk(Span(start, start + length), latents, given=n < given)
        start += length


def videos(tmp_path, total, wanted=(True, True), sounds=None, **output):
    knobs = OutputConfig(folder=str(tmp_path), **output)
    return VideoBatchWriter(Codec(), REQUESTS, wanted, knobs, 8, GEOMETRY, total, sounds)


def test_frames_arrive_in_order_and_long_chunks_are_cut(tmp_path):
    made, message = videos(tmp_path, 9), []
    made.write(chunks(6, 1, 2, given=1), message.append)
    assert made.decoder.model.lengths == [DECODED_TOGETHER, 2, 1, 2]
    assert message == [2 * 4, 2 * 8]  # the given chunk is not a progress; two videos
    frames, fps = read_video(tmp_path / "x-0.mp4")
    assert frames.shape == (33, 32, 32, 3) and fps == 8
    wanted = np.repeat(np.linspace(-0.9, 0.9, 12)[:9], [1] + [4] * 8) * 127.5 + 127.5
    assert np.abs(frames.mean((1, 2, 3)) - wanted).max() < 3
    other = read_video(tmp_path / "y-0.mp4")[0].mean((1, 2, 3))
    assert np.abs(other - (255 - wanted)).max() < 3


def test_only_wanted_rows_are_written(tmp_path):
    made = videos(tmp_path, 2, (False, True), latents=True, gif=True)
    made.write(chunks(2))
    made.sidecars({"seed": 1})
    assert set(files(tmp_path)) == {"y-0.mp4", "y-0.json", "y-0.gif", "y-0.safetensors"}
    assert not finished(REQUESTS[0], tmp_path) and finished(REQUESTS[1], tmp_path)


def test_one_video_of_a_batch_has_sound(tmp_path):
    """Its own MP4 alone differs, and that in its sound track alone: GIF, latents, contact sheet are as without."""
    time = np.arange(5 * RATE, dtype=np.float32) / RATE
    hum = ArraySound(0.3 * np.sin(2 * np.pi * 220 * time), RATE)
    for folder, sounds in (("silent", None), ("loud", [None, hum])):
        made = videos(tmp_path / folder, 9, sounds=sounds, latents=True, gif=True)
        made.write(chunks(6, 1, 2))
        made.sidecars({"seed": 1})
        write_sheet(tmp_path / folder / "sheet.png", REQUESTS, tmp_path / folder)
    silent, loud = (files(tmp_path / folder) for folder in ("silent", "loud"))
    assert silent.keys() == loud.keys() and len(silent) == 9
    assert {name for name in silent if silent[name] != loud[name]} == {"y-0.mp4"}
    assert finished(REQUESTS[1], tmp_path / "loud")
    heard = FileSound(tmp_path / "loud/y-0.mp4", RATE)
    assert abs(heard.length / RATE - 33 / 8) < 0.1
    assert np.abs(heard.read(RATE, 2 * RATE)).max() == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError, RuntimeError])
def test_an_exception_leaves_no_file(tmp_path, kind):
    def broken():
        yield from chunks(3)
        raise kind("in the middle")

    with pytest.raises(kind):
        videos(tmp_path, 6).write(broken())
    assert files(tmp_path) == {}


def test_a_replaced_video_is_unfinished_until_its_own_json_is_there(tmp_path):
    made = videos(tmp_path, 2)
    made.write(chunks(2))
    made.sidecars({"seed": 1})
    assert finished(REQUESTS[0], tmp_path)
    again = videos(tmp_path, 3)
    again.write(chunks(3))  # and then the process dies
    assert not finished(REQUESTS[0], tmp_path)

    def broken():
        yield from chunks(1)
        raise KeyboardInterrupt

    again.sidecars({"seed": 1})
    with pytest.raises(KeyboardInterrupt):
        videos(tmp_path, 3).write(broken())
    assert finished(REQUESTS[0], tmp_path)  # the old video stays until the new one is whole
    assert len(read_video(tmp_path / "x-0.mp4")[0]) == 9


def test_equal_frames_give_equal_bytes(tmp_path):
    """Whatever the memory held before: x264 once read some that nobody had set."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (30, 52, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    clip = np.stack([np.roll(frame, 3 * i, 1) for i in range(12)])
    made = set()
    for _ in range(6):
        with VideoWriter(tmp_path / "v.mp4", 16) as video:
            for picture in clip:
                junk = [torch.randn(int(n)) for n in rng.integers(10, 200_000, 20)]
                del junk
                video.write(picture[None])
        made.add((tmp_path / "v.mp4").read_bytes())
    assert len(made) == 1


def test_a_disk_that_fills_up_at_any_byte_is_reported(tmp_path):
    """Also at the last write, about which the muxer keeps silent."""
    clip = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)

    def write():
        with VideoWriter(tmp_path / "v.mp4", 8) as video:
            video.write(clip)
        return (tmp_path / "v.mp4").read_bytes()

    whole, old = write(), resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "v.mp4").unlink()
    for limit in [*range(100, len(whole), 97), len(whole) - 1]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
        try:
            with pytest.raises(OSError, match="finished files are kept; free space"):
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert files(tmp_path) == {}, limit
    assert write() == whole
