"""From sound to features: the recorded alignment, windows that do not depend on how sound arrives, loading."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.architecture.source import ROOT
from utils.media.audio import ArraySound
from wan.audio.config import AudioConfig
from wan.audio.features import DROPPED, FeatureStream, HiddenStates, align, load_hidden_states, stack_speakers, to_30hz

EAR = ROOT / "assets/digits_s2v/audio_encoder"
FPS = 8


@pytest.fixture(scope="module")
def ear() -> HiddenStates:
    return load_hidden_states(EAR)


def sound(seconds: float = 6.0, seed: int = 0) -> np.ndarray:
    time = np.arange(int(seconds * 16_000)) / 16_000
    return (0.3 * np.sin(2 * np.pi * (200 + 60 * np.sin(time)) * time)).astype(np.float32)


def test_frames_take_the_nearest_of_30_hz():
    states = torch.arange(100.0)[None, :, None].expand(2, -1, 3)
    assert to_30hz(states).shape == (2, 60, 3) and to_30hz(states)[0, -1, 0] == 99
    found = align(states, 55, 25)
    wanted = [k if (k := round(n / 25 * 30)) < 60 else None for n in range(55)]
    assert wanted[:6] == [0, 1, 2, 4, 5, 6]
    for frame, place in enumerate(wanted):
        assert torch.equal(found[frame], torch.zeros(2, 3) if place is None else to_30hz(states)[:, place])


def test_live_sound_is_heard_as_a_file_is(ear):
    """What is behind a chunk's window does not matter: it may not be there yet."""
    whole, config = sound(), AudioConfig(left=2.0, look_ahead=0.25)
    stream = FeatureStream(ear, ArraySound(whole, 16_000), config, FPS)
    for first in (0, 12, 24):
        stop = first + 12
        arrived = whole[: int((stop - DROPPED) / FPS * 16_000 + 0.25 * 16_000) + 80]
        live = FeatureStream(ear, ArraySound(arrived, 16_000), config, FPS)
        assert torch.equal(stream.frames(first, stop), live.frames(first, stop))
    cut = FeatureStream(ear, ArraySound(whole[: 24 * 2000 - 6000 - 1000], 16_000), config, FPS)
    assert not torch.equal(stream.frames(12, 24), cut.frames(12, 24)), "and what is in it does"


def test_frames_are_delayed_by_what_is_dropped(ear):
    stream = FeatureStream(ear, ArraySound(sound(), 16_000), AudioConfig(window="file"), FPS)
    ahead = FeatureStream(ear, ArraySound(sound(), 16_000), AudioConfig(window="file", lead=3), FPS)
    first = stream.frames(0, 12)
    assert torch.equal(first[3:], ahead.frames(0, 9)) and torch.equal(first[:3], first[3:4].expand(3, -1, -1))
    assert torch.equal(stream.frames(12, 24), ahead.frames(9, 21))


def test_speakers_are_stacked(ear):
    streams = [FeatureStream(ear, ArraySound(sound(), 16_000), AudioConfig(left=1.0), FPS) for _ in range(2)]
    assert stack_speakers(streams, 0, 12).shape == (1, 2, 12, 4, 64)


def test_short_and_silent_sounds_are_heard(ear):
    for samples in (np.zeros(16_000, np.float32), np.zeros(20, np.float32)):
        states = ear(samples)
        assert states.isfinite().all() and states.shape[1] >= 1


def test_the_ear_reads_the_law():
    facts = json.loads((EAR / "ear.json").read_text())
    assert facts["read_out"]["pitch_r2"] > 0.95 and "train_ear.py" in facts["command"]


def test_an_old_checkpoint_with_heads_is_read(tmp_path, ear):
    """Names before transformers 4.3x, under `wav2vec2.`, with the head of another task: the same states."""
    config = json.loads((EAR / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    state, old = ear.model.state_dict(), {}
    for name, tensor in state.items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        if name != "masked_spec_embed":
            old[f"wav2vec2.{name}"] = tensor.contiguous()
    save_file(
        {**old, "lm_head.weight": torch.zeros(4, 64), "lm_head.bias": torch.zeros(4)}, tmp_path / "model.safetensors"
    )
    again = load_hidden_states(tmp_path)
    assert torch.equal(again(sound()), ear(sound())) and again.normalise
    lost = {name: tensor for name, tensor in old.items() if "layers.1.final" not in name}
    save_file(lost, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit the model.*missing.*layers.1.final"):
        load_hidden_states(tmp_path)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a wav2vec2 folder"):
        load_hidden_states(ROOT / "assets/digits/vae")
    with pytest.raises(ValueError, match="is not a wav2vec2 folder"):
        load_hidden_states(tmp_path / "nothing")


def test_file_windows_need_an_end(ear):
    class Live(ArraySound):
        length = None

    stream = FeatureStream(ear, Live(sound(), 16_000), AudioConfig(window="file"), FPS)
    with pytest.raises(ValueError, match="the sound has no end; write audio.window=chunk"):
        stream.frames(0, 12)
