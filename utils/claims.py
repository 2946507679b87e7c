"""Claims on files that are being made: processes that share a folder, or a list, leave each other's work alone."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)  # of a file system without locks


def lock_path(path: str | Path) -> Path:
    """Returns the lock file of a file: hidden, in its folder, so that every name of the folder leads to it."""
    path = Path(path)
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def claimed(paths: Sequence[str | Path], wait: bool = False) -> Iterator[bool]:
    """A context in which no other process makes these files: yields True, or False if another one has any of them.

    A claim is a lock (flock) on an empty file next to the claimed one. It ends with its process, however that ends;
    a lock file that a kill left behind is taken over and removed. Inside, look again whether the file is still to be
    made: another process may have finished it just before. wait: until the others are done, instead of yielding False.
    Errors: OSError if a folder does not let a lock file be made.
    """
    locks, held = list(dict.fromkeys(map(lock_path, paths))), {}
    try:
        for lock in locks:
            if (handle := _take(lock, wait)) is None:
                break
            held[lock] = handle
        yield len(held) == len(locks)
    finally:
        for lock, handle in held.items():
            with contextlib.suppress(OSError):  # a folder that has become read-only; the next claim takes it over
                os.unlink(lock)  # before the lock ends: whoever waits for it sees that it is not there any more
            os.close(handle)


def lock_file(handle: int, name: Path, wait: bool = False) -> bool:
    """Locks an open file or folder until it is closed; returns False if another process has it.

    On a file system without locks it warns and returns True.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        logger.warning("%s cannot be locked (%s): start nothing else that writes there", name, error.strerror)
    return True


def _take(lock: Path, wait: bool) -> int | None:
    """Returns the open, locked file, or None if another process has it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = _open(lock)
        try:
            if not lock_file(handle, lock, wait):
                os.close(handle)
                return None
            if _is_still(lock, handle):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its owner removed it between the two lines; the next one is another file


def _open(lock: Path) -> int:
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(lock, flags | os.O_RDWR, 0o666)
    except PermissionError as error:  # a colleague's, left by a kill; or a folder that lets nothing be made
        try:
            return os.open(lock, flags & ~os.O_CREAT)
        except FileNotFoundError:
            raise error from None


def _is_still(lock: Path, handle: int) -> bool:
    """True if the path still names the open file."""
    try:
        return os.path.samestat(os.lstat(lock), os.fstat(handle))
    except FileNotFoundError:
        return False
