"""Prompt files: one prompt per line, or a folder of files with captions; start files; safe names made from prompts."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from utils import hub

MAX_PROMPT = 10_000  # characters; the text encoder reads 512 tokens, so a longer line is a mistake in the file
MAX_NAME = 100  # characters of a file name that come from the prompt
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif")
KINDS = {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES}  # of start files
CROP_INFO = "target_crop_info_*.json"
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10))}
UNSAFE = re.compile(r"[^A-Za-z0-9 _.,'()&+=@!-]+")


@dataclass(frozen=True)
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
    """Reads a UTF-8 text file with one prompt per line, and its line-aligned extended prompts.

    A blank line is skipped but keeps its number, so that blanking one prompt renames and re-seeds no other.
    Errors: ValueError naming file and line for an empty file, a line that is too long, not UTF-8 or holds control
    characters, and for an extended file with another number of lines or other blank lines.
    """
    path = Path(path)
    texts = _read_lines(path)
    if not any(texts):
        raise ValueError(f"{path} holds no prompt; write one prompt per line")
    if extended_path is None:
        return [PromptLine(text, n) for n, text in enumerate(texts, 1) if text]
    extended = _read_lines(Path(extended_path))
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


def check_prompt(text: str, where: str) -> str:
    """Returns the prompt with tabs and line breaks as spaces and without trailing whitespace; '' if nothing is seen.

    Errors: ValueError starting with `where` for a prompt over MAX_PROMPT characters or with a control character
    (these are damage, e.g. a binary file, that a tokenizer would take without a word).
    """
    if len(text) > MAX_PROMPT:
        raise ValueError(f"{where}: the prompt has {len(text)} characters, allowed are {MAX_PROMPT}; shorten it")
    text = re.sub("[\t\n\v\f\r\x85\u2028\u2029]", " ", text).rstrip()
    for column, character in enumerate(text, 1):
        if unicodedata.category(character) in ("Cc", "Cs"):
            name = f"U+{ord(character):04X}"
            raise ValueError(f"{where}, column {column}: the prompt holds the control character {name}; remove it")
    # Zero-width characters (category Cf) belong to some scripts and emoji, but alone they are no prompt.
    seen = any(not c.isspace() and unicodedata.category(c) != "Cf" for c in text)
    return text if seen else ""


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
    files = list_files(folder, kind)
    captions = {f.stem: f for f in folder.iterdir() if f.suffix.lower() == ".txt" and not f.name.startswith(".")}
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
        text = " ".join(t for t in _read_lines(captions[file.stem]) if t)
        if not text:
            raise ValueError(f"{captions[file.stem]} is empty; write the caption of {file.name} in it")
        rows.append(PromptLine(text, n, **{kind: file}))
    return rows


def list_files(folder: Path, kind: str) -> list[Path]:
    """Returns the files of a kind in a folder, by name. Errors: ValueError if there is none."""
    files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    found = [f for f in files if f.suffix.lower() in KINDS[kind]]
    if not found:
        first, second = KINDS[kind][:2]
        raise ValueError(f"{folder} holds no {kind}; put <name>{first} or <name>{second} next to <name>.txt")
    return found


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
    try:
        rows = json.loads(_read_bytes(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    folder = path.parent / path.stem.removeprefix("target_crop_info_")
    if not isinstance(rows, list) or not rows:
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


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        hint = " (a folder of images needs image-to-video)" if path.is_dir() else ""
        advice = None if path.exists() else hub.advise(path)
        raise ValueError(f"{path} is not a file{hint}; {advice or 'give a text file with one prompt per line'}")
    return path.read_bytes()


def read_raw_lines(path: str | Path) -> list[bytes]:
    """Returns the lines of a text file as they are, without their ends; `decode_line` makes text of them.

    Errors: ValueError for a path that is not a file.
    """
    # Bytes: str.splitlines also breaks at form feeds and U+2028, and a bad byte must be reported by its line.
    content = _read_bytes(Path(path)).removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return content.split(b"\n")


def decode_line(raw: bytes, where: str) -> str:
    """Returns the text of a line. Errors: ValueError starting with `where`, naming the byte that is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}, byte {error.start + 1}: not UTF-8; save the file as UTF-8") from error


def _read_lines(path: Path) -> list[str]:
    """Returns the checked lines, blank ones as ''; blank lines at the end of the file are dropped."""
    places = [(raw, f"{path}, line {n}") for n, raw in enumerate(read_raw_lines(path), 1)]
    lines = [check_prompt(decode_line(raw, where), where) for raw, where in places]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def safe_name(prompt: str, extra: str = "") -> str:
    """Returns a file name part of at most MAX_NAME ASCII characters made from a prompt, followed by `extra`.

    A prompt that already is a good name is kept as it is, spaces too (evaluation tools look videos up by it). Any
    other one is reduced and gets `~` and a hash of the prompt, so two prompts share a name only if they are equal
    (on file systems that ignore case: or differ in case).
    """
    name = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode()
    name = re.sub(r"\.{2,}", ".", UNSAFE.sub("_", name)).lstrip(" .-")
    name = f"_{name}" if name.split(".")[0].strip().upper() in RESERVED or not name else name
    room = MAX_NAME - len(extra)
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
