"""What encoded data were made of: the settings and the files, in a JSON next to the shards; a later run compares them.

A group is what one shard is made of. Groups keep their number; new files get groups of their own behind the others.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import log
from utils.atomic import write_json
from utils.claims import claimed
from utils.data.latents import read_facts, shard_path
from utils.data.media_kinds import listed
from utils.diff import differences
from utils.json_reader import JsonError, get, parse_json, read_json

logger = logging.getLogger(__name__)
NAME = "made_from.json"
File = dict[str, Any]  # name, bytes, mtime_ns, caption (its hash)


def file_facts(path: Path, caption: str) -> File:
    """Returns what tells a file and its caption from other ones of the same name."""
    found, digest = path.stat(), hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return {"name": path.name, "bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "caption": digest}


def remember(folder: str | Path, settings: Mapping[str, Any], name: str = NAME) -> None:
    """Writes the settings that make a folder's shards, or compares them with those it was begun with.
    Settings that it did not know are added.

    Errors: ValueError naming what differs, or for shards that nothing is known of.
    """
    path = Path(folder) / name
    with claimed([path], wait=True):
        if not path.exists():
            check_unknown(path)
        before = read_json(path) if path.exists() else {}
        compare(path, before, settings)
        if set(settings) - set(before) or not path.exists():
            write_json(path, {**before, **settings})


def plan_groups(
    folder: str | Path, settings: Mapping[str, Any], files: Mapping[str, File], size: int
) -> list[list[str]]:
    """Returns the names of the files of each shard. files: what is there now, by name; size: files of a new group.

    Errors: ValueError naming the settings or the encoded files that differ from those the folder was begun with.
    """
    path = Path(folder) / NAME
    with claimed([path], wait=True):  # other ranks and other runs see the same groups
        before = _read(path) if path.exists() else {"settings": settings, "groups": []}
        if not path.exists():
            check_unknown(path)
        compare(path, before["settings"], settings)
        groups = [_still(path, number, group, files) for number, group in enumerate(before["groups"])]
        known = {file["name"] for group in groups for file in group}
        new = [file for name, file in files.items() if name not in known]
        groups += [new[i : i + size] for i in range(0, len(new), size)]
        if groups != before["groups"] or not path.exists():
            write_json(path, {"settings": settings, "groups": groups})
    return [[file["name"] for file in group] for group in groups]


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


def check_unknown(path: Path) -> None:
    """Raises ValueError if there are shards next to a missing record."""
    if any(path.parent.glob("shard_*.safetensors")):
        raise ValueError(
            f"{path.parent} holds shards and no {path.name} that says what made them; give another --output"
        )


def compare(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ValueError naming each setting that differs from the recorded one; new ones are not compared."""
    changes = differences(before, json.loads(json.dumps(now)))
    if other := [f"{c.path}: {c.old!r} then, {c.new!r} now" for c in changes if c.in_both]:
        raise ValueError(
            f"{path.parent} was made with other settings ({'; '.join(other)[:600]}); give another --output, "
            f"or the settings that {path} holds"
        )


def _read(path: Path) -> dict[str, Any]:
    """Returns the record of a folder. Errors: JsonError naming a damaged one."""
    tree = read_json(path)
    get(tree, "settings", dict, str(path))
    for group in get(tree, "groups", list, str(path)):
        if not isinstance(group, list) or not all(
            isinstance(f, dict) and isinstance(f.get("name"), str) for f in group
        ):
            raise JsonError(f"{path}: groups must be lists of files with their names; give another --output")
    return tree


def _still(path: Path, number: int, group: list[File], files: Mapping[str, File]) -> list[File]:
    """Returns a group as it is now. What is not encoded yet, or was left out, may have changed or gone."""
    shard = shard_path(path.parent, number)
    if not shard.exists():
        return [files[file["name"]] for file in group if file["name"] in files]
    made = set(parse_json(read_facts(shard).get("files", "[]"), f"{shard}, its files", list))
    kept = [file for file in group if file["name"] in made or files.get(file["name"]) == file]
    gone = [file["name"] for file in kept if file["name"] not in files]
    changed = [
        f"{file['name']} ({', '.join(c.path for c in differences(file, files[file['name']]))})"
        for file in kept
        if file["name"] in files and files[file["name"]] != file
    ]
    if gone or changed:
        what = [f"{listed(names)} {verb}" for names, verb in ((gone, "gone"), (changed, "changed")) if names]
        raise ValueError(
            f"{shard} was made of files that are no longer the same: {'; '.join(what)}; the folder has changed: "
            "give another --output, or remove this shard"
        )
    return kept
