"""What is asked for: one request per video, in batches that every number of ranks cuts alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.data.digits import parse_prompt
from utils.data.prompts import PromptLine, check_prompt, file_stem, read_image_prompts, read_prompts, repeated
from utils.rng import Rng
from wan.geometry import Span

GRAMMARS = {"digits": parse_prompt}  # models that know a closed world of prompts


@dataclass(frozen=True)
class Request:
    """One video: its prompt, its place in the list (`index`), its number among the prompt's samples."""

    prompt: str
    index: int
    sample: int
    stem: str  # file name without extension
    image: Path | None = None


def read_requests(data, output, num_samples: int, suffix: str = "") -> list[Request]:
    """Returns the requests of a run, in order.

    Errors: ValueError for no prompt at all, or a file that cannot be read.
    """
    if data.i2v and not data.path:
        raise ValueError("image-to-video needs --data_path, a folder of images with captions")
    if data.prompt:
        lines = [PromptLine(check_prompt(data.prompt, "--prompt"), 1)]
    elif data.i2v:
        lines = read_image_prompts(data.path)
    elif data.path:
        lines = read_prompts(data.path, data.extended_path or None)
    else:
        wanted = "--data_path FOLDER (images and captions)" if data.i2v else "--prompt TEXT or --data_path FILE"
        raise ValueError(f"nothing to do: write {wanted}")
    twice = repeated(lines)
    return [
        Request(
            line.prompt,
            line.index,
            sample,
            file_stem(line.index, sample, line.text, suffix, output.save_with_index, line.index in twice),
            line.image,
        )
        for line in lines
        for sample in range(num_samples)
    ]


def check_grammar(requests: Sequence[Request], spec_name: str) -> None:
    """Raises ValueError if a prompt lies outside the closed world of the model."""
    grammar = GRAMMARS.get(spec_name)
    for request in requests if grammar else ():
        grammar(request.prompt)


def batches(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Cuts the whole list into batches, before ranks share them: what is computed together never depends
    on the number of ranks, nor on what an earlier run has finished."""
    return [list(requests[i : i + size]) for i in range(0, len(requests), size)]


class KeyedNoise:
    """noise(span, k) of a batch: a function of (seed, prompt's index, sample, first frame, k) alone."""

    def __init__(self, rng: Rng, requests: Sequence[Request], frame_shape, dtype: torch.dtype, start=None):
        """frame_shape: (C, h, w). start: given noise [B, F, C, h, w] for k = 0, from frame `start_frame`."""
        self._sources = [rng.at("noise", r.index, r.sample) for r in requests]
        self._shape, self._dtype, self._start = tuple(frame_shape), dtype, start

    def __call__(self, span: Span, k: int) -> torch.Tensor:
        """Returns [B, F, C, h, w] normal noise on the CPU."""
        if k == 0 and self._start is not None:
            if span.stop > self._start.shape[1]:
                raise ValueError(f"the given noise has {self._start.shape[1]} frames, the film reaches {span.stop}")
            return self._start[:, span.start : span.stop].to(self._dtype)
        shape = (len(span), *self._shape)
        return torch.stack([s.normal(shape, span.start, k) for s in self._sources]).to(self._dtype)
