"""What a span of a video is conditioned on, with an identity by which caches recognise it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import torch

from wan.geometry import Span

_numbers = itertools.count()


@dataclass(frozen=True, eq=False)
class Condition:
    """Text, and for image models the image, of a batch.

    text: [B, T, text width], T <= text_len; missing rows are zeros and are attended to.
    null_text: the same for the unconditional branch (the encoded negative prompt).
    image: [B, 257, image width] CLIP tokens (Wan 2.1 i2v) or None.
    channels: [B, F, C, h, w] latents joined to the input along channels (i2v) or None.
    key: identity; two conditions with one key must be equal. Given anew to each object by default.
    """

    text: torch.Tensor
    null_text: torch.Tensor | None = None
    image: torch.Tensor | None = None
    channels: torch.Tensor | None = None
    key: object = field(default_factory=lambda: next(_numbers))

    def null(self) -> Condition:
        """Returns the unconditional twin: the negative text, the same image.

        Errors: ValueError if no negative text was given.
        """
        if self.null_text is None:
            raise ValueError("guidance needs the encoded negative prompt: give Condition(null_text=...)")
        return replace(self, text=self.null_text, null_text=None, key=(self.key, "null"))

    def at(self, span: Span) -> Condition:
        """Returns the condition with the joined channels cut to the span's frames."""
        if self.channels is None:
            return self
        return replace(self, channels=self.channels[:, span.start : span.stop])
