"""A cache written a second time, slowly: every frame's un-rotated keys and values in a list, nothing ever dropped.

Shares no line with wan/ledger.py, wan/cache.py, wan/context.py and wan/rope.py: which frames a chunk
sees is read off the definition of the window, angles are complex numbers in float64, and the text is
projected again in every pass. After a switch of prompts the frames of a recache replace those of their number. What a
condition holds for each frame is read for the frames of the pass, whichever they are.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from wan.attention.call import AttentionCall
from wan.attention.dispatch import attend
from wan.attention.masks import FrameMask
from wan.geometry import Span


class Book:
    """Which frames a chunk sees: the video's first `sink`, and the latest `window - sink - chunk` others."""

    def __init__(self, window: int, sink: int, chunk: int):
        self.window, self.sink, self.chunk = window, sink, chunk

    def seen(self, start: int) -> list[int]:
        """Returns the earlier frames that a chunk starting at frame `start` sees, in time order."""
        frames = list(range(start))
        if self.window == -1:
            return frames
        sink, others = frames[: self.sink], frames[self.sink :]
        history = self.window - self.sink - self.chunk
        return sink + (others[-history:] if history else [])

    def mask(self, spans, with_own: bool = True) -> FrameMask:
        """Returns which of the clip's frames each frame sees; without its own chunk if so told."""
        total = spans[-1].stop
        rows = torch.zeros(total, total, dtype=torch.bool)
        for span in spans:
            for frame in range(span.start, span.stop):
                rows[frame, self.seen(span.start)] = True
                rows[frame, span.start : span.stop] = with_own
        return FrameMask(rows)


class Window:
    """What is visible while a video is made and its prompts switch: the frames there are, and where the sink begins."""

    def __init__(self, book: Book):
        self.book, self.first, self.there, self.end = book, 0, [], 0

    def seen(self) -> list[int]:
        """Returns the frames that the next chunk sees, in time order."""
        if self.book.window == -1:
            return list(self.there)
        sink = [f for f in self.there if f < self.first + self.book.sink]
        others = [f for f in self.there if f >= self.first + self.book.sink]
        history = self.book.window - self.book.sink - self.book.chunk
        return sink + (others[-history:] if history else [])

    def add(self, span) -> None:
        """A chunk was made."""
        self.there += range(span.start, span.stop)
        self.end = span.stop

    def again(self, keep_sink: bool, reach: int = 0) -> tuple[list[int], list[int]]:
        """Returns (kept sink, frames that a recache computes again): the last ones, never before the first.

        reach: how far back it goes, if further than the window.
        """
        window, sink = self.book.window, self.book.sink
        latest = [f for f in range(self.first, self.end) if window == -1 or f >= self.end - max(window, reach)]
        if keep_sink and sink and latest[0] > self.first:
            return list(range(self.first, self.first + sink)), latest[-(window - sink) :]
        return [], latest

    def replace(self, kept: list[int], made: list[int]) -> None:
        """The kept frames and those made anew are all there is."""
        self.first = self.first if kept else made[0]
        self.there = kept + made

    def reset(self, keep_sink: bool) -> None:
        """Only the sink is left, if it is kept."""
        self.there = [f for f in self.there if keep_sink and f < self.first + self.book.sink]
        if not self.there:
            self.first = self.end


@functools.lru_cache(maxsize=256)
def turns(positions: tuple[int, ...], grid: tuple[int, int], head_dim: int, theta: float) -> torch.Tensor:
    """Returns e^(i angle) per token and channel pair in float64, [L, head_dim / 2]."""
    side = 2 * (head_dim // 6)
    widths = (head_dim - 2 * side, side, side)
    places = [(f, r, c) for f in positions for r in range(grid[0]) for c in range(grid[1])]
    angles = [
        [place[axis] * theta ** (-2 * i / width) for axis, width in enumerate(widths) for i in range(width // 2)]
        for place in places
    ]
    angles = torch.tensor(angles, dtype=torch.float64)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x_BLNE: torch.Tensor, positions, grid, theta: float) -> torch.Tensor:
    """Rotates neighbouring channels as one complex number."""
    pairs = torch.view_as_complex(x_BLNE.double().unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * turns(tuple(positions), tuple(grid), x_BLNE.shape[-1], theta)[None, :, None]
    return torch.view_as_real(turned).flatten(-2).to(x_BLNE.dtype)


class ForgetfulText:
    """Keeps no text keys."""

    def get(self, layer: int, key, make):
        """Returns what `make` makes."""
        return make()


class Oracle:
    """The context of one forward over `frames` that sees the frames `seen`; `commit` keeps its frames for good."""

    def __init__(self, store: list[dict], seen, rope: str, frames, theta: float):
        self.store, self.rope, self.frames, self.theta = store, rope, list(frames), theta
        self.seen, self.text, self.own = list(seen), ForgetfulText(), {}

    cached, times = True, range

    def open(self, layout, table, device, dtype):
        """Returns itself as the view; the model's rotary table stays unused."""
        self.grid = layout.runs[0].grid
        return self

    def attend(self, layer: int, q, k, v, config):
        """Gathers the frames that the book names and rotates everything by its place."""
        places = self.seen + self.frames
        if self.rope == "read":
            places = list(range(len(places)))
        self.own[layer] = (k, v)
        kept = [self.store[layer][frame] for frame in self.seen]
        k, v = (torch.cat([pair[i] for pair in kept] + [new], 1) for i, new in enumerate((k, v)))
        q = rotate(q, places[len(self.seen) :], self.grid, self.theta)
        return attend(AttentionCall(q, rotate(k, places, self.grid, self.theta), v), config)

    def commit(self) -> None:
        """Enters the frames of the last forward."""
        for layer, (k, v) in self.own.items():
            count = len(self.frames)
            pairs = zip(k.chunk(count, 1), v.chunk(count, 1), strict=True)
            self.store[layer].update(zip(self.frames, pairs, strict=True))


def at(condition, frames):
    """Returns the condition of some frames: what it holds for each frame is read for these."""
    if condition.channels is None:
        return condition
    return replace(condition, channels=condition.channels[:, list(frames)])


@torch.no_grad()
def play(
    model, condition, spans, noise, sigmas, book: Book, rope: str, given=None, switches=None, recache="none,keep,0"
):
    """Returns the video [B, F, C, h, w] of a few-step rollout, written out; `given` is the first chunk's latents.

    switches: number of a chunk -> the condition from it on; recache: its kind, `keep` or `drop` for the sink, and how
    far back it goes if further than the window.
    """
    store = [{} for _ in range(model.spec.num_layers)]
    window, video, switches = Window(book), [], switches or {}

    def show(x0, frames, seen):
        last = Oracle(store, seen, rope, frames, model.spec.rope_theta)
        model(x0, 0.0, at(condition, frames), last)
        last.commit()

    for number, span in enumerate(spans):
        frames = range(span.start, span.stop)
        if number in switches:
            condition = switches[number]
            again(window, torch.cat(video, 1), spans[:number], *recache.split(","), show)
        if number == 0 and given is not None:
            x0 = given
        else:
            x = noise(span, 0)
            for k, sigma in enumerate(sigmas):
                context = Oracle(store, window.seen(), rope, frames, model.spec.rope_theta)
                x0 = x - sigma * model(x, sigma, at(condition, frames), context)
                if k + 1 < len(sigmas):
                    x = (1 - sigmas[k + 1]) * x0 + sigmas[k + 1] * noise(span, k + 1)
        show(x0, frames, window.seen())
        window.add(span)
        video.append(x0)
    return torch.cat(video, 1)


def again(window: Window, video, spans, kind: str, sink: str, reach: str, show) -> None:
    """Computes the frames of a recache again: at once, or chunk by chunk, or none."""
    if kind == "none":
        return
    if kind == "reset":
        window.reset(sink == "keep")
        return
    kept, frames = window.again(sink == "keep", int(reach))
    if kind == "bidirectional":
        if not kept and window.book.window != -1:  # what no later chunk sees is left out
            sink = frames[: window.book.sink]
            rest = frames[len(sink) :][-(window.book.window - window.book.sink) :]
            frames = sink + rest
        show(video[:, frames], frames, kept)
        window.replace(kept, frames)
        return
    window.replace(kept, frames[:1])  # the sink begins here if it is not kept
    window.there = kept
    for span in spans:
        part = Span(max(span.start, frames[0]), span.stop)
        if part.stop > part.start:
            show(video[:, part.start : part.stop], range(part.start, part.stop), window.seen())
            window.add(part)
