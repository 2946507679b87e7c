"""Sound that arrives: the samples of a file however it comes and from whichever thread, and memory that ends."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.utils.media.sound_files import save_sound
from utils.media import audio
from utils.media.audio import ArraySound, FileSound, LiveSound
from utils.media.samples import Pieces, Resampler

RATES, CHANNELS = (8_000, 16_000, 44_100, 48_000), (1, 2)
SECONDS = 0.5


def whole_numbers(rate: int, channels: int) -> np.ndarray:
    """16-bit samples [N, channels] that differ between the channels."""
    rng = np.random.default_rng((rate, channels))
    return rng.integers(-9_000, 9_000, (int(SECONDS * rate), channels)).astype(np.int16)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    """(rate, channels) -> what a 16-bit file of these samples reads as."""
    folder, found = tmp_path_factory.mktemp("sounds"), {}
    for rate in RATES:
        for channels in CHANNELS:
            numbers = whole_numbers(rate, channels)
            samples = (numbers.T / np.float32(32_768)).astype(np.float32)
            sound = FileSound(save_sound(folder / f"{rate}_{channels}.wav", rate, samples=samples))
            found[rate, channels] = sound.read(0, sound.length)
    return found


def cut(samples: np.ndarray, lengths: list[int]):
    """Yields pieces of these lengths, over and over."""
    start, number = 0, 0
    while start < len(samples):
        yield samples[start : start + lengths[number % len(lengths)]]
        start, number = start + lengths[number % len(lengths)], number + 1


@given(st.sampled_from(RATES), st.sampled_from(CHANNELS), st.lists(st.integers(0, 3_000), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_pieces_of_any_length_give_the_bits_of_the_file(files, rate, channels, lengths):
    live = LiveSound()
    for piece in cut(whole_numbers(rate, channels), [*lengths, 700]):
        live.append(piece, rate)
    early = live.read(0, live.length)
    live.close()
    found, wanted = live.read(0, live.length), files[rate, channels]
    assert found.shape == wanted.shape == (round(SECONDS * 16_000), 1) and np.array_equal(found, wanted)
    assert np.array_equal(early, wanted[: len(early)]), "what was there before the end stays"


@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_samples_in_memory_are_those_of_the_file(files, rate):
    array = ArraySound(whole_numbers(rate, 2), rate).resampled(16_000)
    assert array.channels == 2 and np.array_equal(array.read(0, array.length).mean(1, keepdims=True), files[rate, 2])
    assert array.resampled(16_000) is array and not ArraySound(np.zeros((0, 2)), rate).resampled(16_000).length


@pytest.mark.parametrize("twin", ["each piece for itself", "an end that is lost", "32767"])
def test_twins_of_resampling_are_found(files, monkeypatch, twin):
    numbers = whole_numbers(48_000, 2)
    if twin == "each piece for itself":
        monkeypatch.setattr(Resampler, "feed", lambda self, x: _alone(self, x))
    elif twin == "an end that is lost":
        monkeypatch.setattr(Resampler, "finish", lambda self: np.zeros((0, 2), np.float32))
    else:
        monkeypatch.setattr(audio, "check_samples", lambda x: (x / np.float32(32_767)).astype(np.float32))
    live = LiveSound()
    for piece in cut(numbers, [777]):
        live.append(piece, 48_000)
    live.close()
    assert not np.array_equal(live.read(0, live.length), files[48_000, 2])


def _alone(resampler: Resampler, samples: np.ndarray) -> np.ndarray:
    one = object.__new__(Resampler)
    one.__init__(resampler.rate, 16_000, samples.shape[1])
    return np.concatenate((one._convert(_frames(samples, 48_000)), one._convert([None] * samples.shape[1])))


def _frames(samples: np.ndarray, rate: int) -> list:
    import av

    frames = [av.AudioFrame.from_ndarray(row[None], "flt", "mono") for row in np.ascontiguousarray(samples.T)]
    for frame in frames:
        frame.sample_rate = rate
    return frames


def test_threads_append_and_read_at_once():
    """Each piece stays whole, none is lost, and what was read once does not change."""
    live, pieces, length = LiveSound(), 60, 480
    seen: list[np.ndarray] = []

    def speak(number: int) -> None:
        for _ in range(pieces):
            live.append(np.full(length, number, np.float32) / 8, 16_000)

    def listen() -> None:
        while live.wait_for(sum(map(len, seen)) + 1, 10) and live.length > sum(map(len, seen)):
            have = sum(map(len, seen))
            seen.append(live.read(have, live.length))

    speakers = [threading.Thread(target=speak, args=(number,)) for number in range(1, 5)]
    listener = threading.Thread(target=listen)
    for thread in (*speakers, listener):
        thread.start()
    for thread in speakers:
        thread.join(20)
    live.close()
    listener.join(20)
    whole = live.read(0, live.length)[:, 0]
    assert len(whole) == 4 * pieces * length and np.array_equal(np.concatenate(seen)[:, 0], whole)
    rows = whole.reshape(-1, length)
    assert (rows == rows[:, :1]).all() and np.bincount((rows[:, 0] * 8).astype(int)).tolist() == [0] + [pieces] * 4


@pytest.mark.parametrize("how", ["speech", "silence"])
def test_memory_ends_while_it_is_heard(how):
    """Ten minutes, spoken or idle: what was heard goes, what is kept back stays."""
    live, step = LiveSound(kept_seconds=2.0), 1_600
    for number in range(6_000):
        if how == "speech":
            live.append(np.full(step, 0.1, np.float32), 16_000)
        else:
            live.append_silence((number + 1) * step)
        live.read(live.length - 800, live.length + 80)
        assert live._kept.end - live._kept.begin <= 2 * 16_000 + step + 4_096
    assert live.length == 6_000 * step and len(live._kept._held) < 40


def test_what_nobody_heard_yet_is_kept_for_an_hour(monkeypatch):
    monkeypatch.setattr(audio, "MOST_AHEAD", 5)
    live = LiveSound(kept_seconds=1.0)
    for number in range(4):
        live.append(np.full(16_000, (number + 1) / 8, np.float32), 16_000)
    assert live.read(0, 1)[0, 0] == np.float32(1 / 8), "longer than it is kept, and not heard before now"
    live.append(np.zeros(16_000, np.float32), 16_000)
    with pytest.raises(ValueError, match="6 s of sound would wait; append 5 s ahead of the video at most"):
        live.append(np.zeros(16_000, np.float32), 16_000)
    live.read(4 * 16_000, 5 * 16_000)
    live.append(np.zeros(16_000, np.float32), 16_000)
    assert live.length == 6 * 16_000, "what was refused is not there, what came later is"


def test_a_twin_that_keeps_silence_grows(monkeypatch):
    monkeypatch.setattr(Pieces, "forget", lambda self, before: None)
    with pytest.raises(AssertionError):
        test_memory_ends_while_it_is_heard("silence")


@pytest.mark.parametrize("rate", [0, -1, 999, 10**9, 16_000.5, float("nan"), True, "48000", None])
def test_no_rate_is_refused(rate):
    for make in (lambda: LiveSound().append(np.zeros(5), rate), lambda: ArraySound(np.zeros(5), rate)):
        with pytest.raises(ValueError, match="is no rate of a sound"):
            make()


def test_the_kind_of_sound_does_not_change():
    live = LiveSound()
    live.append(np.zeros(50, np.float32), 16_000)
    with pytest.raises(ValueError, match="48000 a second came, and 16000 before; keep one rate"):
        live.append(np.zeros(50, np.float32), 48_000)
    with pytest.raises(ValueError, match="2 channels came, and 1 before"):
        live.append(np.zeros((50, 2), np.float32), 16_000)
    live.append(np.zeros(0, np.float32), 16_000)
    live.close()
    live.close()
    assert live.length == 50
    with pytest.raises(ValueError, match="the sound has ended"):
        live.append(np.zeros(50, np.float32), 16_000)


@pytest.mark.parametrize("samples", [np.array([0, np.inf]), np.zeros((2, 0)), np.zeros(3, np.int64), np.zeros(3, bool)])
def test_no_sound_is_refused_and_not_added(samples):
    live = LiveSound()
    with pytest.raises(ValueError, match="not finite|give .N. or .N, channels."):
        live.append(samples, 16_000)
    assert live.length == 0


def test_who_waits_is_told():
    live = LiveSound()
    assert not live.wait_for(1, 0.01)
    threading.Timer(0.05, live.append, (np.zeros(100, np.float32), 16_000)).start()
    assert live.wait_for(100, 10)
    threading.Timer(0.05, live.close).start()
    assert live.wait_for(10**9, 10), "the end"
