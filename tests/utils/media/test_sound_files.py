"""Files with sound of every kind: what is in them is read rightly, or refused by a sentence that names the file."""

from __future__ import annotations

import wave

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.utils.media.sound_files import save_sound, tone
from utils.media import audio
from utils.media.audio import FileSound, MixedSound

# file -> (codec, rate, channels)
FILES = {
    "opus.ogg": ("libopus", 48_000, 2),
    "apple.m4a": ("alac", 44_100, 2),
    "cinema.mp4": ("ac3", 48_000, 6),
    "phone.wav": ("pcm_mulaw", 8_000, 1),
    "phone.amr": ("libopencore_amrnb", 8_000, 1),
    "bytes.wav": ("pcm_u8", 22_050, 1),
    "studio.wav": ("pcm_s24le", 96_000, 2),
    "double.wav": ("pcm_f64le", 44_100, 1),
    "talk.mp3": ("libmp3lame", 44_100, 1),
    "talk.mkv": ("aac", 48_000, 2),
    "talk.aac": ("aac", 44_100, 2),
}


def pitch(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return spectrum.argmax() * rate / len(samples)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (48_000, 2)])
def test_every_codec_is_read(tmp_path, name, rate, channels):
    codec, own, count = FILES[name]
    sound = FileSound(save_sound(tmp_path / name, own, codec, tone(1.0, own, count)), rate, channels)
    assert abs(sound.length / rate - 1.0) < 0.12
    middle = sound.read(rate // 4, rate * 3 // 4)
    assert middle.shape == (rate // 2, channels)
    for column in middle.T:
        assert pitch(column, rate) == pytest.approx(440, abs=3) and np.abs(column).max() > 0.2


@pytest.mark.parametrize("count", [3, 5, 7, 12])
def test_channels_that_no_layout_names_are_read(tmp_path, count):
    """As plain recorders write them: a number of channels, and no word on where they are."""
    numbers = (tone(0.5, 44_100, count).T * 32_767).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(count)
        file.setsampwidth(2)
        file.setframerate(44_100)
        file.writeframes(numbers.tobytes())
    heard = FileSound(tmp_path / "a.wav").read(0, 8_000)[:, 0]
    assert pitch(heard, 16_000) == pytest.approx(440, abs=4)
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.02), "the mean of the channels"


def test_silence_is_a_sound(tmp_path):
    sound = FileSound(save_sound(tmp_path / "a.wav", samples=np.zeros((1, 24_000), np.float32)))
    assert sound.length == 8_000 and not sound.read(0, sound.length).any()


def test_a_file_as_long_as_chunks_is_not_longer(tmp_path):
    """0.48 s at any rate are 7,680 samples: twelve frames at 25 fps, and not a thirteenth."""
    for rate in (8_000, 16_000, 22_050, 44_100, 48_000, 96_000):
        path = save_sound(tmp_path / f"{rate}.wav", rate, samples=tone(0.48, rate))
        assert FileSound(path).length == 7_680


@pytest.mark.parametrize(("rate", "channels"), [(48_000, 1), (44_100, 2)])
def test_a_sound_that_changes_on_its_way_is_refused(tmp_path, rate, channels):
    """Two MP3s, one behind the other."""
    one = save_sound(tmp_path / "a.mp3", 44_100, "libmp3lame")
    other = save_sound(tmp_path / "b.mp3", rate, "libmp3lame", tone(1.0, rate, channels))
    (tmp_path / "both.mp3").write_bytes(one.read_bytes() + other.read_bytes())
    with pytest.raises(ValueError, match=r"both.mp3 (changes from .* within its sound; convert it|cannot be read)"):
        FileSound(tmp_path / "both.mp3")


def test_names_in_old_letters_do_no_harm(tmp_path):
    """Titles that are no UTF-8, as older programs write them."""
    path = save_sound(tmp_path / "a.wav")
    content = path.read_bytes()
    assert b"Lavf" in content
    path.write_bytes(content.replace(b"Lavf", b"M\xfcll"))
    assert FileSound(path).length == 16_000


@pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat", "list.wav"])
def test_playlists_open_no_other_file(tmp_path, name):
    """What a stranger sends must not read what lies beside it."""
    save_sound(tmp_path / "secret.wav")
    text = "ffconcat version 1.0\nfile secret.wav\n"
    if name.endswith("m3u8"):
        text = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n"
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} cannot be read as sound"):
        FileSound(tmp_path / name)


def test_a_twin_that_takes_playlists_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "SAFE", {})
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        test_playlists_open_no_other_file(tmp_path, "list.ffconcat")


def test_a_name_with_a_colon_is_a_file(tmp_path):
    assert FileSound(save_sound(tmp_path / "a.wav").rename(tmp_path / "12:30.wav")).length == 16_000


class Whole(dict):
    """name -> bytes of a file; short where a failure is shown."""

    def __repr__(self) -> str:
        return f"{len(self)} files"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    kinds = {"a.wav": "pcm_s16le", "a.mp3": "libmp3lame", "a.flac": "flac", "a.m4a": "aac", "a.ogg": "libopus"}
    return Whole({name: save_sound(folder / name, 48_000, codec).read_bytes() for name, codec in kinds.items()})


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_damaged_files_are_read_or_refused(whole, tmp_path_factory, data):
    """Cut, or with wrong bytes anywhere: finite samples, or a sentence that names the file."""
    name = data.draw(st.sampled_from(sorted(whole)))
    content = bytearray(whole[name])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[place] ^= data.draw(st.integers(1, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    path = tmp_path_factory.getbasetemp() / f"damaged{name}"
    path.write_bytes(content)
    try:
        sound = FileSound(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert np.isfinite(sound.read(-10, min(sound.length, 200_000) + 10)).all()


def test_only_like_sounds_are_mixed(tmp_path):
    one, two = (FileSound(save_sound(tmp_path / "a.wav"), rate) for rate in (16_000, 48_000))
    with pytest.raises(ValueError, match="these are: 16000 a second, 1 channels; 48000 a second, 1 channels"):
        MixedSound((one, two))
    with pytest.raises(ValueError, match="these are: none"):
        MixedSound(())
