"""A batch of videos in the making: what stays of them between two updates, and what a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.rollout import Rollout
from pipeline.track import PromptSchedule
from wan.condition import Condition
from wan.geometry import Span


@dataclass
class RunningVideos:
    """Videos that share a schedule; lengths and frames are latent.

    number: how many videos these places had before. switch: the frame that the second prompt is asked for, or None.
    rows: the lines of the prompt files. prompts: those of each cue of the track. rollout: with the caches.
    length: frames made. previous: the last raw latents of these, without gradient.
    """

    number: int
    max_frames: int
    switch: int | None
    rows: list[int]
    prompts: list[list[str]]
    track: PromptSchedule
    rollout: Rollout
    length: int = 0
    previous: torch.Tensor | None = None

    @property
    def condition(self) -> Condition:
        """The condition in force at the last frame."""
        return self.track.cues[self.track.cursor][1]

    def entry(self, spans: Sequence[Span]) -> int | None:
        """Returns the frame at which the switch comes within the chunks ahead, if it does."""
        if self.switch is None or self.track.cursor:
            return None
        return next((span.start for span in spans if span.start >= self.switch), None)

    def state_dict(self) -> dict:
        """Returns what is needed to go on to the bit; the book is equal on all ranks, tensors are each rank's own."""
        from trainer.checkpoint.dcp import Own  # late: costs a second

        book, tensors = self.rollout.snapshot("cpu")  # where it is, it would need the room of the caches again
        tensors["previous"] = self.previous.cpu()
        return {
            "max_frames": self.max_frames,
            "switch": self.switch,
            "length": self.length,
            "book": book,
            "rows": Own(torch.tensor(self.rows)),
            "tensors": {name: Own(tensor) for name, tensor in tensors.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` returned; for a video at its start, of the same rows, length and switch."""
        tensors = {name: tensor.to(self.rollout.device) for name, tensor in state["tensors"].items()}
        self.length, self.previous = state["length"], tensors.pop("previous")
        *_, last = state["book"]["latest"]
        self.track.advance(Span(*last))
        self.rollout.restore(state["book"], tensors, self.condition)
