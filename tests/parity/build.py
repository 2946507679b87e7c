"""Builds our objects from what a case records."""

from __future__ import annotations

import torch

from tests.parity.case import Case
from wan.audio.transformer import S2VTransformer
from wan.cache import CacheShape, Ring
from wan.condition import Condition
from wan.family import get_family
from wan.ledger import CacheConfig, Ledger
from wan.schedule import NUM_TRAIN_TIMESTEPS
from wan.spec import S2V_SPECS, S2VSpec, TransformerSpec
from wan.transformer import WanTransformer


def transformer(config: dict, weights: dict) -> WanTransformer:
    """Our transformer with a case's weights; the CLIP width comes from their shapes."""
    image = weights.get("img_emb.proj.1.weight")
    spec = TransformerSpec.from_config({**config, "image_dim": 0 if image is None else image.shape[1]})
    model = WanTransformer(spec).to(next(iter(weights.values())).dtype)
    model.load_state_dict(weights)
    if model.dtype == torch.float64:
        _round_times(model)
    return model.eval().requires_grad_(False)


def s2v_transformer(config: dict, weights: dict):
    """Our S2V transformer with a case's weights."""
    measured = get_family(S2V_SPECS["s2v-14B"].transformer).measure(weights)
    model = S2VTransformer(S2VSpec.from_config({**config, **measured})).to(next(iter(weights.values())).dtype)
    model.load_state_dict(weights)
    if model.dtype == torch.float64:
        _round_times(model)
    return model.eval().requires_grad_(False)


def frames(latents: torch.Tensor) -> torch.Tensor:
    """Recorded latents [C, F, h, w] or [1, C, F, h, w] as ours: [1, F, C, h, w]."""
    return (latents if latents.ndim == 5 else latents[None]).transpose(1, 2)


def features(audio_ALCT: torch.Tensor) -> torch.Tensor:
    """Recorded features of A speakers as a condition holds them: [1, A, T, L, C]."""
    return audio_ALCT.permute(0, 3, 1, 2)[None]


def padded(context_TC: torch.Tensor, room: int) -> torch.Tensor:
    """A stored prompt embedding, zero-padded to text_len."""
    return torch.nn.functional.pad(context_TC, (0, 0, 0, room - context_TC.shape[0]))


def _round_times(model: WanTransformer) -> None:
    """Gives the network its timesteps rounded to fp32, as the recordings do in float64 too."""
    embed = model.embed_time

    def embed_rounded(sigma_BF):
        times = (sigma_BF.double() * NUM_TRAIN_TIMESTEPS).to(torch.float32)
        return embed(times.double() / NUM_TRAIN_TIMESTEPS)

    model.embed_time = embed_rounded


def text(case: Case, batch: int) -> torch.Tensor:
    """The stored prompt embeddings context_i, each zero-padded to text_len, as [B, T, width]."""
    room = case.config["config"]["text_len"]
    rows = [case.inputs[f"context_{i}"] for i in range(batch)]
    return torch.stack([torch.nn.functional.pad(r, (0, 0, 0, room - r.shape[0])) for r in rows])


def ring(model: WanTransformer, cache: CacheConfig, chunk: int, batch: int, frame_tokens: int, max_frames=None):
    """A ring cache for `model`."""
    spec = model.spec
    shape = CacheShape(spec.num_layers, batch, spec.num_heads, spec.head_dim, frame_tokens)
    return Ring(Ledger(cache, chunk, max_frames), shape, dtype=model.dtype)


def condition(case: Case, batch: int) -> Condition:
    """The case's text as a condition."""
    return Condition(text(case, batch))
