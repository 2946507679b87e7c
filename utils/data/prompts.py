"""Prompt files: one prompt per line, or a folder of files with captions; start files; safe names made from prompts."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from utils.data.media_kinds import KINDS, listed, scan
from utils.data.prompt_table import is_table, table_prompts
from utils.data.text_file import check_prompt, plain_lines, text_lines
from utils.json_reader import read_json

MOST_CUT, LOST_WORDS, ENOUGH_CUT = 10, 8, 1000  # long prompts named, words of each shown, long prompts looked for
MAX_NAME = 100  # characters of a file name that come from the prompt
CROP_INFO = "target_crop_info_*.json"
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10))}
UNSAFE = re.compile(r"[^A-Za-z0-9 _.,'()&+=@!-]+")
GOOD = re.compile(r"[A-Za-z0-9_,'()&+=@!][A-Za-z0-9 _.,'()&+=@!-]*")  # a name that stays as it is
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One request. `text` names the file, `prompt` conditions the video."""

    text: str
    line: int  # 1-based place in the file (blank lines count) or in the sorted folder
    extended: str | None = None  # the rewritten prompt of the same line
    image: Path | None = None  # the first frame
    video: Path | None = None  # whose end is the video's start
    target_crop: dict | None = None  # as target_crop_info has it; its images are cropped already

    @property
    def index(self) -> int:
        """The 0-based place: the key of this request's noise and the number in its file name."""
        return self.line - 1

    @property
    def prompt(self) -> str:
        """What the text encoder is given."""
        return self.text if self.extended is None else self.extended


def read_prompts(path: str | Path, extended_path: str | Path | None = None) -> list[PromptLine]:
    """Reads a text file with one prompt per line, and its line-aligned extended prompts.

    A blank line is skipped but keeps its number, so that blanking one prompt renames and re-seeds no other. A file
    named .json, .jsonl, .csv, .tsv or .yaml is read as that: its rows are the lines (`utils/data/prompt_table.py`).
    Errors: ValueError naming file and line for an empty file, a line that is too long, not UTF-8 or holds control
    characters, something else than plain text, and for an extended file with another number of lines or other blank
    lines.
    """
    if extended_path is None:
        if lines := [PromptLine(text, number) for number, text in _numbered(path) if text]:
            return lines
        raise ValueError(f"{path} holds no prompt; write one prompt per line")
    texts, extended = _texts(path), _texts(extended_path)
    if not any(texts):
        raise ValueError(f"{path} holds no prompt; write one prompt per line")
    if len(extended) != len(texts):
        raise ValueError(
            f"{path} has {len(texts)} lines but {extended_path} has {len(extended)}; "
            "the extended prompts need one line for each prompt, in the same order"
        )
    for n, (text, longer) in enumerate(zip(texts, extended, strict=True), 1):
        if bool(text) != bool(longer):
            blank, other = (path, extended_path) if longer else (extended_path, path)
            raise ValueError(f"line {n} is blank in {blank} but not in {other}; the two files must match line by line")
    return [PromptLine(text, n, extended[n - 1]) for n, text in enumerate(texts, 1) if text]


def _numbered(path: str | Path) -> Iterator[tuple[int, str]]:
    return table_prompts(path) if is_table(path) else plain_lines(path)


def _texts(path: str | Path) -> list[str]:
    """Returns all prompts, blank ones as ''; blank lines at the end of the file are dropped."""
    texts = [text for _, text in _numbered(path)]
    while texts and not texts[-1]:
        texts.pop()
    return texts


def read_image_prompts(folder: str | Path) -> list[PromptLine]:
    """Reads a folder of start images with captions, in order of file name.

    Either `<stem>.png` (jpg, jpeg, webp) next to `<stem>.txt`, or the ancestors' layout: one
    `target_crop_info_<ratio>.json` (a list of file_name, caption, target_crop) with the images in `<ratio>/`, in the
    order of the list. Errors: ValueError naming the file that is missing, doubled or empty.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; image-to-video needs a folder of images with captions")
    infos = sorted(folder.glob(CROP_INFO))
    if len(infos) > 1:
        raise ValueError(f"{folder} holds {len(infos)} files {CROP_INFO}; keep one: {[i.name for i in infos]}")
    return _read_crop_info(infos[0]) if infos else read_captioned(folder, "image")


def read_captioned(folder: str | Path, kind: str) -> list[PromptLine]:
    """Reads a folder of `kind` ("image" or "video") files, each with its caption `<stem>.txt`, in order of file name.

    Errors: ValueError naming the file that is missing, doubled or empty.
    """
    folder = Path(folder)
    files, captions = list_files(folder, kind), scan(folder).captions
    stems = [file.stem for file in files]
    if doubled := sorted({s for s in stems if stems.count(s) > 1}):
        raise ValueError(f"{folder} holds two {kind}s with the name {doubled[0]!r}; one caption cannot serve both")
    if missing := [s for s in stems if s not in captions]:
        raise ValueError(
            f"{folder} has no caption {missing[0]}.txt for its {kind} ({len(missing)} captions are missing)"
        )
    if lonely := sorted(set(captions) - set(stems)):
        raise ValueError(f"{folder} has no {kind} for the caption {lonely[0]}.txt ({len(lonely)} {kind}s are missing)")
    rows = []
    for n, file in enumerate(files, 1):
        text = " ".join(t for _, t in text_lines(captions[file.stem]))
        text = check_prompt(" ".join(text.split()), str(captions[file.stem]))
        if not text:
            raise ValueError(f"{captions[file.stem]} is empty; write the caption of {file.name} in it")
        rows.append(PromptLine(text, n, **{kind: file}))
    return rows


def list_files(folder: Path, kind: str) -> list[Path]:
    """Returns the files of a kind in a folder, by name; what else lies there is logged.

    Errors: ValueError if there is none.
    """
    media = scan(folder)
    left = [*(f.name for other in KINDS if other != kind for f in media.of(other)), *media.others, *media.folders]
    if not (found := media.of(kind)):
        first, second = KINDS[kind][:2]
        holds = f" (it holds {listed(left)})" if left else ""
        raise ValueError(f"{folder} holds no {kind}{holds}; put <name>{first} or <name>{second} next to <name>.txt")
    if left:
        logger.warning("%s: %d things are no %ss and are not read: %s", folder, len(left), kind, listed(left))
    return found


def warn_cut(places: Iterable[tuple[str, str]], find_cut: Callable[[str], tuple[int, str] | None], limit: int = 0):
    """Warns of each prompt that the text encoder does not read to its end.

    places: (file and line, prompt). find_cut(prompt) -> (its tokens, the text that is not read) or None. limit: tokens
    that are read, if known.
    """
    count = 0
    for where, prompt in places:
        if (cut := find_cut(prompt)) is None:
            continue
        count += 1
        if count <= MOST_CUT:
            words = " ".join(cut[1].split()[:LOST_WORDS])
            reads = f" and the text encoder reads {limit}" if limit else ", more than the text encoder reads"
            logger.warning("%s: the prompt has %d tokens%s; what is not read begins: %r", where, cut[0], reads, words)
        if count == ENOUGH_CUT:
            break  # of a million, each takes its time to be cut into tokens
    if count > MOST_CUT:
        more = "or more " if count == ENOUGH_CUT else ""
        logger.warning("%d %sother prompts are longer than the text encoder reads", count - MOST_CUT, more)


def with_start(lines: Sequence[PromptLine], path: str | Path, kind: str) -> list[PromptLine]:
    """Returns the lines, each with the start file of `kind` ("image" or "video") that belongs to it.

    path: one file, which serves all, or a folder: its files in order of name belong to the prompts' lines 1, 2, ...;
    blank lines count. Errors: ValueError for another number of files, or a path that is neither.
    """
    path = Path(path)
    if path.is_dir():
        files, last = list_files(path, kind), lines[-1].line
        if len(files) != last:
            raise ValueError(
                f"{path} holds {len(files)} {kind}s and the prompts have {last} lines; "
                "give one file for each line (in order of name), or a single file for all"
            )
        return [replace(line, **{kind: files[line.index]}) for line in lines]
    if not path.is_file():
        raise ValueError(f"there is no {kind} {path}; give a file, or a folder with one for each line of the prompts")
    return [replace(line, **{kind: path}) for line in lines]


def _read_crop_info(path: Path) -> list[PromptLine]:
    rows = read_json(path, list)
    folder = path.parent / path.stem.removeprefix("target_crop_info_")
    if not rows:
        raise ValueError(f"{path} must hold a list of entries with file_name, caption and target_crop")
    lines = []
    for n, row in enumerate(rows, 1):
        where = f"{path}, entry {n}"
        for field in ("file_name", "caption"):
            text = row.get(field) if isinstance(row, dict) else None
            if not isinstance(text, str) or not check_prompt(text, where):
                raise ValueError(f"{where}: {field!r} is missing or no text")
        name = row["file_name"]
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"{where}: there is no image {name!r} in {folder}")
        caption = check_prompt(row["caption"], where)
        lines.append(PromptLine(caption, n, image=folder / name, target_crop=row.get("target_crop")))
    return lines


def safe_name(prompt: str, extra: str = "") -> str:
    """Returns a file name part of at most MAX_NAME ASCII characters made from a prompt, followed by `extra`.

    A prompt that already is a good name is kept as it is, spaces too (evaluation tools look videos up by it). Any
    other one is reduced and gets `~` and a hash of the prompt, so two prompts share a name only if they are equal
    (on file systems that ignore case: or differ in case).
    """
    room = MAX_NAME - len(extra)
    if len(prompt) <= room and GOOD.fullmatch(prompt) and ".." not in prompt:  # most are: the rest takes its time
        if prompt.split(".")[0].strip().upper() not in RESERVED and not prompt.strip().isdigit():
            return prompt + extra
    name = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode()
    name = re.sub(r"\.{2,}", ".", UNSAFE.sub("_", name)).lstrip(" .-")
    name = f"_{name}" if name.split(".")[0].strip().upper() in RESERVED or not name else name
    # A bare number would read like the names that start with an index.
    if name == prompt and len(name) <= room and not name.strip().isdigit():
        return name + extra
    digest = blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return name[: room - len(digest) - 1].rstrip(" .") + f"~{digest}{extra}"


def file_stem(index: int, sample: int, prompt: str, suffix="", with_index=False, repeated=False) -> str:
    """Returns the file name, without extension, of sample `sample` of the prompt with the 0-based `index`.

    with_index: `<index>-<sample>_<suffix>`, else `<safe prompt>-<sample>_<suffix>`; `repeated` (see there) adds the
    index to the prompt. An empty suffix drops its `_`.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]*", suffix) is None:
        raise ValueError(f"the file name suffix {suffix!r} may hold only letters, digits, '_' and '-'")
    if index < 0 or sample < 0:
        raise ValueError(f"index {index} and sample {sample} of a file name must not be negative")
    name = str(index) if with_index else safe_name(prompt, f"~{index}" if repeated else "")
    return f"{name}-{sample}" + (f"_{suffix}" if suffix else "")


def repeated(lines: Sequence[PromptLine]) -> set[int]:
    """Returns the `index` of each line whose name an earlier line has already (letter case ignored).

    The first of several keeps the plain name, so a prompt added at the end of a file renames no finished video.
    """
    seen, found = set(), set()
    for line in lines:
        name = safe_name(line.text).casefold()
        if name in seen:
            found.add(line.index)
        seen.add(name)
    return found
