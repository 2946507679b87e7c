"""What encoded data were made of: settings and files. Each shard says it of itself; a later run compares.

ODE pairs, which are drawn and not read from files, have one record for the folder.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import log
from utils.atomic import write_json
from utils.claims import claimed
from utils.data.latents import read_facts, shard_path, write_shard
from utils.data.media_kinds import listed
from utils.diff import differences
from utils.json_reader import JsonError, get, parse_json, read_json, shown

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
KEY = "made_from"  # of a shard's metadata
File = dict[str, Any]  # name, bytes, mtime_ns, caption (its hash)


def file_facts(path: Path, caption: str) -> File:
    """Returns what tells a file and its caption from other ones of the same name."""
    found, digest = path.stat(), hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return {"name": path.name, "bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "caption": digest}


def remember(folder: str | Path, settings: Mapping[str, Any], name: str) -> None:
    """Writes the settings that make a folder's shards into its file `name`, or compares them with what it says.
    Settings that it did not know are added.

    Errors: ValueError naming what differs, or for shards that nothing is known of.
    """
    path = Path(folder) / name
    with claimed([path], wait=True):
        if not path.exists() and any(path.parent.glob("shard_*.safetensors")):
            raise ValueError(f"{folder} has shards and no {name} that says what made them; give another --output")
        before = read_json(path) if path.exists() else {}
        compare(path, before, settings)
        if set(settings) - set(before) or not path.exists():
            write_json(path, {**before, **settings})


def missing_shards(folder: str | Path, numbers: Sequence[int]) -> Iterator[int]:
    """Yields the numbers of the shards that are missing; while one is made no other run makes it."""
    missing, busy = [number for number in numbers if not shard_path(folder, number).exists()], 0
    for number in log.progress(missing, label="shards", unit="shard"):
        path = shard_path(folder, number)
        with claimed([path]) as mine:
            if mine and not path.exists():  # another run may have made it meanwhile
                yield number
            busy += not mine
    if busy:
        logger.warning("%d shards of %s are left to another run that is making them", busy, folder)


def made_with(path: Path) -> dict[str, Any]:
    """Returns the settings that a shard was made with; {} where it does not say. Errors: ValueError for damage."""
    facts, where = read_facts(path), f"{path}, its {KEY}"
    return get(parse_json(facts[KEY], where), "settings", dict, where) if KEY in facts else {}


def compare(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ValueError naming each setting that differs from the recorded one; new ones are not compared."""
    changes = differences(before, json.loads(json.dumps(now)))
    if other := [f"{c.path}: {c.old!r} then, {c.new!r} now" for c in changes if c.in_both]:
        raise ValueError(
            f"{path} says other settings ({'; '.join(other)[:600]}); give another --output, or the same settings"
        )


class EncodedShards:
    """The shards that a folder has, each with what made it; what is still to be made follows from them.

    settings: what decides the latents. Errors: ValueError naming a shard that was made with other settings, or that
    does not say how.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        self.folder, self.settings = Path(folder), settings
        self._files: dict[str, tuple[File, Path]] = {}  # by name, with the shard
        self._seen: set[Path] = set()
        self.refresh()

    def refresh(self) -> None:
        """Reads the heads of the shards that have come."""
        for path in sorted(self.folder.glob("shard_*.safetensors")):
            if path not in self._seen:
                self._enter(path)
                self._seen.add(path)

    def groups(self, files: Mapping[str, File], size: int) -> dict[int, list[str]]:
        """Returns the names of the files of each shard that is missing, by its number: `size` of those not encoded yet.

        files: what is there now, by name. Errors: ValueError naming encoded files that have changed or are gone.
        """
        for name, (file, path) in list(self._files.items()):
            changes = differences({"used": True, **file}, {**file, **files[name]}) if name in files else []
            same = name in files and not changes
            if file["used"] and not same:
                what = ", ".join(change.path for change in changes) or "it is gone"
                raise ValueError(
                    f"{path} was made of {name}, which is no longer the same ({what}): the folder has changed; "
                    "give another --output, or remove this shard"
                )
            if not file["used"] and (name not in files or files[name] != {k: file[k] for k in files[name]}):
                del self._files[name]  # it was left out, and is another one now
        new = [name for name in files if name not in self._files]
        free = (n for n in itertools.count() if not shard_path(self.folder, n).exists())
        return {next(free): new[i : i + size] for i in range(0, len(new), size)}

    def write(
        self,
        number: int,
        latents_NFCHW: torch.Tensor,
        prompts: list[str],
        files: Sequence[File] = (),
        used=(),
        extra: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Writes a shard and what made it. files: of its group; used: the names of those that it holds, in order.
        extra: other tensors of the clips, row by row.

        Errors: ValueError if another run has written shards of other settings, or of one of these files, meanwhile.
        """
        record = {"settings": self.settings, "files": [{**file, "used": file["name"] in used} for file in files]}
        with claimed([self.folder / KEY], wait=True):
            self.refresh()
            if twice := [name for name in used if name in self._files]:
                raise ValueError(f"{self.folder}: another run has encoded {listed(twice)} meanwhile; run again")
            write_shard(self.folder, number, latents_NFCHW, prompts, used, {KEY: json.dumps(record)}, extra)

    def _enter(self, path: Path) -> None:
        facts = read_facts(path)
        if KEY not in facts:
            raise ValueError(f"{path} does not say what made it (an earlier version wrote it); give another --output")
        where = f"{path}, its {KEY}"
        record = parse_json(facts[KEY], where)
        compare(path, get(record, "settings", dict, where), self.settings)
        for file in get(record, "files", list, where):
            if not isinstance(file, dict) or not isinstance(file.get("name"), str):
                raise JsonError(f"{where} holds {shown(file)}; make the shard again")
            self._files[file["name"]] = ({"used": True, **file}, path)
