"""Saves and resumes a run: a folder per step, complete or absent, readable by any number of ranks.

`<run>/checkpoints/step_0000100/` holds the tensors (`dcp.py`), `state.json` (all else, and the recipe)
and `manifest.json` with the hash of each file. It is written as `<name>.tmp` while the training goes on, and
renamed when the manifest is on disk, so a kill at any moment leaves the last complete one.
`trainer/checkpoint/dcp.py` is imported on use: it costs a second, which a configuration error need not wait for.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from utils.atomic import remove_tree, sync_folder
from utils.bounds import bounded
from utils.claims import lock_file
from utils.config.renamed import NO_OLD_KEYS, OldKeys, rename
from utils.diff import differences
from utils.digest import file_hash
from utils.json_reader import read_json
from utils.parallel import ranks

logger = logging.getLogger(__name__)

STATE, MANIFEST, ANCIENT = "state.json", "manifest.json", "state.pt"


@dataclass
class CheckpointConfig:
    """Save every so many steps; keep the last `keep`, and for ever those of every `keep_every`-th step (0 = none)."""

    every: int = bounded(500, 1, 10**9)
    keep: int = bounded(2, 1, 10**9)
    keep_every: int = bounded(0, 0, 10**9)

    def problems(self) -> Iterator[str]:
        if self.keep_every % self.every:
            yield (
                f"checkpoint.keep_every is {self.keep_every}; write 0 (none) or a multiple of checkpoint.every, "
                f"{self.every}: other steps are not saved"
            )


class Checkpoint:
    """The checkpoints of one run folder. With several ranks all methods but `complete` are called by all together."""

    writes = True

    def __init__(
        self,
        run: str | Path,
        config: CheckpointConfig,
        recipe: dict | None = None,
        old=NO_OLD_KEYS,
        inputs: Callable[[], dict[str, str | None]] = dict,
    ):
        """recipe: the configuration as a plain tree, kept in each checkpoint. old: `OldKeys` of recipes kept there.

        inputs: returns name -> hash of what the run reads, kept in each checkpoint. It may take minutes: it is called
        once, on a thread.
        """
        self.run, self.folder, self.config = Path(run), Path(run) / "checkpoints", config
        self.recipe, self.old = recipe or {}, old
        self.good: Path | None = None  # the newest that this process wrote or found whole
        self._saving: tuple[Future, Path] | None = None
        self._group, self._thread = None, ThreadPoolExecutor(1, "checkpoint")
        self._inputs = inputs
        self._hashes: Future[dict[str, str | None]] | None = None

    def save(self, state: dict, step: int) -> None:
        """Copies the state reached after `step` optimiser steps and starts to write it; older ones are pruned then.

        state: nested dicts, lists and tuples of (sharded) tensors, `dcp.Own` tensors, numbers, text and None.
        Errors: what the save before this one ran into, as `wait` does; ValueError for another kind of value.
        """
        from trainer.checkpoint import dcp

        self.wait()
        final = self.folder / f"step_{step:07d}"
        partial = final.with_suffix(".tmp")
        tree, tensors = dcp.split(state)
        self._raise_together(self._make_room(partial))
        self._start_hashing()
        upload = dcp.start_save(tensors, partial, self._cpu_group())
        metadata = {"step": step, "recipe": self.recipe, "world": ranks.world_size(), "state": tree}
        self._saving = self._thread.submit(self._finish, upload, partial, final, metadata), final

    def wait(self) -> None:
        """Waits for the save in flight, if there is one.

        Errors: OSError naming the folder (e.g. a full disk), on all ranks; older checkpoints stay.
        """
        if self._saving is not None:
            (saving, final), self._saving = self._saving, None
            self._raise_together(saving.result())
            self.good = final

    def complete(self) -> list[Path]:
        """Returns the finished checkpoint folders, oldest first."""
        folders = [p for p in self.folder.glob("step_*") if re.fullmatch(r"step_\d+", p.name)]
        return sorted((p for p in folders if (p / MANIFEST).exists()), key=_number)

    def find(self) -> Saved | None:
        """Returns the newest checkpoint whose hashes hold, or None; damaged ones are named and passed over.

        Errors: ValueError if all are damaged, or the newest is of a kind that cannot be read any more.
        """
        self._start_hashing()
        seen = json.dumps([p.name for p in self.complete()]) if ranks.rank() == 0 else None
        folders = [self.folder / name for name in json.loads(ranks.first_text(seen))]
        for folder in reversed(folders):
            if (folder / ANCIENT).exists():
                raise ValueError(f"{folder} was written by an earlier version; start anew with --no-auto-resume")
            problem = ranks.first_text(find_damage(folder))
            if problem is None:
                self.good = folder
                return Saved(folder, self._cpu_group(), self.old)
            if ranks.rank() == 0:
                logger.warning("%s is damaged (%s); trying the one before", folder, problem)
        if folders:
            raise ValueError(f"every checkpoint in {self.folder} is damaged; start anew with --no-auto-resume")
        return None

    def changed_inputs(self, saved: Saved) -> list[str]:
        """Returns, on rank 0, the names of what the run reads and what is not what it was at this checkpoint."""
        if self._hashes is None:
            return []
        now = self._hashes.result()
        return [name for name, before in saved.inputs.items() if now.get(name, before) != before]

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """A context in which no other training gets this run's folder; a kill frees it.

        Errors: ValueError, on all ranks, if another one has it.
        """
        folder = taken = None
        if ranks.rank() == 0:
            self.run.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.run, os.O_RDONLY)
            if not lock_file(folder, self.run):
                taken = f"another training runs in {self.run}; let it end, or give another --logdir"
        try:
            if metadata := ranks.first_text(taken):
                raise ValueError(metadata)
            yield
        finally:
            if folder is not None:
                os.close(folder)

    def set_aside(self) -> None:
        """Renames what an earlier run left here, so that a run that starts anew neither resumes nor prunes it."""
        if ranks.rank() == 0:
            set_aside(self.folder)
        ranks.barrier()

    def _start_hashing(self) -> None:
        """Begins to hash on rank 0 what the run reads; the first steps need not wait for it."""
        if self._hashes is None and ranks.rank() == 0:
            thread = ThreadPoolExecutor(1, "inputs")
            self._hashes = thread.submit(self._inputs)
            thread.shutdown(wait=False)

    def _cpu_group(self):
        if self._group is None:
            self._group = ranks.cpu_group()
        return self._group

    def _raise_together(self, error: str | None) -> None:
        """Raises OSError on all ranks if one of them has an error."""
        if metadata := ranks.first_text(error):
            raise OSError(metadata)

    def _make_room(self, partial: Path) -> str | None:
        """Makes the empty folder to write into, and removes what kills left behind; returns what went wrong."""
        if ranks.rank():
            return None
        for left in self.folder.glob("step_*.tmp"):
            remove_tree(left)
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            return f"{partial} cannot be made ({error.strerror}); earlier checkpoints are kept"
        return None

    def _finish(self, upload: Future, partial: Path, final: Path, metadata: dict) -> str | None:
        """In the thread: waits for all ranks' tensors, then seals on rank 0; returns what went wrong."""
        from trainer.checkpoint import dcp

        try:
            upload.result()
            if self._hashes is not None:  # on rank 0
                self._seal(partial, final, metadata | {"inputs": self._hashes.result()})
            return None
        except (dcp.CheckpointException, OSError) as error:
            reason = dcp.reason(error) if isinstance(error, dcp.CheckpointException) else str(error)
        if ranks.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        return f"{partial} cannot be written ({reason}); earlier checkpoints are kept; free space and resume"

    def _seal(self, partial: Path, final: Path, metadata: dict) -> None:
        """Writes state and manifest, brings all to the disk, gives the folder its name and prunes."""
        from trainer.checkpoint import dcp

        dcp.write_json(partial / STATE, metadata)
        if lost := sorted(name for name in dcp.named_files(partial) if not (partial / name).exists()):
            raise OSError(f"{lost[0]} of another rank is not there; the run's folder must be one that all ranks share")
        files = {path.name: file_hash(path) for path in sorted(partial.iterdir())}
        dcp.write_json(partial / MANIFEST, {"step": metadata["step"], "files": files})
        sync_folder(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_folder(self.folder)
        self._prune(metadata["step"])

    def _prune(self, step: int) -> None:
        """Removes older ones than the one just saved. Later ones are damaged: the run resumed before them."""
        older = [p for p in self.complete() if _number(p) < step]
        for folder in older[: max(0, len(older) + 1 - self.config.keep)]:
            if not self.config.keep_every or _number(folder) % self.config.keep_every:
                gone = folder.rename(folder.with_suffix(".tmp"))  # a kill leaves no half folder that looks whole
                shutil.rmtree(gone, ignore_errors=True)


class Saved:
    """A whole checkpoint on disk: `step`, `recipe` (of then, under the keys of today), and the state, by `read`."""

    def __init__(self, folder: Path, group, old: OldKeys = NO_OLD_KEYS):
        content = read_json(folder / STATE)
        self.folder, self.step, self.recipe = folder, content["step"], rename(content["recipe"], old)
        self._tree, self._group = content["state"], group
        self.inputs: dict[str, str | None] = content.get("inputs", {})  # hashes of what the run read
        self.world = content.get("world", 1)  # ranks that wrote it; told since there are tensors of one rank alone

    def read(self, like: dict) -> dict:
        """Returns the state as it was saved, with `like`'s tensors filled in place; all ranks call this together.

        like: a state with a tensor for each one saved, sharded as wanted, but for those of one rank alone: they
        are made as they were, on as many ranks as wrote them, and None on another number. Errors: ValueError
        naming the tensor that is not there or does not fit.
        """
        from trainer.checkpoint import dcp

        wanted = [name for name in dcp.read_index(self.folder) if not dcp.is_own(name)]
        here = {name: tensor for name, tensor in dcp.split(like)[1].items() if not dcp.is_own(name)}
        if lost := [name for name in wanted if name not in here]:
            raise ValueError(f"{lost[0]} is in it, but nothing here has that name")
        own = dcp.empty_own(self.folder) if self.world == ranks.world_size() else {}
        dcp.load({name: here[name] for name in wanted} | own, self.folder, self._group)
        return dcp.join(self._tree, here | own)

    def metadata(self, *path: str):
        """Returns the part of the state at `path`, which must hold no tensors."""
        from trainer.checkpoint import dcp

        tree = self._tree
        for key in path:
            tree = tree[key]
        return dcp.join(tree, {})

    def changes(self, recipe: dict) -> list[str]:
        """Returns "key: saved -> now" for each value that differs between the saved recipe and this one."""
        found = differences(self.recipe, json.loads(json.dumps(recipe)))
        return [f"{change.path}: {change.old} -> {change.new}" for change in found]


def set_aside(path: Path) -> None:
    """Renames a file or folder, if it is there, to the first free `<name>.before<n>`."""
    if path.exists():
        number = 1
        while path.with_name(f"{path.name}.before{number}").exists():
            number += 1
        path.rename(path.with_name(f"{path.name}.before{number}"))


def _number(folder: Path) -> int:
    return int(folder.name.partition("_")[2])


def find_damage(folder: Path) -> str | None:
    """Returns what is wrong with this rank's share of the folder's files, or None."""
    try:
        files = read_json(folder / MANIFEST)["files"]
        if STATE not in files:
            return "its manifest lacks files"
        share = sorted(files)[ranks.rank() :: ranks.world_size()]
        changed = [name for name in share if file_hash(folder / name) != files[name]]
        return f"{changed[0]} is not what its manifest says" if changed else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
