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

FEATURES_PER_FRAME = 4  # audio features come at the rate of pixel frames: so many for each latent frame, also the first
FRAMES_HEARD = 2  # latent frames before its own, from which a frame hears something
FEATURES_HEARD = 9  # by a latent frame: its own four and five before, the reach of the network's audio encoder

_numbers = itertools.count()


@dataclass(frozen=True)
class Rule:
    """How one field of a condition behaves. The first axis of each is the batch.

    null: condition -> the field's value in the unconditional branch; None = the same value.
    frames: the axis that counts the video's latent frames, cut to those of a pass; None = it holds for all frames.
    still: an axis of length 1 holds for all frames.
    """

    null: Callable[[Condition], torch.Tensor | None] | None = None
    frames: int | None = None
    still: bool = False


def part(null=None, frames: int | None = None, still: bool = False, **default):
    """Returns a dataclass field of a condition, with its rule."""
    return field(metadata={"rule": Rule(null, frames, still)}, **default)


def _negative_text(condition: Condition) -> torch.Tensor:
    if condition.null_text is None:
        raise ValueError("guidance needs the encoded negative prompt: give Condition(null_text=...)")
    return condition.null_text


def _silence(name: str):
    return lambda condition: torch.zeros_like(getattr(condition, name))


@dataclass(frozen=True, eq=False)
class Condition:
    """Text, and for some models image, sound, portrait and pose, of a batch of videos.

    text: [B, T, text width], T <= text_len; padding rows are zero and are attended to (Wan has no text mask).
    null_text: the same for the unconditional branch (the encoded negative prompt).
    image: [B, 257, image width] CLIP tokens (Wan 2.1 i2v) or None.
    channels: [B, F, C, h, w] latents joined to the input along channels (i2v) or None; F is the video's length.
    reference [B, 1, C, h, w], motion [B, M, C, h, w]: latents of a still and of what came before the video (S2V).
    audio: [B, A, P, layers, width] features of A speakers, four for each latent frame from `audio_start` on (below 0:
    of what was before a clip that was cut out of a longer one); a pass gets `heard` [B, A, F, 9, layers, width] in its
    place: what each of its frames hears (`hear`).
    speakers: [B, A, F or 1, rows, columns], how much of a speaker's part each token takes, or None: all.
    pose: [B, F, C, h, w] latents added to the video's or None.
    key: identity; two conditions with one key must be equal but for sound and pose, which go on under it: they are no
    prompt switch. Given anew to each object by default. portrait_key: identity of the portrait among those of one key.
    frames_start: latent frame at which pose, channels and moving speakers begin.
    audio_chunk: 0 = the encoder hears what was before a frame; n = not what was before the frame's chunk of n frames,
    whose first feature is repeated instead (as Live-Avatar was trained).
    """

    text: torch.Tensor = part(null=_negative_text)
    null_text: torch.Tensor | None = part(null=lambda condition: None, default=None)
    image: torch.Tensor | None = part(default=None)
    channels: torch.Tensor | None = part(frames=1, default=None)
    reference: torch.Tensor | None = part(default=None)
    motion: torch.Tensor | None = part(default=None)
    audio: torch.Tensor | None = part(null=_silence("audio"), default=None)
    heard: torch.Tensor | None = part(null=_silence("heard"), default=None)
    speakers: torch.Tensor | None = part(frames=2, still=True, default=None)
    pose: torch.Tensor | None = part(frames=1, default=None)
    key: object = field(default_factory=lambda: next(_numbers))
    portrait_key: object = None
    audio_start: int = 0
    frames_start: int = 0
    audio_chunk: int = 0

    def null(self) -> Condition:
        """Returns the unconditional twin: the negative text, no sound, the same image, portrait and pose.

        Errors: ValueError if no negative text was given.
        """
        values = {name: rule.null(self) for name, rule, _ in self._present() if rule.null}
        return replace(self, key=(self.key, "null"), **values)

    def cut(self, frames: Span | Sequence[int]) -> Condition:
        """Returns the condition of these latent frames of the video. The key stays: another frame is not a switch.

        What is cut by frames must be whole: a condition is cut once.

        Errors: ValueError for frames that a field does not hold.
        """
        frames = range(frames.start, frames.stop) if isinstance(frames, Span) else frames
        cut: dict[str, torch.Tensor | None] = {}
        if self.audio is not None:
            cut |= {"audio": None, "heard": self.hear(frames)}
        for name, axis in self._moving().items():
            value = getattr(self, name)
            begin, stop = self.frames_start, self.frames_start + value.shape[axis]
            if min(frames) < begin or max(frames) >= stop:
                held = f"{stop} latent frames" if not begin else f"the latent frames [{begin}, {stop})"
                asked = min(frames) if min(frames) < begin else max(frames)
                raise ValueError(
                    f"the condition's {name} holds {held} and frame {asked} is asked for; give it for the whole video"
                )
            cut[name] = select_frames(value, [frame - begin for frame in frames], axis)
        return replace(self, **cut) if cut else self

    def between(self, first: int, stop: int) -> Condition:
        """Returns the condition under the same key, of which frames [first, stop) alone can be asked for.

        It holds what a pass over them needs, and nothing that grows with the video: another process can be given it.
        """
        values: dict[str, torch.Tensor | int] = {}
        if self.audio is not None:
            begin = max(first - FRAMES_HEARD, self.audio_start)
            start, length = begin - self.audio_start, stop - begin
            values |= {"audio": self.audio.narrow(2, start * FEATURES_PER_FRAME, length * FEATURES_PER_FRAME)}
            values |= {"audio_start": begin}
        for name, axis in self._moving().items():
            start = first - self.frames_start
            values |= {name: getattr(self, name).narrow(axis, start, stop - first), "frames_start": first}
        return replace(self, **values)

    def _moving(self) -> dict[str, int]:
        """Returns name -> axis of frames of the fields that differ from frame to frame, sound left out."""
        found = [(name, rule, value) for name, rule, value in self._present() if rule.frames is not None]
        return {name: rule.frames for name, rule, v in found if not (rule.still and v.shape[rule.frames] == 1)}

    def parts(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Returns the fields that hold for all frames, and those that go on from frame to frame, sound too."""
        going = {*self._moving(), "audio", "heard"}
        present = {name: value for name, _, value in self._present()}
        still = {name: value for name, value in present.items() if name not in going}
        return still, {name: value for name, value in present.items() if name in going}

    def hear(self, frames: Sequence[int]) -> torch.Tensor:
        """Returns the features [B, A, F, 9, layers, width] that each of these latent frames hears.

        Before the video's first feature, or the chunk's (`audio_chunk`), that one is repeated.
        Errors: ValueError for frames whose sound is not there, or not there any more.
        """
        begin, held = self.audio_start * FEATURES_PER_FRAME, self.audio.shape[2]
        last = (max(frames) + 1) * FEATURES_PER_FRAME
        places = []
        for frame in frames:
            own, chunk = frame * FEATURES_PER_FRAME, self.audio_chunk
            least = (frames[0] + (frame - frames[0]) // chunk * chunk) * FEATURES_PER_FRAME if chunk else min(begin, 0)
            own += FEATURES_PER_FRAME
            places.append([max(place, least) for place in range(own - FEATURES_HEARD, own)])
        first = min(place for row in places for place in row)
        if first < begin or last > begin + held:
            raise ValueError(
                f"the condition's audio holds the features of pixel frames [{begin}, {begin + held}) and those of "
                f"[{first}, {last}) are asked for; give them for the frames of a chunk and the two latent frames before"
            )
        index = torch.tensor(places, device=self.audio.device) - begin
        return self.audio[:, :, index]

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
