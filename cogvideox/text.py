"""Text to T5 v1.1 hidden states, as CogVideoX reads them: the prompt as it is, padding attended to and kept."""

from __future__ import annotations

import torch

from wan.checkpoint.library import load_text_model, load_tokenizer
from wan.config import TextConfig
from wan.encoders.text import DTYPES, TextEncoder


class T5Text(TextEncoder):
    """Callable on a list of prompts -> hidden states [B, text_len, text_dim], of padding too: no model sees a mask."""

    def clean(self, prompt: str) -> str:
        """Returns the prompt as it is."""
        return prompt

    def encode(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Returns the hidden states of all tokens, padding included."""
        return self.hidden(ids_BT, None)


def load_text(parts, text_len: int, config: TextConfig | None = None, device="cpu") -> T5Text:
    """Returns the text encoder of a model folder (`wan.checkpoint.parts.Parts`).

    Errors: ValueError if a part is missing or is something else.
    """
    config = config or TextConfig()
    model = load_text_model(parts.need("text_encoder"), DTYPES[config.dtype], "T5EncoderModel")
    place = "cpu" if config.device == "cpu" else device
    return T5Text(model.to(place), load_tokenizer(parts.need("tokenizer")), text_len, config.batch_size)
