"""A cache written a second time, slowly: every frame's un-rotated keys and values in a list, nothing ever dropped.

Shares no line with wan/ledger.py, wan/cache.py, wan/context.py and wan/rope.py: which frames a chunk
sees is read off the definition of the window, angles are complex numbers in float64, and the text is
projected anew in every pass.
"""

from __future__ import annotations

import functools

import torch

from wan.attention.masks import FrameMask


class Book:
    """Which frames a chunk sees: the film's first `sink`, and the latest `window - sink - chunk` others."""

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
    """The context of one forward over a span; `commit` keeps its frames for good."""

    def __init__(self, store: list[list], book: Book, rope: str, span, theta: float):
        self.store, self.rope, self.span, self.theta = store, rope, span, theta
        self.seen, self.text, self.own = book.seen(span.start), ForgetfulText(), {}

    def open(self, num_frames, num_segments, table, grid, device, dtype):
        """Returns itself as the view; the model's rotary table stays unused."""
        self.grid = grid
        return self

    def extend(self, layer: int, q, k, v):
        """Gathers the frames that the book names and rotates everything by its place."""
        own = list(range(self.span.start, self.span.stop))
        places = self.seen + own
        if self.rope == "read":
            places = list(range(len(places)))
        self.own[layer] = (k, v)
        kept = [self.store[layer][frame] for frame in self.seen]
        k, v = (torch.cat([pair[i] for pair in kept] + [new], 1) for i, new in enumerate((k, v)))
        q = rotate(q, places[len(self.seen) :], self.grid, self.theta)
        return q, rotate(k, places, self.grid, self.theta), v, None

    def commit(self) -> None:
        """Appends the frames of the last forward to the lists."""
        for layer, (k, v) in self.own.items():
            count = len(self.span)
            pairs = zip(k.chunk(count, 1), v.chunk(count, 1), strict=True)
            assert len(self.store[layer]) == self.span.start
            self.store[layer].extend(pairs)


@torch.no_grad()
def play(model, condition, spans, noise, sigmas, book: Book, rope: str, given=None) -> torch.Tensor:
    """Returns the film [B, F, C, h, w] of a few-step rollout, written out; `given` is the first chunk's latents."""
    store = [[] for _ in range(model.spec.num_layers)]
    film = []

    def context(span):
        return Oracle(store, book, rope, span, model.spec.rope_theta)

    for number, span in enumerate(spans):
        if number == 0 and given is not None:
            x0 = given
        else:
            x = noise(span, 0)
            for k, sigma in enumerate(sigmas):
                x0 = x - sigma * model(x, sigma, condition, context(span))
                if k + 1 < len(sigmas):
                    x = (1 - sigmas[k + 1]) * x0 + sigmas[k + 1] * noise(span, k + 1)
        last = context(span)
        model(x0, 0.0, condition, last)
        last.commit()
        film.append(x0)
    return torch.cat(film, 1)
