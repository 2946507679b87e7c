"""Text to umT5 hidden states, as Wan reads them."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence

import torch
from torch import nn

from wan.config import TextConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TextEncoder(nn.Module):
    """Callable on a list of prompts -> hidden states [B, text_len, text_dim], zero behind each prompt's end.

    The encoder sees its key mask; the video model does not and attends to the zero rows too, so they
    belong to the condition. Source: Wan2.1 wan/modules/t5.py.
    """

    network = "UMT5EncoderModel"  # of transformers

    def __init__(self, model: nn.Module, tokenizer, text_len: int, batch_size: int = 8):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.text_len, self.batch_size = text_len, batch_size

    @property
    def device(self) -> torch.device:
        """Where the weights lie, which is where the result lies."""
        return next(self.model.parameters()).device

    def forward(self, prompts: Sequence[str]) -> torch.Tensor:
        """Encodes prompts; longer ones are cut after `text_len` tokens, the last of which ends the sentence."""
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"give a list of one or more prompts, not {prompts!r}")
        parts = [prompts[i : i + self.batch_size] for i in range(0, len(prompts), self.batch_size)]
        return torch.cat([self.encode(*self.tokenize(part)) for part in parts])

    def tokenize(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (ids, mask), both int64 [B, text_len], of the cleaned prompts."""
        out = self.tokenizer(
            [self.clean(p) for p in prompts],
            padding="max_length",
            truncation=True,
            max_length=self.text_len,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return out.input_ids.to(self.device), out.attention_mask.to(self.device)

    def clean(self, prompt: str) -> str:
        """Returns what the tokenizer is given."""
        return clean_text(prompt)

    def find_cut(self, prompt: str) -> tuple[int, str] | None:
        """Returns (tokens of a prompt, the text behind those that are read), or None if all of it is read."""
        plain = prompt if prompt.isascii() else unicodedata.normalize("NFKC", prompt)
        if "&" not in plain and len(plain.encode("utf-8", "replace")) + 2 < self.text_len:
            return None  # a token takes a byte or more; most of a long list ends here
        text = self.clean(prompt)
        ids = self.tokenizer(text, add_special_tokens=True, verbose=False).input_ids
        if len(ids) <= self.text_len:
            return None
        if not getattr(self.tokenizer, "is_fast", False):
            return len(ids), self.tokenizer.decode(ids[self.text_len - 1 :], skip_special_tokens=True)
        places = self.tokenizer(text, return_offsets_mapping=True, verbose=False).offset_mapping
        return len(ids), text[places[self.text_len - 1][0] :].strip()

    def encode(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Returns hidden states [B, T, text_dim] with the rows that the mask leaves out set to zero."""
        hidden = self.hidden(ids_BT, mask_BT)
        return hidden * mask_BT.unsqueeze(-1).to(hidden.dtype)

    @torch.no_grad()
    def hidden(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor:
        """Returns the encoder's output at all positions, padding included; mask None: it sees all tokens."""
        return self.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state


def clean_text(text: str) -> str:
    """Repairs broken Unicode, resolves HTML entities (also doubly written ones), collapses white space."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def load_text_encoder(parts, text_len: int, config: TextConfig | None = None, device="cpu", kind=TextEncoder):
    """Returns the text encoder of a model (`wan.checkpoint.parts.Parts`).

    device: where the rest of the model runs; `config.device` = cpu overrides it. kind: the class of what is
    returned, a `TextEncoder`; its `network` is the class of transformers that is loaded.
    Errors: ValueError if a part is missing or is something else.
    """
    from wan.checkpoint.library import load_text_model, load_tokenizer

    config = config or TextConfig()
    model = load_text_model(parts.need("text_encoder"), DTYPES[config.dtype], kind.network)
    tokenizer = load_tokenizer(parts.need("tokenizer"))
    place = "cpu" if config.device == "cpu" else device
    return kind(model.to(place), tokenizer, text_len, config.batch_size)
