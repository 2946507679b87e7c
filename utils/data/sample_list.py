"""Lists of samples as Live-Avatar's batch_eval takes them: JSON or YAML, {name: {prompt, image, audio, num_clip}}.

    anchor:
      prompt: a woman reads the news
      image: anchor.png
      audio: anchor.wav
      face: [120, 80, 260, 240]
      truth: anchor.mp4

What evaluation adds: `face`, the box left, top, right, bottom in pixels of the video, and `truth`, a recorded video of
the same frames. Our own lists of talking videos (JSONL, `utils/data/talk_list.py`) are read too. Paths start at the
list's folder. `num_clip`, the length of a generation, is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.config.field import raise_all
from utils.config.layer import read_yaml
from utils.data.talk_list import parse_files, read_talk_list
from utils.json_reader import JsonError, get, read_json

KEYS = ("prompt", "image", "audio", "num_clip", "face", "truth")
YAML = (".yaml", ".yml")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Sample:
    """One sample of a list; what it does not say is None, or empty."""

    name: str
    image: Path | None = None
    audio: tuple[Path, ...] = ()
    truth: Path | None = None
    face: Box | None = None


def read_sample_list(path: str | Path) -> list[Sample]:
    """Returns the samples of a list in its order. Errors: ValueError naming file, sample and key of each mistake."""
    path = Path(path)
    if path.suffix.lower() == ".jsonl":
        lines = read_talk_list(path)
        return [Sample(line.name or line.prompt, line.image, line.audio) for line in lines]
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give a list of samples (.json, .yaml or .jsonl)")
    tree = read_yaml(path).tree if path.suffix.lower() in YAML else read_json(path)
    found, bad = [], []
    for name, sample in tree.items():
        try:
            found.append(_parse(str(name), sample, f"{path}, {name}", path.parent))
        except ValueError as error:
            bad.append(str(error))
    raise_all(f"list {path}", bad)
    if not found:
        raise ValueError(f"{path} holds no sample; write name: {{image: ..., audio: ...}}")
    return found


def _parse(name: str, sample: object, where: str, folder: Path) -> Sample:
    if not isinstance(sample, dict):
        raise JsonError(f"{where} is {sample!r:.60}; write an object with {', '.join(KEYS)}")
    if other := sorted(set(map(str, sample)) - set(KEYS)):
        raise JsonError(f"{where}: {other[0]!r} is unknown; a sample may hold {', '.join(KEYS)}")
    texts = {key: get(sample, key, str, where, "") for key in ("image", "truth")}
    paths = {key: folder / Path(text).expanduser() if text else None for key, text in texts.items()}
    audio = parse_files(get(sample, "audio", (str, list), where, ""), folder)
    return Sample(name, paths["image"], audio, paths["truth"], _parse_box(sample, where))


def _parse_box(sample: dict, where: str) -> Box | None:
    box = get(sample, "face", list, where, None) if sample.get("face") is not None else None
    if box is None:
        return None
    if len(box) != 4 or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in box):
        raise JsonError(f"{where}: face is {box!r:.60}; write [left, top, right, bottom] in pixels of the video")
    left, top, right, bottom = map(float, box)
    return left, top, right, bottom
