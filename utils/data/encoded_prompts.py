"""Prompts that were encoded before a training: shards of embeddings with their texts, found by text.

A shard holds `embeddings` [sum of lengths, width], rows behind each prompt's last one that is not zero left out, and
`lengths` [N]; its metadata the texts. `prompts.json` says what made them. The empty prompt and the negative one are
prompts like all others, and come first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from utils.atomic import write_tensors
from utils.data.latents import read_facts, shard_path
from utils.data.records import BadRecord, check_finite, open_regular
from utils.json_reader import get, parse_json, read_json

RECORD = "prompts.json"
LIST = "prompts.txt"  # the texts to train on, line by line: the source's prompts


def write_prompts(folder: str | Path, number: int, embeddings_NTE: torch.Tensor, texts: Sequence[str]) -> Path:
    """Writes shard `number`, whole or not at all; embeddings keep their dtype, zero rows at their ends go."""
    check_finite(embeddings_NTE, f"the embedding of one of the prompts {list(texts)[:3]}")
    filled = embeddings_NTE.ne(0).any(-1)
    lengths = (filled * torch.arange(1, filled.shape[1] + 1)).amax(1)
    rows = torch.cat([row[:length] for row, length in zip(embeddings_NTE, lengths.tolist(), strict=True)])
    path = shard_path(folder, number)
    write_tensors(path, {"embeddings": rows.contiguous(), "lengths": lengths}, {"texts": json.dumps(list(texts))})
    return path


class EncodedPrompts:
    """The face of a text encoder over a folder of shards: `store(prompts) -> [B, T, width]`, zero behind each end.

    Errors: ValueError for a folder that is none, a shard that is damaged, a prompt that was not encoded.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / RECORD
        if not path.exists():
            old = " (it holds .pt files: convert it by --from_pt)" if any(self.folder.glob("*.pt")) else ""
            raise ValueError(f"{folder} holds no {RECORD}{old}; fill it by scripts/encode_prompts.py")
        self.record = read_json(path)
        self.text_len, self.width = (get(self.record, name, int, str(path)) for name in ("text_len", "width"))
        self.encoder = get(self.record, "encoder", str, str(path))  # hash of encoder and tokenizer, empty if unknown
        self._places: dict[str, tuple[Path, int, int]] = {}
        for shard in sorted(self.folder.glob("shard_*.safetensors")):
            self._enter(shard)
        if len(self._places) < get(self.record, "count", int, str(path)):
            found = f"{len(self._places)} of its {self.record['count']} prompts"
            raise ValueError(f"{folder} holds {found}; run scripts/encode_prompts.py again, it goes on")

    def _enter(self, path: Path) -> None:
        texts, lengths = parse_json(read_facts(path).get("texts", "[]"), f"{path}, texts", list), _read(path, "lengths")
        starts = lengths.cumsum(0) - lengths
        if len(texts) != len(lengths):
            raise BadRecord(f"{path} has {len(texts)} texts and {len(lengths)} embeddings; make it again")
        for text, start, length in zip(texts, starts.tolist(), lengths.tolist(), strict=True):
            self._places[text] = (path, start, length)

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._places

    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        """Returns the embeddings of prompts in the dtype in which they are stored, on the CPU."""
        return torch.stack([self._row(prompt) for prompt in prompts])

    def _row(self, prompt: str) -> torch.Tensor:
        if prompt not in self._places:
            raise ValueError(f"the prompt {prompt!r} is not in {self.folder}; encode it by scripts/encode_prompts.py")
        path, start, length = self._places[prompt]
        rows = _read(path, "embeddings", slice(start, start + length))
        if rows.shape != (length, self.width) or length > self.text_len:
            raise BadRecord(f"{path} does not hold the {length} x {self.width} embedding that it says; make it again")
        return torch.nn.functional.pad(rows, (0, 0, 0, self.text_len - length))

    def missing(self, prompts: Sequence[str]) -> Iterator[str]:
        """Yields those of the prompts that were not encoded."""
        return (prompt for prompt in dict.fromkeys(prompts) if prompt not in self)


def _read(path: Path, name: str, rows: slice = slice(None)) -> torch.Tensor:
    open_regular(path).close()
    try:
        with safe_open(path, "pt") as shard:
            return shard.get_slice(name)[rows]
    except (SafetensorError, OSError) as error:
        raise BadRecord(f"{path} is damaged or no shard ({error}); make it again") from error
