"""Live sound: a session hears what arrives, and makes what a file of the same samples makes."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from pipeline.talking_session import SoundMissing, TalkingSession
from tests import avatar_fixture as avatar
from utils.media.audio import ArraySound, LiveSound

PROMPT, CHUNKS = "a three moves left", 4
PIPELINE = avatar.pipeline()


def begun(starve="wait", patience=0.0, audio=None) -> TalkingSession:
    session = TalkingSession(PIPELINE, starve=starve, patience=patience)
    session.start(PROMPT, seed=3, portrait=avatar.portrait(), audio=audio)
    return session


@pytest.fixture(scope="module")
def whole():
    session = begun(audio=ArraySound(avatar.sound(), 16_000))
    return [session.step() for _ in range(CHUNKS)]


def same(made, wanted) -> bool:
    return all(
        torch.equal(a.latents, b.latents) and torch.equal(a.pixels, b.pixels) for a, b in zip(made, wanted, strict=True)
    )


@pytest.mark.parametrize("piece", [160, 3_777, 200_000])
def test_live_sound_makes_the_video_of_a_file(whole, piece):
    session, samples, made, place = begun(), avatar.sound(), [], 0
    while len(made) < CHUNKS:
        try:
            made.append(session.step())
        except SoundMissing:
            session.hear(samples[place : place + piece], 16_000)
            place += piece
    assert same(made, whole)
    assert place <= 16_000 * 6.5 or piece > 100_000, "it waited for no more than a chunk needs"


def test_a_step_waits_for_the_sound(whole):
    session, done = begun(patience=30.0), []
    thread = threading.Thread(target=lambda: done.append(session.step()))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive() and not done
    session.hear(avatar.sound()[:40_000], 16_000)
    thread.join(20)
    assert same(done, whole[:1])


def test_silence_goes_on_and_later_sound_comes_behind_it(whole):
    session = begun(starve="silence")
    quiet = session.step()
    assert not torch.equal(quiet.latents, whole[0].latents)
    zeros = begun(audio=ArraySound(np.zeros(160_000, np.float32), 16_000))
    assert torch.equal(quiet.latents, zeros.step().latents)
    session.hear(avatar.sound(), 16_000)
    assert session.step().latents.isfinite().all()


def test_no_more_sound_is_silence():
    session = begun()
    session.hear(avatar.sound()[:1_000], 16_000)
    session.end_sound()
    assert session.step().latents.isfinite().all()
    with pytest.raises(ValueError, match="the sound has ended"):
        session.hear(avatar.sound()[:10], 16_000)


def test_forks_and_snapshots_go_on_as_the_video_does(whole):
    """Behind the refresh too: the first frame of the video is its reference from the third chunk on."""
    session = begun(audio=ArraySound(avatar.sound(), 16_000))
    made = [session.step(), session.step()]
    before, other = session.snapshot(), session.fork()
    assert same([*made, session.step(), session.step()], whole)
    assert same([other.step(), other.step()], whole[2:])
    session.restore(before)
    assert same([session.step(), session.step()], whole[2:])


def test_a_prompt_switch_goes_on_with_the_sound(whole):
    session = begun(audio=ArraySound(avatar.sound(), 16_000))
    session.step()
    session.switch_prompt("a four moves right")
    changed = session.step()
    assert session.prompt == "a four moves right" and not torch.equal(changed.latents, whole[1].latents)


def test_another_rate_is_resampled():
    live, samples = LiveSound(), np.sin(np.arange(48_000) / 30).astype(np.float32)
    for start in range(0, 48_000, 1_013):
        live.append(samples[start : start + 1_013], 48_000)
    whole = LiveSound()
    whole.append(samples, 48_000)
    assert np.array_equal(live.read(0, live.length), whole.read(0, whole.length))
    assert live.length == pytest.approx(16_000, abs=40)
    with pytest.raises(ValueError, match="samples at 44100 a second came, and 48000 before"):
        live.append(samples, 44_100)


def test_what_is_not_kept_is_not_read_as_silence():
    live = LiveSound(kept_seconds=1.0)
    for _ in range(8):
        live.append(np.ones(5_000, np.float32) * 0.1, 16_000)
    assert live.length == 40_000 and live.read(30_000, 30_002)[:, 0].tolist() == [np.float32(0.1)] * 2
    live.append(np.zeros(5_000, np.float32), 16_000)
    with pytest.raises(ValueError, match="samples before 25000 are not kept"):
        live.read(10, 20)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((2, 2, 2)), "give .N. or .N, channels."),
        (np.array(["a"]), "give .N."),
        (np.array([0.0, np.nan]), "not finite"),
    ],
)
def test_what_is_no_sound_is_refused(samples, message):
    session = begun()
    with pytest.raises(ValueError, match=message):
        session.hear(samples, 16_000)
    session.hear(np.array([[1000, -1000], [32767, 1]], np.int16), 16_000)
    assert session._sound.read(0, 2)[:, 0].tolist() == [0.0, pytest.approx(0.5)]


def test_wrong_starts_leave_the_video():
    session = begun(audio=ArraySound(avatar.sound(), 16_000))
    with pytest.raises(ValueError, match=r"the portrait is \[3, 8, 8\]; give a tensor \[3, 64, 64\]"):
        session.start(PROMPT, portrait=torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="write wait or silence"):
        TalkingSession(PIPELINE, starve="never")
    with pytest.raises(ValueError, match="no video waits for sound"):
        session.hear(np.zeros(5), 16_000)
    assert session.step().latents.isfinite().all()
