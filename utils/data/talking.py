"""Encoded talking clips on disk: shards as `utils/data/latents.py` writes them, with sound and reference extra."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from utils.data.latents import LatentFolder, read_head, read_row
from utils.data.records import BadRecord, check_finite

FEATURES_PER_FRAME = 4  # of the sound for each latent frame


@dataclass(frozen=True)
class TalkingClip:
    """latents [F, C, h, w]; audio: features [A, 4 F, layers, width]; reference [1, C, h, w]."""

    latents: torch.Tensor
    audio: torch.Tensor
    reference: torch.Tensor
    prompt: str


class TalkingFolder(LatentFolder):
    """The clips of a folder of talking shards; also what it says of them as `LatentFolder` does."""

    def clip(self, index: int) -> TalkingClip:
        """Returns one clip. Errors: BadRecord naming a shard that cannot be read, or what does not fit."""
        return self._careful.read(index, len(self), self._read_clip)

    def _enter(self, path: Path) -> None:
        super()._enter(path)
        for name, axes in (("audio", 5), ("reference", 5)):
            shape = read_head(path, name)[1]
            if len(shape) != axes:
                raise BadRecord(f"{path} holds {name} {shape}; make it with scripts/encode_latents.py talking")

    def _read_clip(self, index: int) -> TalkingClip:
        path, row, frames = self._rows[index]
        latents, audio, reference = (read_row(path, name, row) for name in ("latents", "audio", "reference"))
        if audio.shape[1] != FEATURES_PER_FRAME * frames or reference.shape != (1, *latents.shape[1:]):
            raise BadRecord(
                f"{path}, clip {row}, has latents {list(latents.shape)}, audio {list(audio.shape)} and reference "
                f"{list(reference.shape)}, which do not belong together; make it again"
            )
        parts = [check_finite(t, f"{path}, clip {row}, its {n},") for n, t in (("latents", latents), ("audio", audio))]
        return TalkingClip(parts[0], parts[1], reference, self.prompts[index])
