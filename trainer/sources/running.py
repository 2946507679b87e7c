"""A batch of unfinished videos: what stays of them between two updates, and what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.rollout import Rollout
from pipeline.state import RolloutState
from pipeline.track import PromptSchedule
from wan.condition import Condition
from wan.geometry import Span


@dataclass
class RunningVideos:
    """Videos that share a schedule; lengths and frames are latent.

    number: how many videos these places had before. switch: the frame that the second prompt is asked for, or None.
    rows: the lines of the prompt files. prompts: those of each cue of the track. rollout: its knobs; state: the videos.
    previous: the last raw latents, without gradient.
    """

    number: int
    max_frames: int
    switch: int | None
    rows: list[int]
    prompts: list[list[str]]
    track: PromptSchedule
    rollout: Rollout
    state: RolloutState
    previous: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """Frames generated."""
        return self.state.next_frame

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
        """Returns what is needed to continue bit-exactly: a book equal on all ranks, tensors of each rank's own."""
        from trainer.checkpoint.dcp import Own  # late: costs a second

        book, tensors = self.state.snapshot("cpu")  # where it is, it would need the room of the caches again
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
        self.previous = tensors.pop("previous")
        *_, last = state["book"]["latest"]
        self.track.advance(Span(*last))
        self.state = self.rollout.restore(state["book"], tensors, self.condition)
