"""Plans the videos of a batch: size, length, start and schedule. Reads the tensors that a user may give to a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.batch.request import Request
from pipeline.batch.schedule import requested_frames, video_length
from pipeline.batch.start import video_pixels
from pipeline.bundle import ModelBundle
from pipeline.causal import Causal
from pipeline.config import LONGEST, InferConfig
from pipeline.portrait import fit_size, parse_area
from utils.data.schedules import FRAME, SECOND, Moment, ScheduleLine
from utils.media.image import image_size
from wan.geometry import Geometry, Span

logger = logging.getLogger(__name__)
RATE_TOLERANCE = 0.01  # 24 and 23.976 frames per second count as equal


@dataclass(frozen=True)
class VideoPlan:
    """Size and length of the videos of a batch, and the latent frames at which prompts are requested."""

    geometry: Geometry
    pipeline: Any  # Causal or Bidirectional
    total: int  # latent frames
    given: int  # conditioning frames among them
    fps: float
    requested: tuple[int, ...] = (0,)

    @property
    def num_chunks(self) -> int:
        """Number of chunks to generate."""
        return len(self.pipeline.spans(self.total, self.given))

    @property
    def spans(self) -> list[Span]:
        """All chunks of a causal video, conditioning ones too."""
        return [*self.pipeline.generation.given_spans(self.given), *self.pipeline.spans(self.total, self.given)]


def plan_video(request: Request, config: InferConfig, bundle: ModelBundle, sampler, given: int = 0) -> VideoPlan:
    """Returns the plan of a video: from its prompt schedule, and from the configuration what that does not state.

    given: number of conditioning frames, if the request does not determine it.
    Errors: ValueError for a size, length, prompt ends or a start that are not possible.
    """
    script = request.script
    size = (script.height or config.height, script.width or config.width) if script else (config.height, config.width)
    if request.avatar and config.pipeline.size:
        height, width = image_size(request.avatar.image)
        size = fit_size(height, width, parse_area(config.pipeline.size))
    geometry = Geometry.of(bundle.spec, *size)
    pipeline = config.pipeline.build(config.generation, bundle, sampler, geometry, config.seed)
    fps = config.output.fps or bundle.spec.fps
    if request.avatar:
        return VideoPlan(geometry, pipeline, pipeline.length(request.avatar, fps, config.seconds), 0, fps)
    stated = video_length(script, geometry, fps) if script else None
    if stated is None and config.seconds:
        stated = geometry.latent_frames_for(config.seconds, fps), True
    total, loose = stated or (config.num_output_frames, False)
    if total > LONGEST:
        field, length = requested_length(script, config)
        raise ValueError(f"{field} ({length}) makes a video of {total} latent frames; write one of at most {LONGEST}")
    if request.video:
        given = _video_frames(request, pipeline, geometry, fps, total)
    elif request.image and not bundle.joins_image:
        given = 1
    if loose:
        total = pipeline.round_up(max(total, given + 1), given)
    pipeline.spans(total, given)  # raises if they do not fill chunks
    requested = tuple(requested_frames(script, geometry, fps)) if script else (0,)
    return VideoPlan(geometry, pipeline, total, given, fps, requested)


def requested_length(script: ScheduleLine | None, config: InferConfig) -> tuple[str, Moment]:
    """Returns (the field that states the video's length, the length as the user wrote it)."""
    if script and script.cues[-1].end:
        return f"the end of prompts[{len(script.cues) - 1}]", script.cues[-1].end
    if script and script.length:
        return "length", script.length
    if config.seconds:
        return "seconds", Moment(config.seconds, SECOND)
    return "num_output_frames", Moment(config.num_output_frames, FRAME)


def _video_frames(request: Request, pipeline: Causal, geometry: Geometry, fps: float, total: int) -> int:
    """Returns how many latent frames the end of the request's video fills in a video of `total` frames."""
    window = pipeline.generation.cache.window_frames
    most = total // 2 if window == -1 else min(window, total - pipeline.generation.chunk)
    pixels, rate = video_pixels(request.video, pipeline, geometry, fps, most, request.start_seconds)
    logger.info("%s: its last %d frames are given (%.3g s)", request.video, len(pixels), len(pixels) / fps)
    if abs(rate - fps) > RATE_TOLERANCE * fps:
        logger.warning("%s runs at %g fps, the video at %g: frames nearest in time are taken", request.video, rate, fps)
    return geometry.latent_frames(len(pixels))


def read_latents(path: str, name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
    """Returns tensor `name` [N, F, C, h, w] of a safetensors file, or None for an empty path; shape: (C, h, w)."""
    if not path:
        return None
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    if name not in tensors:
        raise ValueError(f"{path} has no tensor {name!r}; it has {sorted(tensors)}")
    found = tuple(tensors[name].shape)
    if len(found) != 5 or found[2:] != shape or 0 in found:
        raise ValueError(f"{path}: {name} is {list(found)}; this model at this size takes [N, F, {str(shape)[1:-1]}]")
    return tensors[name]


def select_rows(tensor: torch.Tensor | None, group: Sequence[Request], what: str) -> torch.Tensor | None:
    """Returns the batch's rows by prompt index; a single row is used for all."""
    if tensor is None:
        return None
    if len(tensor) == 1:
        return tensor.expand(len(group), *tensor.shape[1:])
    need = max(r.index for r in group)
    if need >= len(tensor):
        raise ValueError(f"{what} has {len(tensor)} rows, prompt number {need} needs one of its own")
    return tensor[np.array([r.index for r in group])]
