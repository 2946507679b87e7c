"""A folder of videos or images with captions: `<name>.mp4` (or .png, ...) next to `<name>.txt`."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import torch

from utils.data.prompts import IMAGE_SUFFIXES, VIDEO_SUFFIXES, check_prompt
from utils.data.records import BadRecord
from utils.media.image import read_image
from utils.media.video import open_video, read_video

MODES = ("crop", "stretch")


def list_media(folder: str | Path) -> list[Path]:
    """Returns the videos of a folder, or its images, by name.

    Errors: ValueError for a folder without any, one that mixes the two (clips of a shard have one length), or two
    files that would share a caption.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give one with <name>.mp4 or <name>.png next to <name>.txt")
    files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    videos = [f for f in files if f.suffix.lower() in VIDEO_SUFFIXES]
    images = [f for f in files if f.suffix.lower() in IMAGE_SUFFIXES]
    if bool(videos) == bool(images):
        found = f"{len(videos)} videos and {len(images)} images" if videos else "neither videos nor images"
        raise ValueError(f"{folder} holds {found}; keep one of the two kinds in a folder")
    media = videos or images
    stems = [f.stem for f in media]
    if doubled := sorted({s for s in stems if stems.count(s) > 1}):
        raise ValueError(f"{folder} holds two files with the name {doubled[0]!r}; one caption cannot serve both")
    return media


def read_caption(media: Path) -> str:
    """Returns the caption next to a video or image, its lines joined. Errors: BadRecord naming the caption file."""
    path = media.with_suffix(".txt")
    try:
        text = " ".join(path.read_text(encoding="utf-8-sig").split())
        text = check_prompt(text, str(path))
    except FileNotFoundError:
        raise BadRecord(f"{media} has no caption; write {path.name} next to it") from None
    except (OSError, ValueError) as error:
        raise BadRecord(f"{path} is not a caption ({error}); save it as UTF-8 text") from error
    if not text:
        raise BadRecord(f"{path} is empty; write the caption of {media.name} in it")
    return text


def read_clip(
    media: Path, num_frames: int, size: tuple[int, int], fps: float = 0.0, mode: str = "crop"
) -> torch.Tensor:
    """Returns the first `num_frames` of a video (or the one frame of an image), [P, 3, H, W] in [-1, 1].

    size: (H, W). fps: pick the frames nearest to this rate; 0 = the video's own. mode: crop keeps the aspect and cuts
    the borders evenly, stretch does not. Errors: BadRecord for a file that cannot be read or is too short.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; write one of {MODES}")
    try:
        if media.suffix.lower() in IMAGE_SUFFIXES:
            return read_image(media, size, mode)[None]
        frames, rate = read_video(media, seconds=(num_frames + 1) / fps if fps else None, most=0 if fps else num_frames)
    except ValueError as error:
        raise BadRecord(str(error)) from error
    picked = np.round(np.arange(num_frames) * (rate / fps if fps else 1)).astype(int)
    if picked[-1] >= len(frames):
        at = f" at {fps} fps" if fps else ""
        raise BadRecord(f"{media} has {len(frames)} frames at {rate:g} fps, too few for {num_frames}{at}; leave it out")
    pixels = torch.from_numpy(frames[picked]).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return resize(pixels, size, mode)


def read_end(path: str | Path, num_frames: int, fps: float, size: tuple[int, int]) -> tuple[torch.Tensor, float]:
    """Returns (the last `num_frames` of a video at `fps`, or fewer if it is shorter, [P, 3, H, W] in [-1, 1]; its fps).

    The last frame is the video's own; where the rates differ, those nearest in time before it are taken (left out, or
    repeated). size: (H, W); the aspect is kept and the borders are cut evenly. Only these frames are held in memory.
    Errors: ValueError naming a file that is not a video.
    """
    with open_video(path) as (frames, rate):
        step = float(rate) / fps
        kept = deque(frames, maxlen=round((num_frames - 1) * step) + 1)
    back = np.round(np.arange(num_frames) * step).astype(int)
    picked = [kept[i] for i in (len(kept) - 1 - back[back < len(kept)])[::-1]]
    pixels = (torch.from_numpy(frame).permute(2, 0, 1)[None].float().div(127.5).sub(1) for frame in picked)
    return torch.cat([resize(frame, size, "crop") for frame in pixels]), float(rate)


def resize(pixels_PCHW: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Returns the frames at (H, W), antialiased bilinear; see `read_clip` for the mode."""
    height, width = size
    rows, columns = pixels_PCHW.shape[2:]
    if (rows, columns) == (height, width):
        return pixels_PCHW
    target = size
    if mode == "crop":
        factor = max(height / rows, width / columns)
        target = (max(height, round(rows * factor)), max(width, round(columns * factor)))
    resized = torch.nn.functional.interpolate(pixels_PCHW, target, mode="bilinear", antialias=True).clamp(-1, 1)
    top, left = (target[0] - height) // 2, (target[1] - width) // 2
    return resized[:, :, top : top + height, left : left + width]
