"""SyncNet: do lips and sound belong together, and at which offset.

Source: Chung and Zisserman 2016, "Out of time: automated lip sync in the wild"; sizes, names of the weights
(`syncnet_v2.model`) and the distances as in joonson/syncnet_python. Of the measured face only its box is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from utils.metrics.mfcc import RATE, mfcc

FPS = 25  # frames a second that it sees
FACE = 224  # pixels of a side
LIP_FRAMES, CEPSTRA_FRAMES = 5, 20  # of one look: 0.2 s of pictures and of sound
CEPSTRA_STEP = 4  # cepstra from one video frame to the next
SHIFTS = 15  # frames by which the sound is shifted, both ways
LEAST_FRAMES = FPS  # of a score; from fewer it says nothing
CROP_SCALE, CROP_GREY = 0.4, 110  # room around the box, and what lies outside the picture
PIECE = 16  # looks at a time: 0.3 GB of activations
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


@dataclass(frozen=True)
class SyncScore:
    """confidence (Sync-C): median minus least distance. distance (Sync-D): the least. offset in frames: its shift.

    offset > 0: the picture comes so many frames behind its sound.
    """

    confidence: float
    distance: float
    offset: int


class SyncNet(nn.Module):
    """Two towers: five frames of a face, and 0.2 s of cepstra, each to 1,024 numbers that are near if they belong."""

    def __init__(self):
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_layer(nn.Conv2d(1, 64, 3, padding=1)),
            nn.Identity(),
            *_layer(nn.Conv2d(64, 192, 3, padding=1)),
            nn.MaxPool2d(3, (1, 2)),
            *_layer(nn.Conv2d(192, 384, 3, padding=1)),
            *_layer(nn.Conv2d(384, 256, 3, padding=1)),
            *_layer(nn.Conv2d(256, 256, 3, padding=1)),
            nn.MaxPool2d(3, 2),
            *_layer(nn.Conv2d(256, 512, (5, 4))),
        )
        self.netcnnlip = nn.Sequential(
            *_layer(nn.Conv3d(3, 96, (LIP_FRAMES, 7, 7), (1, 2, 2))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_layer(nn.Conv3d(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_layer(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_layer(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_layer(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_layer(nn.Conv3d(256, 512, (1, 6, 6))),
        )
        self.netfcaud = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))
        self.netfclip = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))

    @torch.no_grad()
    def see(self, faces_PHWC: np.ndarray) -> torch.Tensor:
        """Returns [P - 4, 1024] of uint8 faces [P, 224, 224, 3] (RGB) at 25 fps: a row per look.

        All layers but the first see frames one by one, so neighbouring looks share them.
        """
        found = []
        for start in range(0, len(faces_PHWC) - LIP_FRAMES + 1, PIECE):
            piece = torch.from_numpy(faces_PHWC[start : start + PIECE + LIP_FRAMES - 1].copy())
            pixels = piece.to(self._device()).flip(-1).permute(3, 0, 1, 2).float()  # it was trained on BGR, 0 .. 255
            found.append(self.netfclip(self.netcnnlip(pixels[None]).flatten(2)[0].T).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def hear(self, cepstra_TC: np.ndarray, count: int) -> torch.Tensor:
        """Returns [count, 1024]: of the 20 cepstra from each of `count` video frames on."""
        rows = torch.from_numpy(np.ascontiguousarray(cepstra_TC, np.float32)).T
        looks = rows.unfold(1, CEPSTRA_FRAMES, CEPSTRA_STEP)[:, :count].permute(1, 0, 2)[:, None].contiguous()
        found = [self.netfcaud(self.netcnnaud(part.to(self._device())).flatten(1)).cpu() for part in looks.split(64)]
        return torch.cat(found)

    def _device(self) -> torch.device:
        return self.netfclip[0].weight.device


def _layer(conv: nn.Conv2d | nn.Conv3d) -> list[nn.Module]:
    norm = nn.BatchNorm2d if isinstance(conv, nn.Conv2d) else nn.BatchNorm3d
    return [conv, norm(conv.out_channels), nn.ReLU()]


def sync_score(net: SyncNet, faces_PHWC: np.ndarray, samples_N: np.ndarray) -> SyncScore | None:
    """Returns how well a face and a sound go together; None for less than a second of either.

    faces: uint8 [P, 224, 224, 3] at 25 fps (`crop_face`). samples: floats in [-1, 1] at 16 kHz, the first one heard
    with the first frame. As published the last look that fits is left out.
    """
    frames = min(len(faces_PHWC), len(samples_N) * FPS // RATE)
    if frames < LEAST_FRAMES:
        return None
    looks = frames - LIP_FRAMES
    levels = np.clip(np.rint(np.asarray(samples_N, np.float64) * 32768), -32768, 32767)
    return compare_looks(net.see(faces_PHWC[:frames])[:looks], net.hear(mfcc(levels), looks))


def compare_looks(lips_NC: torch.Tensor, sounds_NC: torch.Tensor) -> SyncScore:
    """Returns the score of looks at lips and sound: distances at each shift, their mean over all looks.

    Shifted beyond its ends the sound is zeros, as published.
    """
    padded = functional.pad(sounds_NC, (0, 0, SHIFTS, SHIFTS))
    looks = len(lips_NC)
    shifted = (padded[shift : shift + looks] for shift in range(2 * SHIFTS + 1))
    means = torch.stack([functional.pairwise_distance(lips_NC, sounds).mean() for sounds in shifted])
    least, at = means.min(0)
    return SyncScore(float(means.median() - least), float(least), SHIFTS - int(at))


def check_box(box: Box, height: int, width: int) -> None:
    """Raises ValueError for a box that is not one, or not inside a picture of this size."""
    left, top, right, bottom = box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(
            f"the face box is {left:g} {top:g} {right:g} {bottom:g} (left, top, right, bottom) in a picture of "
            f"{width} x {height} pixels; write the box in the video's pixels"
        )


def crop_face(frame_HWC: np.ndarray, box: Box) -> np.ndarray:
    """Returns uint8 [224, 224, 3]: a square around the box with more room below, as SyncNet was trained on."""
    left, top, right, bottom = box
    half = max(bottom - top, right - left) / 2
    room = int(half * (1 + 2 * CROP_SCALE))
    x, y = (left + right) / 2 + room, (top + bottom) / 2 + room
    padded = np.pad(frame_HWC, ((room, room), (room, room), (0, 0)), constant_values=CROP_GREY)
    rows = slice(int(y - half), int(y + half * (1 + 2 * CROP_SCALE)))
    columns = slice(int(x - half * (1 + CROP_SCALE)), int(x + half * (1 + CROP_SCALE)))
    pixels = torch.from_numpy(padded[rows, columns].copy()).permute(2, 0, 1)[None].float()
    sized = functional.interpolate(pixels, (FACE, FACE), mode="bilinear", align_corners=False)
    return sized[0].round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
