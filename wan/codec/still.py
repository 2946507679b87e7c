"""A still picture before a video: where its latents become steady, and clips that begin behind one.

The first latent of a clip differs from the later ones of a picture that does not move; after seven of them it does
not change any more. So a portrait's latent is the steady one, and a decoder that has seen the still knows a past.
"""

from __future__ import annotations

import torch

STILL_FRAMES, STILL_LATENTS = 25, 7  # pixel frames, and the latents that they are
STEADY = 1e-3  # of the size of the latents: what changes less from one to the next is steady
LONGEST_STILL = 81  # pixel frames


def behind_still(picture_3HW: torch.Tensor, frames_P3HW: torch.Tensor, dropped: int) -> torch.Tensor:
    """Returns the clip behind its picture at rest: 25 frames that are a past, and `dropped` that a video leaves out."""
    still = picture_3HW.expand(STILL_FRAMES + dropped, -1, -1, -1)
    return torch.cat((still, frames_P3HW))


def split_still(latents_BFCHW: torch.Tensor, count: int = STILL_LATENTS) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (the steady latent [B, 1, C, h, w], the latents of what came behind the still)."""
    return latents_BFCHW[:, count - 1 : count], latents_BFCHW[:, count:]


@torch.no_grad()
def steady_latent(vae, pictures_B3HW: torch.Tensor) -> torch.Tensor:
    """Returns the latent [B, 1, C, h, w] of pictures at rest: encoded until it does not change any more."""
    stride = vae.strides[0]
    for frames in range(STILL_FRAMES, LONGEST_STILL + 1, 2 * stride):
        latents = vae.encode(pictures_B3HW[:, None].expand(-1, frames, -1, -1, -1))
        change = (latents[:, -1] - latents[:, -2]).abs().max()
        if change <= STEADY * latents[:, -1].abs().max():
            break
    return latents[:, -1:]


class PrimedDecoder:
    """A decoder whose streams begin behind a still: what was before the video is decoded and left out.

    The first latent frame becomes four pixel frames, of which three are left out: a video is as long as one that begins
    from nothing, and its first frame knows the still. See `wan/codec/base.py` for the face.
    """

    first_pixel_frames = 1

    def __init__(self, inner, still_B1CHW: torch.Tensor):
        """still: the latent of the portrait at rest, [B, 1, C, h, w]."""
        self.inner, self.still = inner, still_B1CHW.expand(-1, STILL_LATENTS, -1, -1, -1)
        self.strides, self.latent_channels = inner.strides, inner.latent_channels
        self.frames_per_pass, self.own_device = inner.frames_per_pass, inner.own_device

    def decode_stream(self, latents_BFCHW: torch.Tensor, state=None):
        """Decodes the next latents of a stream; `state` None starts one behind the still."""
        if state is not None:
            return self.inner.decode_stream(latents_BFCHW, state)
        _, state = self.inner.decode_stream(self.still.to(latents_BFCHW), None)
        pixels, state = self.inner.decode_stream(latents_BFCHW, state)
        return pixels[:, self.strides[0] - 1 :], state
