"""Knobs of how a sound becomes features, without torch: a configuration is read before anything heavy loads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from utils.bounds import bounded

LONGEST_WINDOW = 600  # seconds: attention over the window is quadratic


@dataclass
class AudioConfig:
    """How a sound is heard.

    window: `chunk` = the features of a chunk are those of the sound from `left` seconds before its end to `look_ahead`
    seconds behind it, the same for a file and for live sound; `file` = the whole file in one pass, as published: what
    is heard depends on all that follows, and memory grows with the file.
    lead: by how many frames the picture leads the sound. 0 = in step; the published systems drop the video's first
    three frames and not the sound's: 3.
    """

    window: str = "chunk"  # chunk | file
    left: float = bounded(8.0, 0.1, LONGEST_WINDOW)
    look_ahead: float = bounded(0.0, 0, LONGEST_WINDOW)
    lead: int = bounded(0, 0, 3)

    def problems(self) -> Iterator[str]:
        if self.window not in ("chunk", "file"):
            yield f"audio.window is {self.window!r}; write chunk or file"
        if self.window == "file" and self.look_ahead:
            yield "audio.window is file, which hears all that follows; leave look_ahead out"
