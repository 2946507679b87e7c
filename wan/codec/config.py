"""Knobs of decoders, without torch; `DECODERS` names them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class VAEDecoderConfig:
    """The model's own VAE decodes, as the section `vae` says."""

    def build(self, vae, device):
        """Returns the decoder. vae: the model's. device: where the model runs."""
        return vae
