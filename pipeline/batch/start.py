"""What a video starts from: an image, or the last seconds of a video, as pixels and as clean latents.

The end of a video is cut to whole chunks, cropped and scaled to the new size, and sampled at the new rate (nearest
frames). The context pass over its latents fills the caches as if they had been generated.
"""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.batch.schedule import EPSILON
from pipeline.causal import Causal
from pipeline.config import LONGEST
from utils.data.media_folder import read_end
from utils.data.media_kinds import media_kind
from utils.media.image import read_image
from wan.geometry import Geometry


def image_pixels(path: str | Path, geometry: Geometry, mode: str = "crop") -> torch.Tensor:
    """Returns the image as one pixel frame [1, 3, H, W] in [-1, 1]; mode: "crop" keeps the aspect, or "stretch"."""
    return read_image(path, (geometry.height, geometry.width), mode)[None]


def speaker_masks(avatar, geometry: Geometry) -> torch.Tensor | None:
    """Returns which tokens of a frame each speaker moves, [1, A, rows, columns] in [0, 1]; None for one alone.

    Of pictures that are white where a speaker is, or without them strips of equal width, left to right. What belongs
    to nobody hears all, as published: a speaker's mask is 0 where another one is.
    Errors: ValueError for another number of masks than sounds.
    """
    count, (rows, columns) = len(avatar.sounds), geometry.grid
    if count == 1:
        return None
    if avatar.masks:
        if len(avatar.masks) != count:
            raise ValueError(
                f"{len(avatar.masks)} masks for {count} sounds; give one picture for each, or none (strips)"
            )
        pictures = torch.cat([image_pixels(path, geometry, "stretch") for path in avatar.masks])
        there = torch.nn.functional.adaptive_avg_pool2d(pictures.mean(1, keepdim=True), (rows, columns))[:, 0] > 0
    else:
        strip = torch.arange(columns) * count // columns
        there = (strip == torch.arange(count)[:, None])[:, None].expand(-1, rows, -1)
    others = there.sum(0, keepdim=True) - there.int()
    return (others == 0).float()[None]


def video_pixels(path: str | Path, pipeline: Causal, geometry: Geometry, fps: float, most: int, seconds: float = 0.0):
    """Returns (the last pixel frames of a video, [P, 3, H, W] in [-1, 1], the video's own frames per second).

    P fills whole chunks. fps: of the video to generate. most: latent frames at most, but at least one chunk.
    seconds: how much of the video to use instead of `most`, rounded down to whole chunks.
    Errors: ValueError naming a video that cannot be read or is too short, or for fewer seconds than one chunk.
    """
    first = pipeline.generation.head
    wanted = max(most, first)
    if seconds:
        wanted = geometry.latent_frame_at(int(seconds * fps + EPSILON))  # the first that is not whole
        if wanted < first:
            need = geometry.pixel_frames(first) / fps
            raise ValueError(f"start_seconds is {seconds:g} and the first chunk lasts {need:.4g}; write that or more")
        if wanted > LONGEST:
            raise ValueError(f"start_seconds is {seconds:g}, {wanted} latent frames; write less, {LONGEST} at most")
    wanted = pipeline.generation.round_down(wanted)
    pixels, rate = read_end(path, geometry.pixel_frames(wanted), fps, (geometry.height, geometry.width))
    have = pipeline.generation.round_down(geometry.latent_frame_at(len(pixels)))
    least = wanted if seconds else first
    if have < least:
        need, advice = geometry.pixel_frames(least), "ask for fewer seconds" if seconds else "start from its last image"
        raise ValueError(
            f"{path} has {len(pixels)} frames at {fps:g} fps and {need} are needed; give a longer one or {advice}"
        )
    return pixels[len(pixels) - geometry.pixel_frames(have) :], rate


def encode_start(pipeline: Causal, path: str | Path, seconds: float = 0.0) -> torch.Tensor:
    """Returns the clean latents [1, F, C, h, w] of an image or a video's end, for `Session.start(given=...)`.

    seconds: how much of the video to use; 0 = as many whole chunks as the window holds.
    Errors: ValueError for a file that cannot be used, or if neither seconds nor a window limit the length.
    """
    bundle, geometry, window = pipeline.bundle, pipeline.rollout.geometry, pipeline.generation.cache.window_frames
    if media_kind(path) == "image":
        pixels = image_pixels(path, geometry)
    else:
        if window == -1 and not seconds:
            raise ValueError("the cache has no window that says how much of a video is used; give the seconds")
        pixels, _ = video_pixels(path, pipeline, geometry, bundle.spec.fps, window, seconds)
    with torch.no_grad():
        return bundle.vae.encode(pixels[None].to(bundle.device)).to(bundle.dtype)
