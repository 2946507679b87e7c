"""Files that are whole or absent: temporary name, fsync, rename; and JSON of what a run wants to record."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import BinaryIO


def atomic_write(path: str | Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Writes a whole file or none: temporary name beside it, flush, fsync, rename, fsync of the folder.

    content: the bytes, or a function that writes into the binary file it is given.
    Errors: OSError naming the final path (e.g. a full disk); the temporary file is removed on any error.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # ranks may write one name at once
    try:
        with explain_full_disk(path), open(partial, "wb") as file:
            file.write(content) if isinstance(content, bytes) else content(file)
            sync_file(file)
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: str | Path, value) -> None:
    """Writes JSON atomically. Dataclasses, paths, arrays and tensors become plain; NaN and infinities become null."""
    atomic_write(path, (json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _plain(value):
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy and torch, scalars too
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def explain_full_disk(path: Path):
    """A context. Turns a full disk, quota or size limit into an OSError that names the file and says what is safe."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        reason = (
            f"{os.strerror(error.errno)} while writing; nothing half has this name, finished files are kept; free space"
        )
        raise OSError(error.errno, reason, str(path)) from error


def sync_file(file: BinaryIO) -> None:
    """Brings what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Brings a rename to the disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
