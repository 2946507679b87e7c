"""Scripts: videos whose prompt changes while they run. JSONL, one video per line.

    {"prompts": [{"text": "...", "end_frame": 30}, {"text": "...", "end": "4.5s"}, {"text": "..."}]}
    {"prompts": ["...", "...", "..."]}                        with the switch frames in the configuration

A prompt holds until its end: `end_frame` (latent frames), `end_pixel_frame` or `end` (seconds, "4.5s"). The last
one may have an end too, which is the video's. Besides `prompts` a line may hold `seed`, `length` (latent frames, or
"20s"), `negative_prompt`, `height`, `width` (pixels) and `name` (or `id`), which names the file; and what the video
starts from: `image`, or `video` and how much of its end, `start_seconds`. Their paths start at the script's folder.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.data.text_file import TEXT_COLUMNS, check_decoded, check_prompt, raw_lines

SUFFIX = ".jsonl"
FRAME, PIXEL_FRAME, SECOND = "latent frame", "pixel frame", "second"
ENDS = {"end_frame": FRAME, "end_pixel_frame": PIXEL_FRAME, "end": SECOND}
KEYS = ("prompts", "seed", "length", "negative_prompt", "height", "width", "name", "id")
STARTS = ("image", "video", "start_seconds")
NUMBER = r"(\d+(?:\.\d+)?)"
TIME = re.compile(rf"(?:{NUMBER} ?h)? ?(?:{NUMBER} ?m)? ?(?:{NUMBER} ?s)?")  # "1h30m", "10m", "4.5s"
LARGEST = 2**31 - 1  # of any other number in a script: more is a mistake
LARGEST_SEED = 2**63 - 1
DIGITS = 100  # of a whole number; Python refuses to read more than 4,300


@dataclass(frozen=True)
class Moment:
    """A time as it was written: so many latent frames, pixel frames or seconds."""

    value: float
    unit: str

    def __str__(self) -> str:
        return f"{self.unit} {self.value:.10g}"


@dataclass(frozen=True)
class Cue:
    """A prompt and where it ends; None: with the video."""

    text: str
    end: Moment | None = None


@dataclass(frozen=True)
class ScheduleLine:
    """One video. `where` names its file and line in messages; None and 0 stand for what the configuration says."""

    where: str
    line: int
    cues: tuple[Cue, ...]
    seed: int | None = None
    length: Moment | None = None
    negative_prompt: str | None = None
    height: int = 0
    width: int = 0
    name: str = ""
    image: Path | None = None
    video: Path | None = None
    start_seconds: float = 0.0  # how much of the video's end

    @property
    def index(self) -> int:
        """The 0-based line: the key of the video's noise and the number in its file name."""
        return self.line - 1

    @property
    def started(self) -> bool:
        """True if the line says what its video starts from."""
        return bool(self.image or self.video)

    @property
    def text(self) -> str:
        """What the file is named after."""
        return self.name or self.cues[0].text

    @property
    def schedule(self) -> tuple:
        """What videos must share to be made together: the ends of their prompts, length and size."""
        return tuple(cue.end for cue in self.cues), self.length, self.height, self.width


def read_schedules(path: str | Path, switch_frames: Sequence[int] = (), refused: list[str] | None = None):
    """Returns the ScriptLines of a JSONL file; blank lines are skipped and keep their number.

    switch_frames: latent frames at which videos of the short form change their prompt.
    refused: if given, takes the messages of bad lines, and the others are returned.
    Errors: ValueError naming file, line and field of every bad line; for a file without any (other) video.
    """
    lines, bad = [], []
    for number, raw in raw_lines(path):
        where = f"{path}, line {number}"
        try:
            if (text := check_decoded(raw, where)).strip():
                lines.append(_parse_line(text, where, number, switch_frames, Path(path).parent))
        except ValueError as error:
            bad.append(str(error))
    if bad and (refused is None or not lines):
        raise ValueError("\n".join(bad))
    if not lines:
        raise ValueError(f'{path} holds no video; write one {{"prompts": [...]}} per line')
    if refused is not None:
        refused += bad
    return lines


def is_schedule(path: str | Path) -> bool:
    """True for a file of prompt schedules by its ending, unless its first object holds one prompt (a caption list)."""
    if not str(path).lower().endswith(SUFFIX):
        return False
    try:
        first = next((json.loads(text) for _, text in raw_lines(path) if text.strip()), None)
    except (ValueError, RecursionError):
        return True  # what is wrong with it is said where it is read
    if isinstance(first, str):
        return False
    return not isinstance(first, dict) or "prompts" in first or not any(str(k).lower() in TEXT_COLUMNS for k in first)


def parse_switch_frames(value) -> tuple[int, ...]:
    """Returns latent frames given as a list, a number, or text like "40, 80, 120".

    Errors: ValueError unless they are whole numbers from 1 on that ascend.
    """
    frames = frame_list("switch_frames", value)
    if any(b <= a for a, b in zip((0, *frames), frames, strict=False)):
        raise ValueError(f"switch_frames is {value!r}; write latent frames from 1 on that ascend")
    return frames


def frame_list(name: str, value) -> tuple[int, ...]:
    """Returns latent frames given as a list, a number, or text like "40, 80".

    Errors: ValueError, which calls the value `name`, unless they are whole numbers from 1 on.
    """
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    try:
        frames = tuple(int(str(part)) for part in parts if str(part).strip())
    except ValueError:
        frames = (0,)
    if any(frame < 1 for frame in frames):
        raise ValueError(f"{name} is {value!r}; write latent frames from 1 on, e.g. 120, [40, 80, 120] or '40, 80'")
    return frames


def _parse_line(text: str, where: str, number: int, switch_frames: Sequence[int], folder: Path) -> ScheduleLine:
    tree = _object(_parsed(text, where), where, KEYS + STARTS)
    if "prompts" not in tree:
        raise ValueError(f"{where}: prompts is missing; write a list of prompts")
    if "name" in tree and "id" in tree:
        raise ValueError(f"{where}: name and id mean the same; write one of them")
    key = "id" if "id" in tree else "name"
    name = tree.get(key, "")
    if not isinstance(name, str) and not (key == "id" and _is_whole(name)):
        raise ValueError(f"{where}: {key} is {name!r}; write text")
    negative = tree.get("negative_prompt")
    if negative is not None and not isinstance(negative, str):
        raise ValueError(f"{where}: negative_prompt is {negative!r}; write text")
    parsed = ScheduleLine(
        where=where,
        line=number,
        cues=_cues(tree["prompts"], where, switch_frames),
        seed=_whole(tree, "seed", where, 0, LARGEST_SEED),
        length=_length(tree, where),
        negative_prompt=None if negative is None else check_prompt(negative, f"{where}: negative_prompt"),
        height=_whole(tree, "height", where, 1) or 0,
        width=_whole(tree, "width", where, 1) or 0,
        name=check_prompt(str(name), f"{where}: {key}"),
        **_start(tree, where, folder),
    )
    if parsed.cues[-1].end and parsed.length:
        raise ValueError(f"{where}: length and the end of the last prompt both tell the video's length; write one")
    return parsed


def _parsed(text: str, where: str):
    def once(pairs):
        keys = [key for key, _ in pairs]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"{where}: {twice[0]} is written twice; keep one")
        return dict(pairs)

    def no_number(name):
        raise ValueError(f"{where}: {name} is not a number that can be used; write one")

    def whole(digits):
        return int(digits) if len(digits) <= DIGITS else float(digits)  # which is refused where its field is read

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=no_number, parse_int=whole)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}, column {error.colno}: not JSON: {error.msg}; write one object per line") from error
    except RecursionError as error:
        raise ValueError(f"{where}: the JSON is nested too deeply; write one object per line") from error


def _object(tree, where: str, known: Sequence[str]) -> dict:
    """Returns the JSON object after checking its keys."""
    if not isinstance(tree, dict):
        raise ValueError(f"{where}: got {type(tree).__name__}; write an object with the keys {', '.join(known)}")
    for key in tree:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(known)}"
            raise ValueError(f"{where}: unknown key {key!r}; {hint}")
    return tree


def _cues(prompts, where: str, switch_frames: Sequence[int]) -> tuple[Cue, ...]:
    if not isinstance(prompts, list) or not prompts:
        raise ValueError(f"{where}: prompts is {prompts!r}; write a list of prompts, at least one")
    plain = [isinstance(p, str) for p in prompts]
    if any(plain) and not all(plain):
        raise ValueError(f"{where}: prompts mixes texts and objects; write all of them alike")
    if not all(plain):
        cues = [_cue(p, f"{where}: prompts[{i}]", i + 1 == len(prompts)) for i, p in enumerate(prompts)]
        _check_order(cues, where)
        return tuple(cues)
    if len(prompts) != len(switch_frames) + 1:
        raise ValueError(
            f"{where}: {len(prompts)} prompts and {len(switch_frames)} data.switch_frames; a video of n prompts "
            'takes n - 1 switch frames, or write the ends into the script: {"text": ..., "end_frame": ...}'
        )
    ends = [Moment(frame, FRAME) for frame in switch_frames] + [None]
    texts = [_text(p, f"{where}: prompts[{i}]") for i, p in enumerate(prompts)]
    return tuple(Cue(text, end) for text, end in zip(texts, ends, strict=True))


def _cue(tree, where: str, last: bool) -> Cue:
    tree = _object(tree, where, ("text", *ENDS))
    if "text" not in tree:
        raise ValueError(f"{where}: text is missing; write the prompt")
    ends = [key for key in ENDS if key in tree]
    if len(ends) > 1:
        raise ValueError(f"{where}: {ends[0]} and {ends[1]} both tell where it ends; write one")
    if not ends and not last:
        raise ValueError(f"{where}: it has no end, which only the last prompt may leave out; write end_frame or end")
    return Cue(_text(tree["text"], f"{where}.text"), _end(tree, ends[0], where) if ends else None)


def _text(text, where: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{where} is {text!r}; write text")
    prompt = check_prompt(text, where)
    if not prompt:
        raise ValueError(f"{where} is empty; write a prompt")
    return prompt


def _end(tree: dict, key: str, where: str) -> Moment:
    if key == "end":
        return _seconds(tree[key], f"{where}.end", "end_frame or end_pixel_frame")
    return Moment(_whole(tree, key, f"{where}", 1), ENDS[key])


def _length(tree: dict, where: str) -> Moment | None:
    length = tree.get("length")
    if isinstance(length, str):
        return _seconds(length, f"{where}: length", "a whole number")
    return None if length is None else Moment(_whole(tree, "length", where, 1), FRAME)


def parse_time(text: str) -> float | None:
    """Returns the seconds of a time like "4.5s", "10m" or "1h30m"; None for another text, 0 or far too much."""
    found = TIME.fullmatch(text.strip())
    seconds = sum(float(n or 0) * unit for n, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else 0
    return seconds if 0 < seconds <= LARGEST else None


def _seconds(value, where: str, otherwise: str) -> Moment:
    seconds = parse_time(value) if isinstance(value, str) else None
    if seconds is None:
        raise ValueError(f'{where} is {value!r}; write a time like "4.5s" or "10m", or {otherwise} for frames')
    return Moment(seconds, SECOND)


def _start(tree: dict, where: str, folder: Path) -> dict:
    """Returns what the video starts from, as fields of a ScriptLine."""
    image, video = (_file(tree, key, where, folder) for key in ("image", "video"))
    if image and video:
        raise ValueError(f"{where}: image and video both tell what the video starts from; write one")
    seconds = tree.get("start_seconds", 0.0)
    if "start_seconds" in tree:
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not (number and 0 < seconds <= LARGEST):
            raise ValueError(f"{where}: start_seconds is {seconds!r}; write a number above 0")
        if not video:
            raise ValueError(f"{where}: start_seconds tells how much of a video is used; write video too")
    return {"image": image, "video": video, "start_seconds": float(seconds)}


def _file(tree: dict, key: str, where: str, folder: Path) -> Path | None:
    value = tree.get(key)
    if key in tree and not (isinstance(value, str) and value):
        raise ValueError(f"{where}: {key} is {value!r}; write the path of a file")
    if value is not None and not (folder / value).is_file():
        raise ValueError(f"{where}: {key} is {value!r}; there is no file {folder / value}")
    return None if value is None else folder / value


def _whole(tree: dict, key: str, where: str, least: int, most: int = LARGEST) -> int | None:
    value = tree.get(key)
    if value is not None and not (_is_whole(value) and least <= value <= most):
        raise ValueError(f"{where}: {key} is {value!r}; write a whole number from {least} to {most}")
    if value is None and key in tree:
        raise ValueError(f"{where}: {key} is null; leave it out or write a whole number")
    return value


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_order(cues: Sequence[Cue], where: str) -> None:
    """Raises ValueError where ends of one unit do not ascend; those of different units need frame rates."""
    latest: dict[str, float] = {}
    for number, cue in enumerate(cues):
        if cue.end is not None:
            before = latest.get(cue.end.unit, -math.inf)
            if cue.end.value <= before:
                raise ValueError(
                    f"{where}: prompts[{number}] ends at {cue.end}, which is not after the end of an earlier one "
                    f"({Moment(before, cue.end.unit)}); write ends that ascend"
                )
            latest[cue.end.unit] = cue.end.value
