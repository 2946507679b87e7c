"""Features of sound that arrives are the file's, in bits; no frame of a chunk goes unheard; folders of encoders."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.architecture.source import ROOT
from tests.utils.media.sound_files import save_sound
from utils.media.audio import ArraySound, FileSound, LiveSound
from wan.audio import features
from wan.audio.config import AudioConfig
from wan.audio.features import EXTRA, RATE, FeatureStream, HiddenStates, load_hidden_states

EAR = ROOT / "assets/digits_s2v/audio_encoder"
FPS, CHUNK = 25, 12


@pytest.fixture(scope="module")
def random_ear() -> HiddenStates:
    """A wav2vec2 of 3 x 64 with random weights."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    told = json.loads((EAR / "config.json").read_text())
    torch.manual_seed(0)
    return HiddenStates(Wav2Vec2Model(Wav2Vec2Config(**told)), True)


def numbers(rate: int, channels: int, seconds: float = 2.2) -> np.ndarray:
    """A gliding hum of 16-bit samples [N, channels]."""
    time = np.arange(int(seconds * rate)) / rate
    hum = np.sin(2 * np.pi * (200 + 60 * np.sin(3 * time)) * time)
    return np.stack([(9_000 - 2_000 * c) * hum for c in range(channels)], 1).astype(np.int16)


def needed(config: AudioConfig, stop: int) -> int:
    """Returns the samples that a chunk hears the last of."""
    return round(((stop - features.DROPPED) / FPS + config.look_ahead) * RATE) + EXTRA


@pytest.fixture(scope="module")
def files(tmp_path_factory, random_ear) -> dict:
    """(rate, channels) -> (16-bit samples, features of its four chunks read from a file)."""
    folder, found = tmp_path_factory.mktemp("sounds"), {}
    for rate in (8_000, 44_100, 48_000):
        for channels in (1, 2):
            heard = numbers(rate, channels)
            path = save_sound(folder / f"{rate}_{channels}.wav", rate, samples=(heard.T / 32_768).astype(np.float32))
            stream = FeatureStream(random_ear, FileSound(path), CONFIG, FPS)
            found[rate, channels] = heard, [stream.frames(m, m + CHUNK) for m in range(0, 4 * CHUNK, CHUNK)]
    return found


CONFIG = AudioConfig(left=1.0, look_ahead=0.1)


@given(
    st.sampled_from((8_000, 44_100, 48_000)),
    st.sampled_from((1, 2)),
    st.lists(st.integers(1, 9_000), min_size=1, max_size=6),
)
@settings(max_examples=12, deadline=None)
def test_live_features_are_the_files_in_bits(files, random_ear, rate, channels, lengths):
    """Each chunk is heard as soon as its sound is there, and not a piece later."""
    heard, wanted = files[rate, channels]
    live, start, chunk, number = LiveSound(), 0, 0, 0
    stream = FeatureStream(random_ear, live, CONFIG, FPS)
    while start < len(heard):
        live.append(heard[start : start + lengths[number % len(lengths)]], rate)
        start, number = start + lengths[number % len(lengths)], number + 1
        while chunk < len(wanted) and live.length >= needed(CONFIG, (chunk + 1) * CHUNK):
            assert torch.equal(stream.frames(chunk * CHUNK, (chunk + 1) * CHUNK), wanted[chunk])
            chunk += 1
    assert chunk == len(wanted)


def test_a_twin_that_hears_too_early_is_found(files, random_ear):
    heard, wanted = files[48_000, 2]
    live = LiveSound()
    live.append(heard[: 3 * (needed(CONFIG, CHUNK) - 400)], 48_000)
    early = FeatureStream(random_ear, live, CONFIG, FPS).frames(0, CHUNK)
    assert not torch.equal(early, wanted[0])


@pytest.mark.parametrize("fps", [8, 12, 16, 23.976, 24, 25, 29.97, 30, 50, 60])
def test_no_frame_of_a_window_goes_unheard(fps):
    """The published rule gives zeros to a last frame whose place is rounded beyond the states."""
    for count in range(1, 260):
        states = torch.ones(1, max(round(count * RATE / fps) + EXTRA - 400, 0) // 320 + 1, 1)
        assert features.align(states, count, fps, hold=True).all()
    states = torch.ones(1, (9 * 640 + EXTRA - 400) // 320 + 1, 1)
    assert features.align(states, 9, 25)[:, 0, 0].tolist() == [1.0] * 8 + [0.0], "as published"


@pytest.mark.parametrize("seconds", [0.5, 1.0, 8.0])
def test_all_frames_of_all_chunks_are_heard(random_ear, seconds):
    stream = FeatureStream(random_ear, ArraySound(numbers(RATE, 1, 12.0), RATE), AudioConfig(left=seconds), FPS)
    for start in (0, 12, 24, 60, 192):
        assert stream.frames(start, start + CHUNK).flatten(1).abs().amax(1).min() > 0


def test_a_twin_with_the_published_rule_goes_unheard(random_ear, monkeypatch):
    align = features.align
    monkeypatch.setattr(features, "align", lambda states, count, fps, hold=False: align(states, count, fps))
    with pytest.raises(AssertionError):
        test_all_frames_of_all_chunks_are_heard(random_ear, 8.0)


def test_a_clip_of_the_published_form_is_padded(random_ear):
    """window: file gives zeros behind the sound's end, and what came before does not know."""
    sound = ArraySound(numbers(RATE, 1, 1.0), RATE)
    stream = FeatureStream(random_ear, sound, AudioConfig(window="file", lead=3), FPS)
    found = stream.frames(0, 48)
    assert found[:24].flatten(1).abs().amax(1).min() > 0 and not found[25:].any()
    assert torch.equal(found[:12], stream.frames(0, 12))


def test_all_channels_are_heard(random_ear):
    heard = numbers(RATE, 2) // 2
    heard[:, 0] = 0
    both = FeatureStream(random_ear, ArraySound(heard, RATE), AudioConfig(left=1.0), FPS)
    one = FeatureStream(random_ear, ArraySound(heard[:, 1] / 65_536, RATE), AudioConfig(left=1.0), FPS)
    assert torch.equal(both.frames(0, 12), one.frames(0, 12)) and both.frames(0, 12).std() > 0


def test_another_rate_is_not_heard_as_ours(random_ear):
    sound = ArraySound(numbers(48_000, 1), 48_000)
    with pytest.raises(ValueError, match=r"48000 samples a second and is heard at 16000; .*\.resampled\(16000\)"):
        FeatureStream(random_ear, sound, AudioConfig(), FPS)
    assert FeatureStream(random_ear, sound.resampled(RATE), AudioConfig(), FPS).frames(0, 12).isfinite().all()


# ---- folders --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A copy of the ear's folder."""
    return shutil.copytree(EAR, tmp_path / "ear")


def change(path, **values):
    """Changes keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_weights_of_torch_are_read_and_pickles_are_not(folder):
    wanted = load_hidden_states(folder)(np.ones(800, np.float32))
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({f"wav2vec2.{name}": tensor for name, tensor in state.items()}, folder / "pytorch_model.bin")
    assert torch.equal(load_hidden_states(folder)(np.ones(800, np.float32)), wanted)
    torch.save({"model": HiddenStates}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds Python objects next to tensors"):
        load_hidden_states(folder)


def test_safetensors_come_before_torchs(folder):
    """As the published folder has both."""
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    assert load_hidden_states(folder).size == (4, 64)


def test_bf16_is_computed_in_bf16(folder):
    half, full = load_hidden_states(folder, dtype=torch.bfloat16), load_hidden_states(folder)
    sound = (numbers(RATE, 1)[:8_000, 0] / 32_768).astype(np.float32)
    assert next(half.model.parameters()).dtype == torch.bfloat16 and half(sound).dtype == torch.float32
    error = (half(sound) - full(sound)).square().mean().sqrt() / full(sound).square().mean().sqrt()
    assert 1e-5 < error < 0.05


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_the_folder_says_how_sound_is_normalised(folder, name):
    """processor_config.json: transformers 5 writes the feature extractor's inside the processor's."""
    (folder / "preprocessor_config.json").unlink()
    assert load_hidden_states(folder).normalise
    for told in (False, True):
        config = {"do_normalize": told, "sampling_rate": RATE}
        config = config if name[:3] == "pre" else {"feature_extractor": config}
        (folder / name).write_text(json.dumps(config))
        assert load_hidden_states(folder).normalise is told
    config = {"sampling_rate": 8_000}
    (folder / name).write_text(json.dumps(config if name[:3] == "pre" else {"feature_extractor": config}))
    with pytest.raises(ValueError, match="hears 8000 samples a second; give a wav2vec2 that hears 16000"):
        load_hidden_states(folder)


def test_normalising_makes_loudness_the_same(folder):
    sound = (numbers(RATE, 1)[:8_000, 0] / 32_768).astype(np.float32)
    loud = load_hidden_states(folder)
    assert torch.allclose(loud(sound), loud(4 * sound), atol=1e-3)
    change(folder / "preprocessor_config.json", do_normalize=False)
    plain = load_hidden_states(folder)
    assert not torch.allclose(plain(sound), plain(4 * sound), atol=1e-1)


def test_keys_of_older_releases_are_passed_over(folder):
    change(folder / "config.json", mask_channel_min_space=1, gradient_checkpointing=False, feat_extract_dropout=0.0)
    change(folder / "config.json", return_dict=False, output_hidden_states=False, activation_dropout=0)
    assert torch.equal(
        load_hidden_states(folder)(np.ones(800, np.float32)), load_hidden_states(EAR)(np.ones(800, "f4"))
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "hubert"}, "is not a wav2vec2 folder"),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 4]}, "a hidden state of every 640 samples"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
        ({"conv_dim": [48]}, "config.json: the library cannot use it"),
        ({"num_hidden_layers": 2}, "does not fit the model.*encoder.layers.2"),
        ({"hidden_size": 128}, "does not fit the model"),
    ],
)
def test_other_configurations_are_refused(folder, values, message):
    change(folder / "config.json", **values)
    with pytest.raises(ValueError, match=message):
        load_hidden_states(folder)


def test_other_layers_are_not_passed_over(folder):
    """Only heads have a rule of their own."""
    state = load_file(folder / "model.safetensors")
    save_file({**state, "lm_head.weight": torch.zeros(4, 64)}, folder / "model.safetensors")
    load_hidden_states(folder)
    save_file({**state, "adapter.layers.0.conv.weight": torch.zeros(4, 64)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit the model.*adapter.layers.0"):
        load_hidden_states(folder)
