"""Resumes a batch of videos whose run was interrupted, from the snapshot next to them.

`<first name>.partial.safetensors` holds the state of the rollout and of the decoder, and the length of each file so
far, all at the same border between two chunks. Noise and prompts are functions of the frame, so nothing else is needed
to generate the same video. A snapshot is used only where its facts (`provenance.resume_facts`) equal the request's.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.batch.plan import VideoPlan
from pipeline.batch.request import Request
from pipeline.batch.writer import VideoBatchWriter, finished, video_path
from pipeline.state import RolloutState, check_tensors, check_version, checksums, pack, unpack
from pipeline.track import Fixed, Track
from utils.diff import describe
from utils.json_reader import parse_json
from wan.checkpoint.tensor_file import metadata, read, write_safetensors
from wan.condition import Condition

logger = logging.getLogger(__name__)
SUFFIX = ".partial.safetensors"


class ResumeState:
    """Holds the snapshot of one batch of videos."""

    def __init__(self, group: Sequence[Request], folder: str | Path, facts: dict):
        """facts: what determines the videos, from `provenance.resume_facts`."""
        self.group, self.folder, self.path = list(group), folder, snapshot_path(group, folder)
        self.facts = facts

    def find(self) -> dict | None:
        """Returns the snapshot, or None (and logs why).

        Errors: ValueError for one of other videos: it may hold hours of work and is never overwritten silently.
        """
        if not self.path.is_file():
            logger.info("%s: no snapshot to go on from; the video starts anew", video_path(self.group[0], self.folder))
            return None
        try:
            book = self._read_book()
            tensors = read(self.path)
            check_tensors(tensors, book.pop("tensors"))
            return {"tensors": tensors, "book": book}
        except _Foreign:
            raise
        except (ValueError, OSError) as error:
            logger.warning("%s cannot be used (%s); the video starts anew", self.path, error)
            return None

    def _read_book(self) -> dict:
        """Returns the snapshot's record, without what is compared here.

        Errors: ValueError for a damaged one, `_Foreign` for one of another video or version.
        """
        notes = metadata(self.path)
        text = notes.get("book", "")
        if "checksum" in notes and _checksum(text) != notes["checksum"]:
            raise ValueError("its record has changed since it was written")
        book = parse_json(text, "its record")
        try:
            check_version(book)
        except ValueError as error:
            raise _Foreign(f"{self.path}: {error}, without --resume") from error
        if "checksum" not in notes:
            raise ValueError("its record has no checksum")
        if names := describe(book.pop("facts"), self.facts):
            advice = "Ask for that one, or leave out --resume to begin anew"
            raise _Foreign(f"{self.path} belongs to another video: {names}. {advice}")
        return book

    def write(self, state: RolloutState, videos: VideoBatchWriter, extra: dict) -> None:
        """Replaces the snapshot by one of the present state. extra: JSON values that `resume` returns again."""
        files = videos.state()  # the files are synced before the snapshot names their lengths
        snapshot = pack(state, videos.decoder.state, videos.next_frame, "cpu")
        book = snapshot["book"] | {"facts": self.facts, "films": files, "extra": extra}
        text = json.dumps(book | {"tensors": checksums(snapshot["tensors"])})
        write_safetensors(self.path, snapshot["tensors"], {"book": text, "checksum": _checksum(text)})

    def resume(
        self, videos: VideoBatchWriter, plan: VideoPlan, track: Condition | Track
    ) -> tuple[RolloutState, dict] | None:
        """Returns (the rollout's state, the snapshot's `extra`), or None if no snapshot can be used.

        Brings the writer and the track to the same frame.
        Errors: ValueError for a snapshot of other videos, or files that do not match it.
        """
        snapshot = self.find()
        if snapshot is None:
            return None
        book, track, condition = snapshot["book"], track if isinstance(track, Track) else Fixed(track), None
        try:
            videos.resume(book["films"], book["next_frame"])
            for span in [span for span in plan.spans if span.stop <= book["next_frame"]]:
                condition = track.at(span)  # a schedule advances one chunk at a time
            state, stream = unpack(snapshot, plan.pipeline.rollout, condition, "cpu")  # the decoder moves it
            seconds, extra = book["films"]["frames"] / videos.fps, dict(book["extra"])
        except (ValueError, AttributeError, LookupError, TypeError) as error:
            reason = error if type(error) is ValueError else f"its record is wrong ({type(error).__name__}: {error})"
            raise ValueError(
                f"{self.path} cannot be gone on with: {reason}. Leave out --resume to begin anew"
            ) from error
        videos.decoder.state = stream
        logger.info("%s goes on at %.1f s", video_path(self.group[0], self.folder), seconds)
        return state, extra

    def remove(self) -> None:
        """Removes the snapshot: the videos are finished, or generated from the start."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> ResumeState:
        for half in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.tmp"):
            half.unlink()  # of a run that was killed while it wrote its snapshot
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None and self.path.is_file():
            name = video_path(self.group[0], self.folder).with_suffix(".partial.mp4")
            logger.warning("%s is kept: run again with --resume to go on from its last snapshot", name)


class _Foreign(ValueError):
    """Raised for a snapshot of other videos, or of another version."""


def _checksum(text: str) -> str:
    """Returns what tells a record from a changed one."""
    return hashlib.sha256(text.encode()).hexdigest()


def snapshot_path(group: Sequence[Request], folder: str | Path) -> Path:
    """Returns the path of a batch's snapshot."""
    return Path(folder) / f"{group[0].stem}{SUFFIX}"


def to_make(group: Sequence[Request], output) -> list[bool]:
    """Returns which videos of a batch are to be generated: all with overwrite, else those that are not finished.

    With resume also those that an interrupted run was overwriting, although the old ones are still there.
    """
    anew = output.resume and snapshot_path(group, output.folder).is_file()
    halves = [video_path(request, output.folder).with_suffix(".partial.mp4") for request in group]
    unfinished = [not finished(request, output.folder) for request in group]
    return [output.overwrite or new or (anew and half.exists()) for new, half in zip(unfinished, halves, strict=True)]


def remove_stale(group: Sequence[Request], folder: str | Path) -> None:
    """Removes the snapshot of finished videos: their run was killed just before it could."""
    halves = [video_path(request, folder).with_suffix(".partial.mp4") for request in group]
    if all(finished(request, folder) for request in group) and not any(half.exists() for half in halves):
        snapshot_path(group, folder).unlink(missing_ok=True)
