"""What tells one file's content from another's: hashes, of large files remembered until the file changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from utils.atomic import atomic_write
from utils.json_reader import JsonError, read_json

logger = logging.getLogger(__name__)

REMEMBERED = 1 << 20  # bytes from which on a hash is remembered; below, reading is as quick
TOLD = 1 << 30  # bytes from which on reading is announced
SETTLED = 2.0  # seconds: a file that was written just now may change again within one tick of its clock


def file_hash(path: str | Path) -> str:
    """Returns the SHA-256 of a file's content, 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_hash(path: str | Path) -> str:
    """Returns `file_hash`, of a large file from the user's cache: it is read again where size, times or inode changed.

    The cache ($XDG_CACHE_HOME/longtake/hashes, one small file each) may be missing, damaged or read-only.
    """
    path = Path(path)
    before = _stamp(path)
    if before["size"] < REMEMBERED:
        return file_hash(path)
    entry = _entry(path)
    if known := _recall(entry, before):
        return known
    if before["size"] >= TOLD:
        logger.info("reading %s (%.1f GB) once, to know it again", path, before["size"] / 1e9)
    content = file_hash(path)
    if entry and _stamp(path) == before and time.time_ns() - before["ctime_ns"] > SETTLED * 1e9:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time alone
            atomic_write(entry, json.dumps(before | {"sha256": content}).encode())
    return content


def content_hash(paths: Mapping[str, str | Path]) -> str:
    """Returns one SHA-256 of files and whole folders, by their names and contents. paths: name -> file or folder.

    Where they lie does not count. Errors: OSError for one that is missing.
    """
    digest = hashlib.sha256()
    for name, path in sorted(paths.items()):
        for inner, file in sorted(files_of(Path(path))):
            digest.update(json.dumps([name, inner, known_hash(file)]).encode())
    return digest.hexdigest()


def files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """Yields (name within the folder, path) of each ordinary file below a folder; ("", path) for a file.

    Follows links; a folder that holds itself is entered once.
    """
    if not path.is_dir():
        yield "", path
        return
    entered: set[str] = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        if (real := os.path.realpath(folder)) in entered:
            folders.clear()
            continue
        entered.add(real)
        for file in [Path(folder, name) for name in names]:
            if file.is_file():
                yield file.relative_to(path).as_posix(), file


def _stamp(path: Path) -> dict[str, int]:
    """Returns what changes with a file; other than its mtime, its ctime cannot be set back."""
    found = path.stat()
    names = {"size": "st_size", "mtime_ns": "st_mtime_ns", "ctime_ns": "st_ctime_ns", "inode": "st_ino"}
    return {name: getattr(found, field) for name, field in names.items()} | {"device": found.st_dev}


def _entry(path: Path) -> Path | None:
    """Returns where the file's hash is remembered, or None for a user without a home."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(folder) if os.path.isabs(folder) else Path.home() / ".cache"
    except RuntimeError:
        return None
    name = hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return root / "longtake" / "hashes" / f"{name}.json"


def _recall(entry: Path | None, stamp: dict[str, int]) -> str | None:
    """Returns the hash that is remembered of a file with this stamp, or None."""
    try:
        found = read_json(entry) if entry else {}
    except JsonError:
        return None
    if any(found.get(name) != value for name, value in stamp.items()):
        return None
    content = found.get("sha256")
    return content if isinstance(content, str) and re.fullmatch(r"[0-9a-f]{64}", content) else None
