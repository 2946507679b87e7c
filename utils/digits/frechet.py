"""Measures the Frechet distance of digits videos to real clips, and what real clips of the same prompts score.

Unit: percent of the real clips' total variance, so 100 is as far as real clips lie apart among themselves.
The distance asks whether a set of videos looks like real clips, not whether a video shows what its prompt asks for (a
set with shuffled prompts scores as the real one); it alone sees a model that always draws the same handwriting.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from utils.atomic import write_tensors
from utils.digest import file_hash
from utils.digits import features
from utils.digits.features import CANVAS, FOLDER, WEIGHTS, WINDOW, clip_features
from utils.digits.world import all_prompts, prompt_clip
from utils.metrics.frechet import Gaussian, fit, frechet_distance, interval

REFERENCE = "reference.safetensors"
REFERENCE_SEED, REFERENCE_SETS = 30_000, 8  # seeds that neither a training nor an evaluation draws
FLOOR_SEED, FLOOR_DRAWS = 31_000, 5
SEEDS_PER_DRAW = 100  # seeds of one draw of the floor, for prompts that are requested several times


class FrechetMeter:
    """Collects the features of one row's clips while they pass by to other metrics."""

    def __init__(self):
        self.windows, self.last = [], []

    def collect(self, clips: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields each uint8 clip [P, H, W, 3] and keeps its features, unless it is too short or of another size."""
        for clip in clips:
            if len(clip) >= WINDOW and clip.shape[1:3] == (CANVAS, CANVAS):
                windows, last = clip_features(load_net(), clip)
                self.windows.append(windows)
                self.last.append(last)
            yield clip

    def row(self, subjects) -> dict | None:
        """Returns {all, first, last: {mean, low, high}, floor: {mean, low, high, draws}}; None if no clip fits.

        all: every window of every video; first and last: the first and the last 33 frames. floor: real clips of the
        same prompts, drawn several times: mean, least and largest; it is that of one window a video, so the windows
        of a video that changes, being more different, can lie below it in `all`. Fewer than 2 videos: None.
        """
        if not self.windows:
            return None
        reference = load_reference()
        every, last = np.stack(self.windows), np.stack(self.last)[:, None]
        whole = _percent(interval(reference, every))
        single = np.array_equal(every, last)  # the videos are one window long
        row = {"all": whole, "first": whole if single else _percent(interval(reference, every[:, :1]))}
        row["last"] = whole if single else _percent(interval(reference, last))
        return row | {"floor": floor(tuple(sorted(_number(subject) for subject in subjects)))}


def _percent(distances: dict) -> dict:
    """Returns the distances of {mean, low, high} in percent of the real clips' total variance."""
    total = np.trace(load_reference().covariance)
    return {key: None if value is None else float(100 * value / total) for key, value in distances.items()}


def _number(subject) -> int:
    return _numbers()[subject.text()]


@functools.cache
def _numbers() -> dict[str, int]:
    return {prompt: number for number, prompt in enumerate(all_prompts())}


@functools.lru_cache(maxsize=8)
def floor(prompts: tuple[int, ...], draws: int = FLOOR_DRAWS) -> dict:
    """Returns {mean, low, high, draws}: distances of fresh real clips of the given prompt numbers; least, largest.

    One window a clip is enough for videos of any length: all windows of a real clip are equal, or moved by whole cells.
    """
    if len(prompts) < 2:
        return {"mean": None, "low": None, "high": None, "draws": []}
    net, reference, values = load_net(), load_reference(), []
    total = np.trace(reference.covariance)
    for draw in range(draws):
        taken, rows = Counter(), []
        for prompt in prompts:
            seed = FLOOR_SEED + SEEDS_PER_DRAW * draw + taken[prompt]
            rows.append(clip_features(net, prompt_clip(prompt, WINDOW, seed)[0])[1])
            taken[prompt] += 1
        values.append(float(100 * frechet_distance(reference, fit(np.stack(rows))) / total))
    return {"mean": float(np.mean(values)), "low": min(values), "high": max(values), "draws": values}


@functools.lru_cache(maxsize=2)
def load_net(folder: Path = FOLDER) -> features.FeatureNet:
    """Returns `features.load_net`, read once."""
    return features.load_net(folder)


def make_reference(folder: Path = FOLDER) -> int:
    """Writes the Gaussian of real clips, REFERENCE_SETS of each prompt, next to the weights; returns their number."""
    net = features.load_net(folder)
    seeds = range(REFERENCE_SEED, REFERENCE_SEED + REFERENCE_SETS)
    clips = (prompt_clip(i, WINDOW, seed)[0] for seed in seeds for i in range(len(all_prompts())))
    rows = np.stack([clip_features(net, clip)[1] for clip in clips])
    gaussian = fit(rows)
    content = {name: torch.from_numpy(getattr(gaussian, name)) for name in ("mean", "covariance")}
    write_tensors(folder / REFERENCE, content, {"weights": file_hash(folder / WEIGHTS), "clips": str(len(rows))})
    return len(rows)


@functools.lru_cache(maxsize=2)
def load_reference(folder: Path = FOLDER) -> Gaussian:
    """Returns the Gaussian of real clips. Errors: ValueError for no file, or one of another feature net."""
    path = folder / REFERENCE
    if not path.is_file():
        raise ValueError(f"{path} is missing; make it with scripts/train_features.py")
    with safe_open(path, "numpy") as file:
        made_by = (file.metadata() or {}).get("weights")
        if made_by != file_hash(folder / WEIGHTS):
            raise ValueError(f"{path} was made by another feature net; make both again with scripts/train_features.py")
        return Gaussian(file.get_tensor("mean"), file.get_tensor("covariance"))
