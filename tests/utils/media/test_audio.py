"""Sounds of files: any container, rate and number of channels, read anywhere with the same samples; bad ones named."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.media.audio import ArraySound, FileSound, MixedSound, SoundFrom, open_sound, sound_of_video
from utils.media.mp4 import VideoWriter

KINDS = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "m4a": "aac", "ogg": "flac", "mp4": "aac"}
TONE, SECONDS = 440.0, 2.0


def save(path, rate=48_000, channels=1, codec="pcm_s16le", seconds=SECONDS, samples=None):
    """Writes a tone, or samples [channels, N] in float."""
    layout = {1: "mono", 2: "stereo", 8: "7.1"}[channels]
    if samples is None:
        time = np.arange(int(seconds * rate)) / rate
        samples = np.tile(0.5 * np.sin(2 * np.pi * TONE * time), (channels, 1)).astype(np.float32)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout = layout
        formats = [f.name for f in stream.codec_context.codec.audio_formats]
        stream.format = formats[0]
        convert = av.AudioResampler(format=formats[0], layout=layout, rate=rate)
        for start in range(0, samples.shape[1], 1024):
            packed = np.ascontiguousarray(samples[:, start : start + 1024].T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            for part in convert.resample(frame):
                file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return path


def pitch(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return spectrum.argmax() * rate / len(samples)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rate", "channels"), [(48_000, 1), (44_100, 2)])
def test_any_container_is_read(tmp_path, kind, rate, channels):
    sound = FileSound(save(tmp_path / f"a.{kind}", rate, channels, KINDS[kind]))
    assert abs(sound.length / sound.rate - SECONDS) < 0.1 and sound.rate == 16_000 and sound.channels == 1
    middle = sound.read(8_000, 24_000)
    assert middle.shape == (16_000, 1) and pitch(middle[:, 0], 16_000) == pytest.approx(TONE, abs=2)
    loudness = np.sqrt((middle**2).mean()) * 2**0.5
    assert loudness == pytest.approx(0.5, rel=0.1), "the mean of the channels, not their sum"


def test_low_rates_and_many_channels_are_read(tmp_path):
    slow = FileSound(save(tmp_path / "slow.wav", 8_000))
    wide = FileSound(save(tmp_path / "wide.wav", 48_000, 8))
    for sound in (slow, wide):
        assert pitch(sound.read(8_000, 24_000)[:, 0], 16_000) == pytest.approx(TONE, abs=2)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return save(tmp_path_factory.mktemp("sound") / "a.wav", 44_100, 2, seconds=6.0)


@given(places=st.lists(st.tuples(st.integers(-3_000, 100_000), st.integers(1, 20_000)), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_samples_do_not_depend_on_how_they_are_asked_for(long, places):
    """Forward, backward, in pieces of any length, with little room to remember: equal bits."""
    whole = FileSound(long).read(-3_000, 120_000)
    sound = FileSound(long, kept_seconds=0.5)
    for start, length in places:
        assert np.array_equal(sound.read(start, start + length), whole[start + 3_000 : start + length + 3_000])


def test_memory_does_not_grow_with_the_file(long):
    sound = FileSound(long, kept_seconds=0.5)
    for start in range(0, sound.length, 1_000):
        sound.read(start, start + 1_000)
        assert sound._kept.end - sound._kept.begin <= 0.5 * 16_000 + 2 * 4_096


def test_before_and_behind_there_is_silence(long):
    sound = FileSound(long)
    assert not sound.read(-100, 0).any() and not sound.read(sound.length, sound.length + 50).any()
    assert not ArraySound(np.ones(5, np.float32), 16_000).read(5, 9).any()


def test_several_sounds_add_up():
    one, two = (ArraySound(np.full(n, 0.25, np.float32), 16_000) for n in (10, 4))
    mixed = MixedSound((one, two))
    assert mixed.length == 10 and mixed.read(2, 6)[:, 0].tolist() == [0.5, 0.5, 0.25, 0.25]


def test_silent_pictures_have_no_sound(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 8) as video:
        video.write(np.zeros((8, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="a.mp4 has no sound track; give a file with sound"):
        FileSound(tmp_path / "a.mp4")


def test_bad_sounds_are_named(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("this is no sound at all" * 50)
    save(tmp_path / "short.wav", seconds=0.02)
    whole = save(tmp_path / "whole.flac", codec="flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[:40])
    for name, message in {
        "none.wav": "is not a file",
        "empty.wav": "cannot be read as sound",
        "text.wav": "cannot be read as sound|no sound track",
        "short.wav": "holds 0.02 s of sound; give 0.1 s at least",
        "cut.flac": "cannot be read as sound|no sound track|holds 0",
    }.items():
        with pytest.raises(ValueError, match=message):
            FileSound(tmp_path / name)
    samples = np.zeros((1, 48_000), np.float32)
    samples[0, 100] = np.nan
    with pytest.raises(ValueError, match="samples that are not finite"):
        FileSound(save(tmp_path / "nan.wav", codec="pcm_f32le", samples=samples))


VIDEOS = {
    "mp4": ("libx264", "aac"),
    "mov": ("libx264", "aac"),
    "mkv": ("libx264", "aac"),
    "webm": ("libvpx", "libopus"),
}


def late_sound(path, seconds: float, kind: str):
    """Writes a white frame and a click at 1 s; the sound's first sample lies at `seconds`, or the pictures' first."""
    coders, rate = VIDEOS[kind], 48_000
    click = np.zeros(2 * rate, np.float32)
    click[rate : rate + 480] = 0.9
    with av.open(str(path), "w") as file:
        pictures, sound = file.add_stream(coders[0], rate=8), file.add_stream(coders[1], rate=rate)
        pictures.width, pictures.height, pictures.pix_fmt, sound.layout = 64, 64, "yuv420p", "mono"
        convert = av.AudioResampler(format=sound.codec_context.codec.audio_formats[0].name, layout="mono", rate=rate)
        for number in range(max(0, round(-seconds * 8)), 16):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 255 * (number == 8), np.uint8), format="rgb24")
            frame.pts = number
            file.mux(pictures.encode(frame))
        for start in range(max(0, round(seconds * rate)), len(click), 960):
            frame = av.AudioFrame.from_ndarray(click[None, start : start + 960], format="flt", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            for part in convert.resample(frame):
                file.mux(sound.encode(part))
        file.mux(pictures.encode(None))
        file.mux(sound.encode(None))
    return path


def heard_at(sound) -> float:
    """Returns the seconds at which a click begins."""
    return float(np.flatnonzero(np.abs(sound.read(0, sound.length)[:, 0]) > 0.3)[0] / sound.rate)


@pytest.mark.parametrize("kind", VIDEOS)
@pytest.mark.parametrize("late", [0.0, 0.3, -0.5])
def test_a_videos_sound_counts_from_its_first_picture(tmp_path, kind, late):
    """Also where one of the two tracks begins later; samples counted from the track's own start would not."""
    path = late_sound(tmp_path / f"a.{kind}", late, kind)
    flash = 1.0 - max(-late, 0)
    sound = sound_of_video(path)
    assert heard_at(sound) == pytest.approx(flash, abs=0.005)
    assert heard_at(open_sound(path)) == heard_at(sound)
    played = open_sound(path, 48_000, channels=2)
    assert (played.rate, played.channels) == (48_000, 2) and heard_at(played) == pytest.approx(flash, abs=0.005)
    assert (late == 0) == (abs(heard_at(FileSound(path)) - flash) < 0.025)
    assert (sound.read(-400, -100) == 0).all() and sound.read(-400, 400).shape == (800, 1)
    assert (sound.read(-400, 400)[400:] == sound.read(0, 400)).all()


def test_a_written_videos_sound_is_in_step(tmp_path):
    click = np.zeros(96_000, np.float32)
    click[48_000:48_480] = 0.9
    with VideoWriter(tmp_path / "a.mp4", 8, sound=ArraySound(click, 48_000)) as video:
        video.write(np.zeros((16, 64, 64, 3), np.uint8))
    assert heard_at(sound_of_video(tmp_path / "a.mp4")) == pytest.approx(1.0, abs=0.002)


def test_a_video_without_sound_is_named(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 8) as video:
        video.write(np.zeros((16, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="a.mp4 has no sound track"):
        sound_of_video(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="a.wav cannot be read as a video"):
        sound_of_video(save(tmp_path / "a.wav"))


def test_a_sound_without_pictures_is_heard_from_its_start(tmp_path):
    """A cover is no picture of a video; a video's sound that ends before its first picture is named."""
    path = save(tmp_path / "a.mp3", codec="libmp3lame")
    with av.open(str(path)) as source, av.open(str(tmp_path / "cover.mp3"), "w") as file:
        track = file.add_stream_from_template(source.streams.audio[0])
        cover = file.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 16
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in cover.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))):
            file.mux(packet)
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = track
                file.mux(packet)
    with av.open(str(tmp_path / "cover.mp3")) as file:
        assert [stream.type for stream in file.streams] == ["audio", "video"]
    for name in ("a.mp3", "cover.mp3"):
        assert isinstance(open_sound(tmp_path / name), FileSound)
    sound = FileSound(path)
    assert SoundFrom(sound, 16_000).length == sound.length - 16_000
