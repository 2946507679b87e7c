"""Text to T5 v1.1 hidden states, as CogVideoX reads them: the prompt as it is, padding attended to and kept."""

from __future__ import annotations

import torch

from wan.encoders.text import TextEncoder


class T5Text(TextEncoder):
    """Callable on a list of prompts -> hidden states [B, text_len, text_dim], of padding too: no model sees a mask."""

    network = "T5EncoderModel"

    def clean(self, prompt: str) -> str:
        """Returns the prompt as it is."""
        return prompt

    def encode(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Returns the hidden states of all tokens, padding included."""
        return self.hidden(ids_BT, None)
