"""Holds a small 3-D convolutional network whose features say what a digits clip shows, for the Frechet distance.

Trained once on real clips to name digit, colour, direction and speed (`scripts/train_features.py`); its weights ship.
It sees 33 pixel frames at a time, and its convolutions wrap at the edges as the clips do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from utils.atomic import write_tensors
from utils.digest import file_hash
from utils.digits.world import COLOURS, DIGITS, DIRECTIONS
from utils.json_reader import get, read_json

FOLDER = Path(__file__).resolve().parents[2] / "assets/digits/features"
WEIGHTS = "features.safetensors"
WINDOW = 33  # pixel frames of one input
CANVAS = 64  # pixels
LAYERS = (  # channels, kernel and stride in time and space; the last channels are the features
    (12, (3, 5, 5), (4, 2, 2)),
    (32, (3, 3, 3), (2, 2, 2)),
    (48, (3, 3, 3), (2, 2, 2)),
    (64, (3, 3, 3), (2, 1, 1)),
)
FEATURES = LAYERS[-1][0]
SPEEDS = (1, 2, 3, 4)  # pixels per frame; clips have 2, the others teach what speed is
LABELS = {"digit": len(DIGITS), "colour": len(COLOURS), "direction": len(DIRECTIONS), "speed": len(SPEEDS)}


class FeatureNet(nn.Module):
    """Applies four 3-D convolutions, a mean over what is left of time and space, one linear head per label.

    Steps of 4 frames and 8 pixels: on that lattice a real digit always lies the same way, so its place adds no scatter.
    """

    def __init__(self):
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        width = 4
        for channels, kernel, stride in LAYERS:
            self.convs.append(nn.Conv3d(width, channels, kernel, stride, padding=(1, 0, 0), bias=False))
            self.norms.append(nn.BatchNorm3d(channels))
            width = channels
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, count) for name, count in LABELS.items()})

    def features(self, pixels_BCPHW: torch.Tensor) -> torch.Tensor:
        """Returns [B, 64] of pixels [B, 3, P, 64, 64] in [0, 1]; P is 33, in training also less."""
        x = torch.cat([pixels_BCPHW, pixels_BCPHW.amax(1, keepdim=True)], 1)  # the ink, so that shapes need no colour
        for conv, norm in zip(self.convs, self.norms, strict=True):
            edge = conv.kernel_size[1] // 2
            x = F.silu(norm(conv(F.pad(x, (edge, edge, edge, edge, 0, 0), mode="circular"))))
        return x.mean((2, 3, 4))

    def forward(self, pixels_BCPHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns {label: logits [B, count]}."""
        features = self.features(pixels_BCPHW)
        return {name: head(features) for name, head in self.heads.items()}


def save_net(net: FeatureNet, folder: Path) -> str:
    """Writes the weights, fp16 but for the norms' statistics, and returns the file's SHA-256."""
    kept = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    state = {k: (v if "running" in k else v.half()).contiguous() for k, v in kept.items()}
    write_tensors(folder / WEIGHTS, state)
    return file_hash(folder / WEIGHTS)


def load_net(folder: Path = FOLDER) -> FeatureNet:
    """Returns the frozen network in fp32.

    Errors: ValueError for a folder without it, and for another file than its JSON names.
    """
    path, facts = folder / WEIGHTS, folder / "features.json"
    if not path.is_file() or not facts.is_file():
        raise ValueError(f"{folder} has no {WEIGHTS} or features.json; make them with scripts/train_features.py")
    known = get(read_json(facts), "sha256", str, str(facts))
    if file_hash(path) != known:
        raise ValueError(f"{path} is not the file of features.json ({known[:12]}...); distances would not compare")
    net = FeatureNet()
    found = net.load_state_dict({k: v.float() for k, v in load_file(path).items()}, strict=False)
    wrong = [*found.unexpected_keys, *(k for k in found.missing_keys if not k.endswith("num_batches_tracked"))]
    if wrong:
        raise ValueError(
            f"{path} does not fit this network at {wrong[:3]}; make it again with scripts/train_features.py"
        )
    return net.eval().requires_grad_(False)


def to_pixels(clips_BPHWC: np.ndarray) -> torch.Tensor:
    """Returns [B, 3, P, H, W] in [0, 1] of uint8 clips [B, P, H, W, 3]."""
    return torch.from_numpy(np.ascontiguousarray(clips_BPHWC.transpose(0, 4, 1, 2, 3))).float() / 255


def window_starts(num_frames: int) -> list[int]:
    """Returns where the windows of a clip begin: every 32 frames from 0; [] for a clip of less than 33.

    Neighbours share one frame. In 32 frames a digit of speed 2 goes once around the canvas, so all windows of a real
    clip are equal and the number of windows is not an advantage.
    """
    return list(range(0, num_frames - WINDOW + 1, WINDOW - 1))


def clip_features(net: FeatureNet, clip_PHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (features [W, 64] of the windows at `window_starts`, those [64] of the last 33 frames), float64.

    Errors: ValueError for anything but uint8 [P >= 33, 64, 64, 3].
    """
    size = (CANVAS, CANVAS, 3)
    if clip_PHWC.dtype != np.uint8 or clip_PHWC.shape[1:] != size or len(clip_PHWC) < WINDOW:
        raise ValueError(
            f"a clip is {clip_PHWC.dtype} {clip_PHWC.shape}; features need uint8 [{WINDOW} or more, {size}]"
        )
    grid, last = window_starts(len(clip_PHWC)), len(clip_PHWC) - WINDOW
    starts = grid if grid[-1] == last else [*grid, last]
    with torch.no_grad():  # one window at a time: the memory stays that of one, and one is as fast as many on a CPU
        rows = [net.features(to_pixels(clip_PHWC[None, s : s + WINDOW]))[0].double().numpy() for s in starts]
    return np.stack(rows[: len(grid)]), rows[-1]
