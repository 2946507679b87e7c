"""Encoded talking clips on disk: shards as `utils/data/latents.py` writes them, with sound and reference extra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.data.latents import LatentFolder, read_head, read_row
from utils.data.provenance import made_with
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
    """The clips of a folder of talking shards; also what it says of them as `LatentFolder` does.

    made_with: the settings that its shards were made with, each once, with a shard; nothing of shards that do not say.
    """

    def __init__(self, folder: str | Path, on_bad: str = "stop"):
        self.made_with: list[tuple[Path, dict]] = []
        super().__init__(folder, on_bad)

    def check_heard(self, audio: Mapping[str, object], chunk: int) -> None:
        """Raises ValueError naming how the shards were heard and what a recipe says (`AudioConfig`, its chunk)."""
        wanted = {**audio, "chunk": chunk}
        for path, made in self.made_with:
            wrong = [name for name, value in wanted.items() if name in made and made[name] != value]
            if wrong:
                here = ", ".join(f"{'generation.' if n == 'chunk' else 'audio.'}{n}={wanted[n]}" for n in wrong)
                there = ", ".join(f"--{name} {made[name]}" for name in wrong)
                raise ValueError(
                    f"{path} was heard with {there} and the recipe says {here}; write what the shards say into the "
                    "recipe, and into the one that will run the model, or encode them again with its values"
                )

    def clip(self, index: int) -> TalkingClip:
        """Returns one clip. Errors: BadRecord naming a shard that cannot be read, or what does not fit."""
        return self._careful.read(index, len(self), self._read_clip)

    def _enter(self, path: Path) -> None:
        super()._enter(path)
        made = made_with(path)
        if made and made not in [other for _, other in self.made_with]:
            self.made_with.append((path, made))
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
