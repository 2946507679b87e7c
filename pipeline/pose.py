"""The pose of a talking video: a video of skeletons, at the talking video's rate and size, as latents.

Source: Wan2.2, wan/speech2video.py (`load_pose_cond`). As there, its first frame stands once more before it,
and behind its end the pose is black. Differs from it: the frames nearest in time are taken, not every n-th; and the
latents are those of one stream, without borders between clips, each of which begins anew there.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from utils.data.media_folder import resize
from utils.media.video import at_rate, open_timed
from wan.audio.features import DROPPED
from wan.condition import FEATURES_PER_FRAME
from wan.geometry import Geometry, Span

logger = logging.getLogger(__name__)


class PoseStream:
    """The latents of a pose video, asked for chunk by chunk; forward without end, backward from its start again.

    lead: frames by which the picture leads its sound, and its pose. Memory does not grow with the file.
    Errors: ValueError naming a file that is not a video, also while it is read.
    """

    def __init__(self, vae, path: str | Path, geometry: Geometry, fps: float, lead: int = 0):
        self.vae, self.path, self.fps = vae, Path(path), fps
        self.size, self.delay = (geometry.height, geometry.width), DROPPED - lead
        check_pose(self.path)
        self._next, self._latents = 0, self._encode()

    def latents(self, span: Span) -> torch.Tensor:
        """Returns the latents [1, F, C, h, w] of a chunk: the same bits in whatever order chunks are asked for."""
        if span.start < self._next:
            self._next, self._latents = 0, self._encode()
        found = list(itertools.islice(self._latents, span.start - self._next, span.stop - self._next))
        self._next = span.stop
        return torch.cat(found, 1)

    @torch.no_grad()
    def _encode(self) -> Iterator[torch.Tensor]:
        """Yields the latent of each four frames, without end; that of the repeated first frame is left out."""
        frames = self._frames()
        first = next(frames)
        _, state = self.vae.encode_stream(first, None)
        frames = itertools.chain([first] * (self.delay + 1), frames)
        while True:
            pixels = torch.cat(list(itertools.islice(frames, FEATURES_PER_FRAME)), 1)
            latents, state = self.vae.encode_stream(pixels, state)
            yield latents

    def _frames(self) -> Iterator[torch.Tensor]:
        """Yields the frames [1, 1, 3, H, W] in [-1, 1] at the video's rate; black ones behind the end."""
        count = 0
        with open_timed(self.path) as (frames, clock):
            for _, frame, moments in at_rate(frames, clock, self.fps):
                if moments:
                    count += moments
                    yield from [self._pixels(frame)] * moments
        logger.warning("%s ends after %.4g s and the video goes on: its pose is black", self.path, count / self.fps)
        yield from itertools.repeat(torch.full((1, 1, 3, *self.size), -1.0))

    def _pixels(self, frame: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float().div(127.5).sub(1)
        return resize(pixels, self.size, "crop")[None]


def check_pose(path: str | Path) -> None:
    """Raises ValueError for a file that is not a video."""
    with open_timed(path):
        pass
