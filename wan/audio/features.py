"""From sound to features at the rate of the video's frames: the hidden states of a wav2vec2.

50 Hz -> 30 Hz -> frame k takes the state at k / fps, rounded to 30 Hz, as the published model was trained.
A file and live sound are heard by one function: the features of a chunk are those of a window of samples, so they have
equal bits however the samples arrive.
Source: Wan2.2, wan/modules/s2v/audio_encoder.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from utils.json_reader import get, read_json
from wan.audio.config import AudioConfig
from wan.checkpoint import tensor_file
from wan.checkpoint.library import check_config, of_library
from wan.checkpoint.weights import load_strict

RATE = 16_000  # of the sound that a wav2vec2 hears
STATES_PER_SECOND, RESAMPLED = 50, 30
STATE_SAMPLES = 320  # from one hidden state to the next
LEAST_SAMPLES = 400  # that one hidden state is made of
EXTRA = LEAST_SAMPLES - STATE_SAMPLES  # without these the last state of a stretch is missing
DROPPED = 3  # first frames of a video, which its first latent frame holds and nobody sees
OLD_NAMES = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
HEADS = ("lm_head.", "project_hid.", "project_q.", "quantizer.", "masked_spec_embed")  # of its own trainings


class Samples(Protocol):
    """A sound: samples [N, channels] at `rate`; zeros before its start and behind its end (utils/media/audio.py)."""

    rate: int
    length: int | None

    def read(self, start: int, stop: int) -> np.ndarray: ...


def to_30hz(states_LTC: torch.Tensor) -> torch.Tensor:
    """Returns hidden states at 30 Hz: linear between neighbours, first and last on first and last."""
    count = max(int(states_LTC.shape[1] / STATES_PER_SECOND * RESAMPLED), 1)
    resampled = functional.interpolate(states_LTC.transpose(1, 2), size=count, mode="linear", align_corners=True)
    return resampled.transpose(1, 2)


def align(states_LTC: torch.Tensor, num_frames: int, fps: float, hold: bool = False) -> torch.Tensor:
    """Returns the features [num_frames, L, C] of the first frames of a video; zeros where the sound has ended.

    hold: the sound goes on. A last frame whose place is rounded beyond the states (at 25 fps the 4th, 9th, 14th, ...)
    takes the last one, and not the zeros that the published rule gives it.
    """
    resampled = to_30hz(states_LTC)
    places = np.rint(np.arange(num_frames) / fps * RESAMPLED).astype(np.int64)
    inside = torch.from_numpy(hold | (places < resampled.shape[1]))
    index = torch.from_numpy(places.clip(max=resampled.shape[1] - 1)).to(resampled.device)
    found = resampled[:, index].transpose(0, 1)
    return found * inside.to(found.device, found.dtype)[:, None, None]


class HiddenStates:
    """A frozen wav2vec2: samples at 16 kHz -> the hidden states of all layers."""

    def __init__(self, model, normalise: bool, device: torch.device | str = "cpu"):
        self.model, self.normalise, self.device = model.to(device).eval().requires_grad_(False), normalise, device

    @property
    def size(self) -> tuple[int, int]:
        """(hidden states, their width)."""
        return self.model.config.num_hidden_layers + 1, self.model.config.hidden_size

    @torch.no_grad()
    def __call__(self, samples_N: np.ndarray) -> torch.Tensor:
        """Returns [L, T, C] in fp32, T = (N - 400) // 320 + 1, and one state at least."""
        sound = torch.from_numpy(np.ascontiguousarray(samples_N, np.float32))
        sound = functional.pad(sound, (0, max(0, LEAST_SAMPLES - len(sound))))
        if self.normalise:
            sound = (sound - sound.mean()) / (sound.var(correction=0) + 1e-7).sqrt()
        dtype = next(self.model.parameters()).dtype
        states = self.model(sound[None].to(self.device, dtype), output_hidden_states=True).hidden_states
        return torch.cat(states).float()


def load_hidden_states(folder: str | Path, device: torch.device | str = "cpu", dtype=torch.float32) -> HiddenStates:
    """Returns the wav2vec2 of a folder in transformers' layout (config.json, weights, preprocessor_config.json).

    Heads of its own trainings (lm_head, quantizer) are left out; of everything else each tensor must find its place.
    Errors: ValueError for a folder of something else, another rate or step of states, or weights that do not fit.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    folder = Path(folder)
    config = tensor_file.read_config(folder) if folder.is_dir() else None
    if not config or config.get("model_type") != "wav2vec2":
        raise ValueError(f"{folder} is not a wav2vec2 folder (a config.json of model_type wav2vec2 and its weights)")
    normalise, where, usual = _normalises(folder), str(folder / "config.json"), Wav2Vec2Config().to_dict()
    # Releases before this one wrote more about their training; what has a part in the states is in `usual`.
    told = {key: value for key, value in config.items() if key in usual and not key.startswith(("return_", "output_"))}
    sizes = check_config(told, usual, (), where)
    with of_library(where), torch.device("meta"):
        model = Wav2Vec2Model(Wav2Vec2Config(**sizes))
        step = model.config.inputs_to_logits_ratio
    if step != STATE_SAMPLES:
        raise ValueError(
            f"{where} makes a hidden state of every {step} samples (conv_stride); features at a video's rate are made "
            f"of one of every {STATE_SAMPLES}"
        )
    state = {_rename(name): tensor.to(dtype) for name, tensor in tensor_file.read(folder).items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(HEADS)}
    wanted = {n for n in model.state_dict() if n.startswith("masked_spec_embed")}  # a mask of its training: not read
    state |= {name: torch.zeros(model.config.hidden_size, dtype=dtype) for name in wanted}
    load_strict(model, state, str(folder), assign=True)
    return HiddenStates(model, normalise, device)


def _rename(name: str) -> str:
    """Returns a tensor's name in today's layout."""
    stem, _, last = name.removeprefix("wav2vec2.").rpartition(".")
    return f"{stem}.{OLD_NAMES.get(last, last)}" if stem else last


def _normalises(folder: Path) -> bool:
    """Returns whether the sound is brought to mean 0 and variance 1 first; the published ones do.

    Errors: ValueError for a folder that hears another rate.
    """
    path, config = folder / "preprocessor_config.json", {}
    if path.is_file():
        config = read_json(path)
    elif (path := folder / "processor_config.json").is_file():  # transformers 5 writes the one inside the other
        config = get(read_json(path), "feature_extractor", dict, str(path), {})
    if (rate := get(config, "sampling_rate", int, str(path), RATE)) != RATE:
        raise ValueError(f"{path} says that it hears {rate} samples a second; give a wav2vec2 that hears {RATE}")
    return get(config, "do_normalize", bool, str(path), True)


@dataclass(frozen=True)
class FeatureStream:
    """The features of one sound at a video's rate, asked for chunk by chunk; keeps nothing but `window: file`'s.

    fps: of the video. dropped: its first frames, which are made and not shown (`audio_driven` videos: three).
    Errors: ValueError for a sound of another rate than the encoder's.
    """

    states: HiddenStates
    sound: Samples
    config: AudioConfig
    fps: float
    dropped: int = DROPPED

    def __post_init__(self):
        if self.sound.rate != RATE:
            raise ValueError(
                f"the sound has {self.sound.rate} samples a second and is heard at {RATE}; give FileSound(path), "
                f"or ArraySound(samples, {self.sound.rate}).resampled({RATE})"
            )

    def frames(self, start: int, stop: int) -> torch.Tensor:
        """Returns the features [stop - start, L, C] of the frames of a chunk, counted with the dropped ones.

        Frame m of these shows, and hears, what is at (m - dropped + lead) / fps in the sound; before its start the
        first feature is repeated.
        """
        delay = self.dropped - self.config.lead
        first, last = max(start - delay, 0), max(stop - delay, 1)
        if self.config.window == "file":
            found = self._whole(last)[first:]
        else:
            found = self._window(first, last)
        early = max(0, (stop - start) - len(found))
        return torch.cat((found[:1].expand(early, -1, -1), found)) if early else found

    def clip(self, stop: int, chunk: int) -> torch.Tensor:
        """Returns the features [stop, L, C] of a recorded clip, heard as a generation in chunks of so many frames."""
        return torch.cat([self.frames(start, min(start + chunk, stop)) for start in range(0, stop, chunk)])

    def _window(self, first: int, last: int) -> torch.Tensor:
        begin = max(0, min(first, last - round(self.config.left * self.fps)))
        ahead = round(self.config.look_ahead * RATE)
        states = self._states(self._place(begin), self._place(last) + ahead + EXTRA)
        return align(states, last - begin, self.fps, hold=True)[first - begin :]

    def _whole(self, num_frames: int) -> torch.Tensor:
        if self.sound.length is None:
            raise ValueError("audio.window is file and the sound has no end; write audio.window=chunk")
        held = self.__dict__.get("_kept")
        if held is None:
            held = self._states(0, self.sound.length)
            self.__dict__["_kept"] = held
        return align(held, num_frames, self.fps)

    def _states(self, start: int, stop: int) -> torch.Tensor:
        """Returns the hidden states of a stretch of the sound: of the mean of its channels."""
        return self.states(self.sound.read(start, stop).mean(1))

    def _place(self, frame: int) -> int:
        """Returns the sample at which a frame begins."""
        return round(frame * RATE / self.fps)


def stack_speakers(streams: Sequence[FeatureStream], start: int, stop: int) -> torch.Tensor:
    """Returns the features [1, A, P, L, C] of several sounds, as a condition holds them."""
    return torch.stack([stream.frames(start, stop) for stream in streams])[None]
