"""What a killed run goes on from, and what must be equal for that: of snapshots of sessions too.

A run writes it next to a batch of videos as `<first name>.partial.safetensors`: the rollout's state, the decoder's, and
how far each file was, all of one moment, between two chunks. Noise and prompts are functions of the frame, so nothing
else is needed to generate the same video.
"""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.batch.plan import VideoPlan
from pipeline.batch.request import Request
from pipeline.batch.writer import VideoBatchWriter, finished, video_path
from pipeline.causal import Causal
from pipeline.config import InferConfig
from pipeline.state import RolloutState, check_version, pack, unpack
from pipeline.track import Fixed, Track
from utils.config.text import config_hash, to_dict
from utils.digest import file_hash
from wan.checkpoint.tensor_file import metadata, read, write_safetensors
from wan.condition import Condition

logger = logging.getLogger(__name__)
SUFFIX = ".partial.safetensors"


def pipeline_facts(pipeline: Causal) -> dict:
    """Returns what a pipeline must have in common with the one that made a snapshot to go on with its video."""
    bundle, sampler = pipeline.bundle, pipeline.rollout.sampler
    facts = {
        "model": bundle.spec,
        "weights": bundle.weights_hash,
        "dtype": str(bundle.dtype),
        "pipeline": pipeline.config,
    }
    return plain(
        facts | {"sampler": {"name": type(sampler).__name__, **vars(sampler)}, "geometry": pipeline.rollout.geometry}
    )


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, list]:
    """Returns name -> [type, *shape] of the tensors of a snapshot."""
    return {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}


def plain(facts: dict) -> dict:
    """Returns facts as JSON gives them back; dataclasses become trees."""
    return json.loads(json.dumps(facts, default=to_dict))


def describe_changes(was, now) -> str:
    """Returns what differs between two plain trees in words, five values at most; "" if nothing does."""
    return "; ".join(f"{name} was {then} and is {value}" for name, then, value in _differences(was, now)[:5])


class ResumeState:
    """The snapshot beside a batch of videos."""

    def __init__(self, group: Sequence[Request], folder: str | Path, facts: dict):
        """facts: what makes these videos and no others."""
        self.group, self.folder, self.path = list(group), folder, snapshot_path(group, folder)
        self.facts = plain(facts)

    def find(self) -> dict | None:
        """Returns the snapshot, or None, with a word, if there is none that can be used.

        Errors: ValueError for one of other videos: it is worth hours, and nobody asked to lose it.
        """
        if not self.path.is_file():
            logger.info("%s: no snapshot to go on from; the video starts anew", video_path(self.group[0], self.folder))
            return None
        try:
            book = json.loads(metadata(self.path)["book"])
            try:
                check_version(book)
            except ValueError as error:
                raise _Foreign(f"{self.path}: {error}, without --resume") from error
            if names := describe_changes(book.pop("facts"), self.facts):
                advice = "Ask for that one, or leave out --resume to begin anew"
                raise _Foreign(f"{self.path} belongs to another video: {names}. {advice}")
            return {"tensors": read(self.path), "book": book}
        except _Foreign:
            raise
        except (ValueError, KeyError) as error:
            logger.warning("%s cannot be used (%s); the video starts anew", self.path, error)
            return None

    def write(self, state: RolloutState, videos: VideoBatchWriter, extra: dict) -> None:
        """Replaces the snapshot by one of this moment; `extra` comes back with `find`, in the book."""
        files, shown = videos.state()  # all that was written is on the disk before the snapshot speaks of it
        snapshot = pack(state, videos.decoder.state, videos.next_frame, "cpu")
        book = snapshot["book"] | {"facts": self.facts, "films": files, "extra": extra}
        write_safetensors(self.path, snapshot["tensors"] | shown, {"book": json.dumps(book)})

    def go_on(
        self, videos: VideoBatchWriter, take: VideoPlan, track: Condition | Track
    ) -> tuple[RolloutState, dict] | None:
        """Returns (the state to go on with, the snapshot's `extra`), or None if there is none that can be used.

        videos: they stand there too when this returns.
        Errors: ValueError for a snapshot of other videos, or files that are not those it speaks of.
        """
        snapshot = self.find()
        if snapshot is None:
            return None
        book, track = snapshot["book"], track if isinstance(track, Track) else Fixed(track)
        try:
            videos.resume(book["films"], snapshot["tensors"], book["next_frame"])
        except ValueError as error:
            raise ValueError(
                f"{self.path} cannot be gone on with: {error}. Leave out --resume to begin anew"
            ) from error
        for span in [span for span in take.spans if span.stop <= book["next_frame"]]:
            condition = track.at(span)  # the schedule is where its chunks have brought it
        state, videos.decoder.state = unpack(snapshot, take.pipeline.rollout, condition, "cpu")  # the decoder moves it
        seconds = book["films"]["frames"] / videos.fps
        logger.info("%s goes on at %.1f s", video_path(self.group[0], self.folder), seconds)
        return state, book["extra"]

    def remove(self) -> None:
        """Removes the snapshot: the videos are finished, or begin anew."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> ResumeState:
        for half in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.partial"):
            half.unlink()  # a run was killed while it wrote its snapshot
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None and self.path.is_file():
            name = video_path(self.group[0], self.folder).with_suffix(".partial.mp4")
            logger.warning("%s is kept: run again with --resume to go on from its last snapshot", name)


class _Foreign(ValueError):
    """A snapshot of other videos."""


def snapshot_path(group: Sequence[Request], folder: str | Path) -> Path:
    """Returns where the snapshot of a batch of videos lies."""
    return Path(folder) / f"{group[0].stem}{SUFFIX}"


def to_make(group: Sequence[Request], output) -> list[bool]:
    """Returns which videos of a batch are to be made: all with overwrite, else those that are not finished.

    With resume also those that a killed run with overwrite was making anew, though the old ones are still there.
    """
    anew = output.resume and snapshot_path(group, output.folder).is_file()
    halves = [video_path(request, output.folder).with_suffix(".partial.mp4") for request in group]
    unfinished = [not finished(request, output.folder) for request in group]
    return [output.overwrite or new or (anew and half.exists()) for new, half in zip(unfinished, halves, strict=True)]


def remove_stale(group: Sequence[Request], folder: str | Path) -> None:
    """Removes the snapshot of videos that are finished: their run was killed right before it did."""
    halves = [video_path(request, folder).with_suffix(".partial.mp4") for request in group]
    if all(finished(request, folder) for request in group) and not any(half.exists() for half in halves):
        snapshot_path(group, folder).unlink(missing_ok=True)


def settings(config: InferConfig) -> InferConfig:
    """Returns the configuration without what says how often a video is begun, not which one it is."""
    return replace(config, output=replace(config.output, resume=False, overwrite=False))


def settings_hash(config: InferConfig) -> str:
    """Returns the hash of what makes a video: the same with and without --resume and --overwrite."""
    return config_hash(settings(config))


def video_settings(config: InferConfig) -> dict:
    """Returns the configuration as a plain tree, without what changes no video."""
    tree = to_dict(settings(config))
    tree["decoder"].pop("device", None)
    places = (("vae", "device"), ("text", "device"))
    for section, name in (("output", "folder"), ("output", "sheet"), ("data", "keep_going"), *places):
        del tree[section][name]
    del tree["threads"]
    return tree


def provenance(
    config: InferConfig, weights_hash: str, group: Sequence[Request], requested, total: int, content=file_hash
):
    """Returns what makes these videos and no others. content(path) -> hash; long runs pass a cached one."""
    tree = video_settings(config)
    given = {path: content(path) for path in {config.data.noise, config.data.initial_latents} if path}
    given |= {str(path): content(path) for path in {request.start for request in group} if path}
    videos = [
        {
            "name": r.stem,
            "prompts": r.prompts,
            "seed": r.script.seed if r.script else None,
            "negative_prompt": r.script.negative_prompt if r.script else None,
            "start": [str(r.start), r.start_seconds] if r.start else None,
            "place": [r.index, r.sample],
        }
        for r in group
    ]
    parts = {"config": tree, "weights": weights_hash, "films": videos, "files": given}
    return parts | {"switches": list(requested), "latent_frames": total}


def _differences(was, now, name: str = "") -> list[tuple[str, object, object]]:
    """Returns (name, value then, value now) of what differs between two plain trees."""
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        was, now = dict(enumerate(was)), dict(enumerate(now))
    if isinstance(was, dict) and isinstance(now, dict) and was.keys() == now.keys():
        parts = [_differences(was[key], now[key], f"{name}.{key}" if name else str(key)) for key in was]
        return [row for part in parts for row in part]
    return [] if was == now else [(name, was, now)]
