"""What the frames of a video are conditioned on, with an identity by which caches recognise it.

Each field declares once, by a `Rule`, what becomes of it: in the unconditional branch, and in a pass over some of the
video's frames. `null`, `cut`, `repeat` and `to` follow from these rules, so a new field is one line.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import torch

from wan.geometry import Span

_numbers = itertools.count()


@dataclass(frozen=True)
class Rule:
    """How one field of a condition behaves. The first axis of each is the batch.

    null: condition -> the field's value in the unconditional branch; None = the same value.
    frames: the axis that counts the video's latent frames, cut to those of a pass; None = it holds for all frames.
    """

    null: Callable[[Condition], torch.Tensor | None] | None = None
    frames: int | None = None


def part(null=None, frames: int | None = None, **default):
    """Returns a dataclass field of a condition, with its rule."""
    return field(metadata={"rule": Rule(null, frames)}, **default)


def _negative_text(condition: Condition) -> torch.Tensor:
    if condition.null_text is None:
        raise ValueError("guidance needs the encoded negative prompt: give Condition(null_text=...)")
    return condition.null_text


@dataclass(frozen=True, eq=False)
class Condition:
    """Text, and for image models the image, of a batch of videos.

    text: [B, T, text width], T <= text_len; padding rows are zero and are attended to (Wan has no text mask).
    null_text: the same for the unconditional branch (the encoded negative prompt).
    image: [B, 257, image width] CLIP tokens (Wan 2.1 i2v) or None.
    channels: [B, F, C, h, w] latents joined to the input along channels (i2v) or None; F is the video's length.
    key: identity; two conditions with one key must be equal. Given anew to each object by default.
    """

    text: torch.Tensor = part(null=_negative_text)
    null_text: torch.Tensor | None = part(null=lambda condition: None, default=None)
    image: torch.Tensor | None = part(default=None)
    channels: torch.Tensor | None = part(frames=1, default=None)
    key: object = field(default_factory=lambda: next(_numbers))

    def null(self) -> Condition:
        """Returns the unconditional twin: the negative text, the same image.

        Errors: ValueError if no negative text was given.
        """
        values = {name: rule.null(self) for name, rule, _ in self._present() if rule.null}
        return replace(self, key=(self.key, "null"), **values)

    def cut(self, frames: Span | Sequence[int]) -> Condition:
        """Returns the condition of these latent frames of the video. The key stays: another frame is not a switch.

        Errors: ValueError for frames that a field does not hold.
        """
        frames = range(frames.start, frames.stop) if isinstance(frames, Span) else frames
        cut = {}
        for name, rule, value in self._present():
            if rule.frames is None:
                continue
            if max(frames) >= value.shape[rule.frames]:
                raise ValueError(
                    f"the condition's {name} holds {value.shape[rule.frames]} latent frames and frame {max(frames)} is "
                    "asked for; give it for the whole video"
                )
            cut[name] = select_frames(value, frames, rule.frames)
        return replace(self, **cut) if cut else self

    def repeat(self, count: int) -> Condition:
        """Returns the condition of `count` copies of the batch, one behind the other: a condition of its own."""
        values = {name: torch.cat([value] * count) for name, _, value in self._present()}
        return replace(self, key=(self.key, "repeat", count), **values)

    def to(self, device, dtype: torch.dtype | None = None) -> Condition:
        """Returns the condition on a device; with a dtype a condition of its own, for it may be rounded."""
        values = {name: value.to(device, dtype) for name, _, value in self._present()}
        return replace(self, key=self.key if dtype is None else (self.key, str(dtype)), **values)

    def _present(self) -> list[tuple[str, Rule, torch.Tensor]]:
        """Returns (name, rule, value) of the fields that there are."""
        ruled = [(entry.name, entry.metadata["rule"]) for entry in fields(self) if "rule" in entry.metadata]
        return [(name, rule, value) for name, rule in ruled if (value := getattr(self, name)) is not None]


def select_frames(tensor: torch.Tensor, frames: Sequence[int], axis: int = 1) -> torch.Tensor:
    """Returns some frames of a tensor: a view where they are consecutive."""
    borders = [0, *(i for i in range(1, len(frames)) if frames[i] != frames[i - 1] + 1), len(frames)]
    parts = [tensor.narrow(axis, frames[a], b - a) for a, b in itertools.pairwise(borders)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)
