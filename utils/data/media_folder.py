"""A folder of videos or images with captions: `<name>.mp4` (or .png, ...) next to `<name>.txt`."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from utils.data.media_kinds import CAPTION, Media, media_kind, scan
from utils.data.records import BadRecord
from utils.data.text_file import check_prompt, text_lines
from utils.media.image import read_image
from utils.media.video import TimedFrame, open_timed, read_at, read_video

MODES = ("crop", "stretch")


def list_media(folder: str | Path) -> tuple[str, list[Path], Media]:
    """Returns (the kind of a folder, "image" or "video"; its files of that kind by name; all that it holds).

    Errors: ValueError for a folder without any, one that mixes the two (clips of a shard have one length), or two
    files that would share a caption.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give one with <name>.mp4 or <name>.png next to <name>.txt")
    media = scan(folder)
    if bool(media.videos) == bool(media.images):
        found = f"{len(media.videos)} videos and {len(media.images)} images" if media.videos else "no videos or images"
        left = "; ".join(("keep one of the two kinds in a folder", *media.left_out([*media.videos, *media.images])))
        raise ValueError(f"{folder} holds {found}; {left}")
    kind = "video" if media.videos else "image"
    check_stems(folder, media.of(kind), kind)
    return kind, media.of(kind), media


def check_stems(folder: Path, files: Sequence[Path], kind: str) -> None:
    """Raises ValueError if two files would share a caption."""
    counts = Counter(file.stem for file in files)
    if doubled := sorted(stem for stem, count in counts.items() if count > 1):
        raise ValueError(f"{folder} holds two {kind}s with the name {doubled[0]!r}; one caption cannot serve both")


def read_caption(media: Path, path: Path | None = None) -> str:
    """Returns the caption next to a video or image, its lines joined. path: the caption file, if it was looked up.

    Errors: BadRecord naming the caption file.
    """
    path = path or media.with_suffix(CAPTION)
    if not path.exists():
        raise BadRecord(f"{media} has no caption; write {path.name} next to it")
    try:
        lines = (text for _, text in text_lines(path))
        text = check_prompt(" ".join(" ".join(lines).split()), str(path))
    except ValueError as error:
        raise BadRecord(f"{path} is not a caption ({error}); save it as UTF-8 text") from error
    if not text:
        raise BadRecord(f"{path} is empty; write the caption of {media.name} in it")
    return text


def read_clip(
    media: Path, num_frames: int, size: tuple[int, int], fps: float = 0.0, mode: str = "crop"
) -> torch.Tensor:
    """Returns the first `num_frames` of a video (or the one frame of an image), [P, 3, H, W] in [-1, 1].

    size: (H, W). fps: the frames nearest in time to this rate; 0 = as they come. mode: crop keeps the aspect and cuts
    the borders evenly, stretch does not. Errors: BadRecord for a file that cannot be read or is too short.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; write one of {MODES}")
    try:
        if media_kind(media) == "image":
            return read_image(media, size, mode)[None]
        frames, told = read_at(media, num_frames, fps) if fps else read_video(media, most=num_frames)
    except ValueError as error:
        raise BadRecord(str(error)) from error
    if len(frames) < num_frames:
        have = f"{told:.4g} s, {len(frames)} frames at {fps:g} fps" if fps else f"{len(frames)} frames at {told:g} fps"
        raise BadRecord(f"{media} has {have}, too few for {num_frames}; leave it out")
    return resize(torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(127.5).sub(1), size, mode)


def read_end(path: str | Path, num_frames: int, fps: float, size: tuple[int, int]) -> tuple[torch.Tensor, float]:
    """Returns (the last `num_frames` of a video at `fps`, or fewer if it is shorter, [P, 3, H, W] in [-1, 1]; its fps).

    The last frame is the video's own; before it, those nearest in time to 1 / fps, 2 / fps ... earlier are taken (left
    out, or repeated). size: (H, W); the aspect is kept and the borders are cut evenly. Only the frames of that time
    are held in memory. Errors: ValueError naming a file that is not a video.
    """
    span = (num_frames - 1) / fps
    kept: deque[TimedFrame] = deque()
    with open_timed(path) as (frames, clock):
        for time, frame in frames:
            kept.append((time, frame))
            while len(kept) > 1 and kept[1][0] <= time - span:  # the second is as early as asked: the first is not used
                kept.popleft()
    times = np.array([time for time, _ in kept])
    moments = times[-1] - np.arange(num_frames)[::-1] / fps
    moments = moments[moments > times[0] - clock.step / 2]
    picked = [kept[np.abs(times - moment).round(9).argmin()][1] for moment in moments]
    pixels = (torch.from_numpy(frame).permute(2, 0, 1)[None].float().div(127.5).sub(1) for frame in picked)
    return torch.cat([resize(frame, size, "crop") for frame in pixels]), float(clock.rate)


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
