"""Which frame sees which: one boolean matrix over frames, expanded to tokens by the backend."""

from __future__ import annotations

import torch

from wan.geometry import Span
from wan.tokens import TokenLayout


class FrameMask:
    """A boolean matrix [query frames, key frames] (True = may see) and its expansions.

    sink: how many of the first frames are a sink: seen from any distance.
    """

    def __init__(self, frames: torch.Tensor, sink: int = 0):
        self.frames, self.sink = frames.bool(), sink
        self._expanded: dict = {}

    def dense(self, queries: TokenLayout, keys: TokenLayout, device) -> torch.Tensor:
        """Returns the token matrix [L, S] on `device`; computed once per size.

        Errors: ValueError if the layouts do not have as many frames as the mask.
        """
        key = (queries.plain, keys.plain, str(device))
        if key not in self._expanded:
            given = (queries.num_frames, keys.num_frames)
            if given != tuple(self.frames.shape):
                raise ValueError(f"a mask of {tuple(self.frames.shape)} frames was given for {given} frames")
            rows, columns = (torch.tensor(layout.frame_of_token) for layout in (queries, keys))
            visible = self.frames[rows][:, columns]
            if keys.padded:
                visible &= torch.tensor(keys.real)
            self._expanded[key] = visible.to(device)
        return self._expanded[key]

    def __str__(self) -> str:
        """ASCII picture: one row a query frame, # = sees, . = does not."""
        return "\n".join("".join("#" if visible else "." for visible in row) for row in self.frames.tolist())


def with_portrait(mask: FrameMask, frames: int) -> FrameMask:
    """Returns the mask with so many frames behind the video that everything sees and that see each other alone."""
    if not frames:
        return mask
    total = len(mask.frames) + frames
    visible = torch.zeros(total, total, dtype=torch.bool)
    visible[:-frames, :-frames] = mask.frames
    visible[:, -frames:] = True
    return FrameMask(visible, mask.sink)


def causal(spans: list[Span], window_frames: int = -1, sink_frames: int = 0) -> FrameMask:
    """Each chunk sees itself, the sink and its history, exactly as the ledger would have it.

    The history is the latest `window - sink - n` frames before the chunk, n the largest chunk.
    """
    if spans[0].start:
        raise ValueError(f"a mask over whole clips starts at frame 0, not at {spans[0].start}")
    total, largest = spans[-1].stop, max(map(len, spans))
    visible = torch.zeros(total, total, dtype=torch.bool)
    for span in spans:
        first = 0
        if window_frames != -1:
            first = max(0, span.start - (window_frames - sink_frames - largest))
        visible[span.start : span.stop, first : span.stop] = True
        visible[span.start : span.stop, : min(sink_frames, span.start)] = True
    return FrameMask(visible, sink_frames)


def teacher_forcing(spans: list[Span], window_frames: int = -1, sink_frames: int = 0) -> FrameMask:
    """For the sequence [clean frames | noisy frames], 2F x 2F.

    Clean chunks see clean chunks causally; a noisy chunk sees itself and the clean frames before it
    that the window holds.
    """
    total = spans[-1].stop
    clean = causal(spans, window_frames, sink_frames).frames
    own = torch.zeros(total, total, dtype=torch.bool)
    for span in spans:
        own[span.start : span.stop, span.start : span.stop] = True
    top = torch.cat((clean, torch.zeros_like(clean)), 1)
    bottom = torch.cat((clean & ~own, own), 1)
    return FrameMask(torch.cat((top, bottom), 0), sink_frames)
