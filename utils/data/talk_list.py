"""Lists of talking videos: JSONL, one video per line.

    {"image": "face.png", "audio": "voice.wav", "prompt": "a woman speaks to the camera"}
    {"image": "two.png", "audio": ["left.wav", "right.wav"], "masks": ["l.png", "r.png"], "prompt": "...", "name": "x"}

`audio` may join several files by +; without `masks` they are strips of the picture, left to right. `name` (or `id`)
names the file, `pose_video` a video of skeletons, `num_clip` how many clips it has at most. Paths start at the list's
folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from utils.data.text_file import check_decoded, check_prompt, raw_lines
from utils.json_reader import get, parse_json

KEYS = ("image", "audio", "masks", "prompt", "name", "id", "pose_video", "num_clip")


@dataclass(frozen=True)
class TalkLine:
    """One video; `line` counts from 1."""

    line: int
    prompt: str
    image: Path
    audio: tuple[Path, ...]
    masks: tuple[Path, ...] = ()
    name: str = ""
    pose_video: Path | None = None
    num_clip: int = 0  # 0 = as long as its sound


def is_talk_list(path: str | Path) -> bool:
    """True for a JSONL file whose first object has `audio`."""
    if not str(path).lower().endswith(".jsonl") or not Path(path).is_file():
        return False
    try:
        first = next((json.loads(text) for _, text in raw_lines(path) if text.strip()), None)
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "audio" in first


def read_talk_list(path: str | Path) -> list[TalkLine]:
    """Returns the videos of a list. Errors: ValueError naming file, line and field of every bad line."""
    found, bad = [], []
    for number, raw in raw_lines(path):
        where = f"{path}, line {number}"
        try:
            if (text := check_decoded(raw, where)).strip():
                found.append(_parse(parse_json(text, where), where, number, Path(path).parent))
        except ValueError as error:
            bad.append(str(error))
    if bad:
        raise ValueError("\n".join(bad))
    return found


def parse_files(written: object, folder: Path | None = None) -> tuple[Path, ...]:
    """Returns the files that a text names, several joined by +, or a list of them; from `folder` on, if it is given."""
    texts = written if isinstance(written, (list, tuple)) else str(written).split("+") if written else []
    paths = [Path(str(text).strip()).expanduser() for text in texts]
    return tuple(path if folder is None else folder / path for path in paths)


def _parse(line: dict, where: str, number: int, folder: Path) -> TalkLine:
    if other := sorted(set(line) - set(KEYS)):
        raise ValueError(
            f"{where}: {other[0]!r} is unknown; a line of a list of talking videos may hold {', '.join(KEYS)}"
        )
    for key in ("audio", "masks"):
        value = line.get(key, "")
        if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise ValueError(f"{where}: {key} is {value!r:.80}; write a file name, or a list of them")
    files = {key: parse_files(line.get(key, ""), folder) for key in ("audio", "masks")}
    if not files["audio"]:
        raise ValueError(f"{where}: audio is empty; write a file with sound")
    prompt = check_prompt(get(line, "prompt", str, where), where)
    if not prompt:
        raise ValueError(f"{where}: prompt is empty; write what the video shows")
    image = folder / Path(get(line, "image", str, where)).expanduser()
    name = get(line, "name", str, where, "") or get(line, "id", str, where, "")
    pose = get(line, "pose_video", str, where, "")
    if (clips := get(line, "num_clip", int, where, 0)) < 0:
        raise ValueError(f"{where}: num_clip is {clips}; write 1 or more, or leave it out (as long as the sound)")
    pose = folder / Path(pose).expanduser() if pose else None
    return TalkLine(number, prompt, image, files["audio"], files["masks"], name, pose, clips)
