"""What of a run's videos is in its folder already, found out before a model is loaded.

The folder is listed once. Of a long list whose videos are nearly all there, the missing ones are made first and the
others are checked afterwards: reading a million files takes minutes, listing them takes seconds.
"""

from __future__ import annotations

import logging
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.batch.listing import Batches
from pipeline.batch.provenance import sidecar_changes
from pipeline.batch.request import Request
from pipeline.batch.resume import SUFFIX, remove_stale, snapshot_path, to_make
from pipeline.batch.writer import sidecar, video_path, why_unfinished
from pipeline.config import InferConfig
from utils.claims import claimed

logger = logging.getLogger(__name__)
LOOKED_AT = 5000  # videos that are checked before the first one is made
LOCK = ".mp4.lock"  # how the names end that `utils.claims.lock_path` gives to videos
MOST_KEPT = 20  # videos made with other settings that are named


@dataclass
class Survey:
    """What was found. `wanted`: a video is to be made; `late`: some are checked when their turn comes."""

    wanted: bool = False
    late: bool = False
    absent: array = field(default_factory=lambda: array("Q"))  # numbers of batches that are not all there
    there: array = field(default_factory=lambda: array("Q"))  # of those that are, by their names

    def is_late(self, number: int) -> bool:
        """True for a batch that is checked when its turn comes."""
        place = bisect_left(self.there, number)
        return self.late and place < len(self.there) and self.there[place] == number

    def order(self, groups: Batches) -> Batches:
        """Returns the batches in the order in which they are made: as they are, or the missing ones first."""
        if not self.late:
            return groups
        usable = set(groups.numbers)
        return groups.choose(number for part in (self.absent, self.there) for number in part if number in usable)


def survey(config: InferConfig, own: Batches) -> Survey:
    """Puts the folder in order, reports what is finished, and says what is to be made."""
    folder, found, kept = config.output.folder, Survey(), Kept(config)
    names = set(os.listdir(folder)) if Path(folder).is_dir() else set()
    remove_leftovers(own, folder, names)
    partly = array("Q")
    if not any(name.endswith((".mp4", ".json")) for name in names):
        found.absent, found.wanted = array("Q", own.numbers), len(own) > 0
        return found
    for batch in own:
        files = [f"{request.stem}{ending}" for request in batch for ending in (".mp4", ".json")]
        number = sum(file in names for file in files)
        resumes = config.output.resume and snapshot_path(batch, folder).name in names
        if number == len(files) and not resumes:
            found.there.append(batch.number)
            continue
        found.absent.append(batch.number)
        if number:
            partly.append(batch.number)
        else:
            found.wanted = True
    present = own.choose(found.there).num_videos
    found.late = present > LOOKED_AT and len(found.absent) > 0 and not config.output.overwrite
    found.wanted |= found.late or (config.output.overwrite and len(own) > 0)
    looked = sorted(partly) if found.late else sorted([*partly, *found.there])
    for batch in own.choose(looked):
        found.wanted |= any(report(batch, config, kept))
    kept.tell(own.num_videos)
    if found.late:
        logger.info(
            "%d videos have files in %s; these are checked when the others are made (%d)",
            *(present, folder, own.num_videos - present),
        )
    return found


class Kept:
    """Counts finished videos that are kept, and warns of those that were made with other settings."""

    def __init__(self, config: InferConfig):
        self.config, self.count, self.changed = config, 0, 0

    def add(self, request: Request) -> None:
        """Notes a finished video."""
        folder, self.count = self.config.output.folder, self.count + 1
        if other := sidecar_changes(sidecar(request, folder), request, self.config):
            self.changed += 1
            if self.changed <= MOST_KEPT:
                name = video_path(request, folder)
                logger.warning("%s is kept though it was made with %s; --overwrite makes it anew", name, other)

    def tell(self, total: int) -> None:
        """Reports how many of `total` videos are finished."""
        if self.changed > MOST_KEPT:
            logger.warning(
                "%d other videos are kept though they were made with other settings", self.changed - MOST_KEPT
            )
        if self.count:
            logger.info("%d of %d videos are finished and are skipped", self.count, total)


def report(batch: Sequence[Request], config: InferConfig, kept: Kept) -> list[bool]:
    """Says what is wrong with videos that are there and notes those that are kept; returns which are to be made."""
    wanted, folder = to_make(batch, config.output), config.output.folder
    for request, new in zip(batch, wanted, strict=True):
        if not new:
            kept.add(request)
        elif reason := why_unfinished(request, folder):
            logger.warning("%s is made anew: %s", video_path(request, folder), reason)
    return wanted


def remove_leftovers(groups: Iterable[Sequence[Request]], folder: str | Path, names: set[str] | None = None) -> None:
    """Removes what kills left of finished videos; not of those that another run is making. names: in the folder."""
    if names is None:
        names = set(os.listdir(folder)) if Path(folder).is_dir() else set()
    left = {name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)}
    left |= {name[1:].removesuffix(LOCK) for name in names if name.startswith(".") and name.endswith(LOCK)}
    for group in groups if left else ():
        if left.isdisjoint([request.stem for request in group]):
            continue
        paths = [video_path(r, folder) for r in group]
        with claimed(paths) as mine:
            if mine:
                remove_stale(group, folder)
