"""A folder of talking videos: `<name>.mp4` with its sound, next to `<name>.txt` and, if there is one, `<name>.png`.

The caption says what is seen, the picture is the portrait; without one a frame from elsewhere in the video is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from utils.data.media_folder import check_stems, read_clip, resize
from utils.data.media_kinds import Media, listed, scan
from utils.data.provenance import File, file_facts
from utils.data.records import BadRecord
from utils.media.audio import SoundFrom, sound_of_video
from utils.media.image import read_image
from utils.media.video import open_timed
from utils.rng import Rng

ELSEWHERE = 10.0  # seconds behind a clip in which its portrait is looked for
UNHEARD = 0.5  # seconds at the end of a clip that may lie behind the end of its sound


def list_talking(folder: str | Path) -> tuple[list[Path], dict[str, Path], Media]:
    """Returns (the videos of a folder by name; their portraits by stem; all that it holds).

    Errors: ValueError for a folder without a video, or two files that would share a caption or a portrait.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give one with <name>.mp4 next to <name>.txt")
    media = scan(folder)
    if not media.videos:
        left = "; ".join(media.left_out([]))
        raise ValueError(f"{folder} holds no videos{'; ' + left if left else ''}; put <name>.mp4 next to <name>.txt")
    check_stems(folder, media.videos, "video")
    check_stems(folder, media.images, "image")
    return media.videos, {picture.stem: picture for picture in media.images}, media


def unused_pictures(videos: list[Path], pictures: dict[str, Path]) -> str:
    """Returns a sentence on the pictures that are nobody's portrait, or nothing."""
    stems = {video.stem for video in videos}
    names = [picture.name for stem, picture in pictures.items() if stem not in stems]
    return f"{len(names)} pictures have no video of their name: {listed(names)}" if names else ""


def talking_facts(video: Path, caption: str, picture: Path | None) -> File:
    """Returns what tells a talking video from another one of its name."""
    return file_facts(video, caption) | {"picture": None if picture is None else file_facts(picture, "")}


def read_talking(
    video: Path, picture: Path | None, num_frames: int, size: tuple[int, int], fps: float, mode: str, rng: Rng
) -> tuple[torch.Tensor, torch.Tensor, SoundFrom]:
    """Returns (the first frames of a talking video [P, 3, H, W] in [-1, 1], its portrait [3, H, W], its sound).

    The sound is at 16 kHz and starts with the first frame. rng: draws the portrait of a video without a picture, by the
    video's name. Errors: BadRecord for a file that cannot be read, is too short, or falls silent for want of a track.
    """
    frames = read_clip(video, num_frames, size, fps, mode)
    try:
        sound = sound_of_video(video)
        heard, seconds = sound.length / sound.rate, num_frames / fps
        if heard < seconds - UNHEARD:
            raise BadRecord(f"{video} has {max(heard, 0):.3g} s of sound for a clip of {seconds:.3g} s; leave it out")
        if picture is not None:
            return frames, read_image(picture, size, mode), sound
        found = find_portrait(video, seconds, rng)
    except ValueError as error:
        raise BadRecord(str(error)) from error
    pixels = torch.from_numpy(found).permute(2, 0, 1)[None].float().div(127.5).sub(1)
    return frames, resize(pixels, size, mode)[0], sound


def find_portrait(video: Path, seconds: float, rng: Rng) -> np.ndarray:
    """Returns a frame [H, W, 3] from the ten seconds behind a clip; of a video that ends with the clip, one of its own.

    Each is as likely as any other. One frame is held at a time.
    """
    found: dict[bool, np.ndarray] = {}
    counts = {False: 0, True: 0}
    with open_timed(video) as (frames, _):
        for time, frame in frames:
            if time >= seconds + ELSEWHERE:
                break
            behind = time >= seconds
            counts[behind] += 1
            if float(rng.uniform("portrait", video.name, int(behind), counts[behind])) * counts[behind] < 1:
                found[behind] = frame
    return found[max(found)]
