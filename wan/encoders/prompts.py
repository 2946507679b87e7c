"""Prompts that were encoded lately are not encoded again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch


class PromptCache:
    """An LRU cache of prompt embeddings before a text encoder, called like it; several threads may share one.

    What a call lacks is encoded together. A prompt that every call uses (the negative one) is never dropped.
    """

    def __init__(self, encoder: Callable[[list[str]], torch.Tensor], size: int):
        """size: how many prompts are kept, the latest used; 0 = none, every call encodes all its prompts."""
        self.encoder, self.size = encoder, size
        self._rows: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        """Returns the embeddings [B, T, width] of the prompts."""
        if not self.size:
            return self.encoder(list(prompts))
        with self._lock:
            rows = {p: self._rows[p] for p in prompts if p in self._rows}
        if new := [p for p in dict.fromkeys(prompts) if p not in rows]:  # outside the lock: hits need not wait
            rows |= zip(new, (row.clone() for row in self.encoder(new)), strict=True)  # not views of a batch
        with self._lock:
            for prompt in dict.fromkeys(prompts):
                self._rows.pop(prompt, None)  # to the end of the order
                self._rows[prompt] = rows[prompt]
            while len(self._rows) > self.size:
                del self._rows[next(iter(self._rows))]
        return torch.stack([rows[p] for p in prompts])

    def find_cut(self, prompt: str) -> tuple[int, str] | None:
        """Returns what of a prompt the encoder does not read; see `TextEncoder.find_cut`."""
        find = getattr(self.encoder, "find_cut", None)
        return find(prompt) if find else None

    @property
    def prompts(self) -> list[str]:
        """The prompts that are kept, the latest used last."""
        return list(self._rows)
