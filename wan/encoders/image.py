"""A picture to CLIP tokens, as Wan 2.1 i2v reads them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures CLIP was trained on
STD = (0.26862954, 0.26130258, 0.27577711)


class ImageEncoder(nn.Module):
    """Callable on pixels [B, 3, H, W] in [-1, 1] -> tokens [B, 257, 1280] (ViT-H/14).

    The tokens are the output of the last layer but one, without the final norm.
    Source: Wan2.1 wan/modules/clip.py.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Encodes pictures of any size; the aspect ratio is not kept (as upstream)."""
        if pixels_BCHW.ndim != 4 or pixels_BCHW.shape[1] != 3:
            raise ValueError(f"pictures are [B, 3, H, W] in [-1, 1]; given {tuple(pixels_BCHW.shape)}")
        weight = next(self.model.parameters())
        x = self.prepare(pixels_BCHW.to(weight.device)).to(weight.dtype)
        return self.model(pixel_values=x, output_hidden_states=True).hidden_states[-2]

    def prepare(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Resizes to the encoder's square (bicubic, no antialiasing) and normalises; fp32."""
        size = self.model.config.image_size
        x = functional.interpolate(pixels_BCHW.float(), (size, size), mode="bicubic", align_corners=False)
        return ((x * 0.5 + 0.5) - self.mean) / self.std


def load_image_encoder(path: str | Path, dtype: torch.dtype | None = None, device="cpu") -> ImageEncoder:
    """Returns the image encoder from models_clip_*.pth or a transformers folder; dtype None keeps the file's."""
    from wan.checkpoint.library import load_image_model

    return ImageEncoder(load_image_model(path, dtype)).to(device)
