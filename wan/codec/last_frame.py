"""The last pixel frame of a clip without decoding the whole clip.

The loss window of a long rollout needs it. The blocks at the full frame rate are most of a decoder's work and look few
frames back: they run on the last latents only, the blocks before them on every latent. The frame equals that of the
whole decode.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class Pass(nn.Module):
    """Identity placeholder for blocks that this part skips."""

    def forward(self, x, *_, **__):
        return x


def last_frame_features(model, x_BCFHW: torch.Tensor) -> torch.Tensor:
    """Returns the last frame [B, C, 1, H, W] of diffusers' `AutoencoderKLWan`, from its decoder's input.

    It is not clamped, and where the model folds pixels into channels it is not yet unfolded.
    """
    frames = x_BCFHW.split(1, 2)
    for part, needed in decoder_parts(model.decoder, model.config.scale_factor_temporal):
        cache = [None] * len(list(part.modules()))  # at least one place for each convolution
        last = frames[-needed:] if needed else frames
        frames = [part(x, feat_cache=cache, feat_idx=[0], first_chunk=n == 0) for n, x in enumerate(last)]
    return frames[-1][:, :, -1:]


def decoder_parts(decoder, stride: int) -> list[tuple[nn.Module, int]]:
    """Returns the decoder in parts that share its weights, each with the number of last latents it needs (0: all).

    stride: frames per latent at the full rate. A part that begins late has no past, so its first
    frames are wrong: as many as its convolutions and those of the parts after it look back.
    """
    blocks = len(decoder.up_blocks)
    doubling = [n for n, block in enumerate(decoder.up_blocks) if any(hasattr(m, "time_conv") for m in block.modules())]
    full_rate = range(max(doubling, default=-1) + 1, blocks)  # one part each; the first part is all before
    borders = [0, *full_rate, blocks]
    parts = [_part(decoder, begin, end) for begin, end in zip(borders[:-1], borders[1:], strict=True)]
    frames, needed = 1, []
    for part in reversed(parts[1:]):
        frames += sum(m.kernel_size[0] - 1 for m in part.modules() if isinstance(m, nn.Conv3d))
        needed.append(-(-frames // stride))
    return list(zip(parts, [0, *reversed(needed)], strict=True))


def _part(decoder, begin: int, end: int) -> nn.Module:
    """Returns the decoder with some of its upsampling blocks; the first part has its entry, the last its exit."""
    part = copy.copy(decoder)
    part._modules = dict(decoder._modules)  # a copy of the module shares them with the decoder
    part.up_blocks = decoder.up_blocks[begin:end]
    if begin:
        part.conv_in = part.mid_block = Pass()
    if end < len(decoder.up_blocks):
        part.norm_out = part.nonlinearity = part.conv_out = Pass()
    return part
