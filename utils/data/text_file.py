"""Text files line by line, as editors and shells write them; plain lists are plain, everything else is refused by name.

Read as a stream: a list of a million prompts is never held twice.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from utils import hub
from utils.data.records import open_regular

MAX_PROMPT = 10_000  # characters; the text encoder reads 512 tokens, so a longer line is a mistake in the file
LONGEST_LINE = 1 << 24  # characters
TEXT_COLUMNS = ("prompt", "caption", "text")  # of a table, or keys of an object
MARKS = (  # UTF-32 first: its mark begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
NOT_UTF8 = re.compile("[\udc80-\udcff]")
JSON_START = re.compile(r"\s*([\[{]\s*$|\{\s*\"|\[\s*[\"{\[])")
WEB_PAGE = re.compile(r"\s*<(!doctype html|html|\?xml)", re.IGNORECASE)


def raw_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields (number from 1, text without its end) of each line of a UTF-8 file; with its mark also UTF-16 or UTF-32.

    Lines end at \\n, \\r\\n or \\r alone. Bytes that are not UTF-8 come as lone surrogates (see `check_decoded`).
    Errors: ValueError naming a path that is no regular file, or not in the code that its mark says.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder and not a file (for images with captions use image-to-video)")
    if not Path(path).exists() and (advice := hub.advise(path)):
        raise ValueError(f"{path} is not a file; {advice}")
    with open_regular(path) as file:
        try:
            head = file.read(4)
            file.seek(0)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error
        code = next((code for mark, code in MARKS if head.startswith(mark)), "utf-8-sig")
        errors = "surrogateescape" if code == "utf-8-sig" else "strict"
        text, number = io.TextIOWrapper(file, code, errors), 0
        try:
            while line := text.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE:
                    raise ValueError(f"{path}, line {number} has {LONGEST_LINE} characters or more; it is no text")
                yield number, line.removesuffix("\n")
        except UnicodeError as error:
            raise ValueError(f"{path} is not {code.upper()}, as its first bytes say; save it as UTF-8") from error
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error


def check_decoded(text: str, where: str) -> str:
    """Returns the text of a line. Errors: ValueError starting with `where`, naming the byte that is not UTF-8."""
    if not text.isascii() and (found := NOT_UTF8.search(text)):
        byte = len(text[: found.start()].encode("utf-8", "surrogateescape")) + 1
        raise ValueError(f"{where}, byte {byte}: not UTF-8; save the file as UTF-8")
    return text


def text_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields the same as `raw_lines`. Errors: also ValueError naming file, line and byte of what is not UTF-8."""
    for number, text in raw_lines(path):
        yield number, text if text.isascii() else check_decoded(text, f"{path}, line {number}")


def plain_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields (number, checked prompt or '') of each line of a plain list.

    Errors: ValueError naming file and line of what is no prompt; also of JSON, a table's head or a web page, which
    would be taken for prompts.
    """
    first = True
    for number, text in text_lines(path):
        prompt = check_prompt(text, f"{path}, line {number}")
        if prompt and (first or prompt[0] in "[{"):
            if kind := _other_kind(text.strip(), first):
                raise ValueError(f"{path}, line {number}: {kind}")
            first = False
        yield number, prompt


def _other_kind(line: str, first: bool) -> str:
    """Returns what a line of a plain list is instead of a prompt, and what to do; "" for a prompt."""
    if JSON_START.match(line) or _is_json(line):
        return "this is JSON and no plain text; name the file .json, or .jsonl if each line is an object"
    if first and WEB_PAGE.match(line):
        return "this is a web page (HTML or XML) and no list of prompts; fetch the file itself"
    for separator, ending in (("\t", ".tsv"), (",", ".csv"), (";", ".csv")) if first else ():
        cells = line.split(separator)
        words = len(cells) > 1 and all(re.fullmatch(r"\"?\w+\"?", cell) for cell in cells)
        if words and any(cell.strip('"').lower() in TEXT_COLUMNS for cell in cells):
            return f"this is the head of a table and no prompt; name the file {ending}"
    return ""


def _is_json(line: str) -> bool:
    """True for a whole list or object."""
    try:
        return line[0] in "[{" and isinstance(json.loads(line), list | dict)
    except (ValueError, RecursionError):
        return False


def check_prompt(text: str, where: str) -> str:
    """Returns the prompt with tabs and line breaks as spaces and without trailing whitespace; '' if nothing is seen.

    Errors: ValueError starting with `where` for a prompt over MAX_PROMPT characters or with a control character
    (these are damage, e.g. a binary file, that a tokenizer would take without a word).
    """
    if len(text) > MAX_PROMPT:
        raise ValueError(f"{where}: the prompt has {len(text)} characters, allowed are {MAX_PROMPT}; shorten it")
    if text.isprintable():  # most are, and then nothing below applies
        return text.rstrip()
    text = re.sub("[\t\n\v\f\r\x85\u2028\u2029]", " ", text).rstrip()
    for column, character in enumerate(text, 1):
        if unicodedata.category(character) in ("Cc", "Cs"):
            name = f"U+{ord(character):04X}"
            hint = (
                "remove it" if ord(character) else "save the file as UTF-8 text (it is binary, or UTF-16 without mark)"
            )
            raise ValueError(f"{where}, column {column}: the prompt holds the control character {name}; {hint}")
    # Zero-width characters (category Cf) belong to some scripts and emoji, but alone they are no prompt.
    seen = any(not c.isspace() and unicodedata.category(c) != "Cf" for c in text)
    return text if seen else ""
