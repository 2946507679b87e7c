"""Kind J: the umT5 text encoder and the two VAEs, under our faces over the library models."""

from __future__ import annotations

import torch

from tests.parity.case import Case
from wan.checkpoint.encoder_maps import text_to_transformers, vae_to_diffusers
from wan.checkpoint.library import build_text_model, build_vae
from wan.checkpoint.weights import load_strict
from wan.codec.vae import StreamingVAE, decode_features
from wan.encoders.text import TextEncoder

BUCKET_RANGE = 200


@torch.no_grad()
def run(case: Case) -> dict[str, torch.Tensor]:
    """Runs whichever encoder the case's configuration describes."""
    return run_text(case) if "num_buckets" in case.config["config"] else run_vae(case)


def run_text(case: Case) -> dict[str, torch.Tensor]:
    """Hidden states of stored ids, as they are and as the video model gets them; the position buckets."""
    model = build_text_model(case.config["config"]).to(case.dtype)
    load_strict(model, text_to_transformers(case.weights), case.name)
    ids, mask = case.inputs["ids"], case.inputs["mask"]
    encoder = TextEncoder(model, None, ids.shape[1])
    attention = model.encoder.block[0].layer[0].SelfAttention
    relative = torch.arange(-BUCKET_RANGE, BUCKET_RANGE + 1)
    return {
        "hidden": encoder.hidden(ids, mask),
        "prompt_embeds_zero_padded": encoder.encode(ids, mask),
        f"bucket_table_rel_-{BUCKET_RANGE}..{BUCKET_RANGE}": attention._relative_position_bucket(relative),
    }


def run_vae(case: Case) -> dict[str, torch.Tensor]:
    """Encodes the video; decodes the latent at once and, where the case records it, as a stream."""
    config = dict(case.config["config"])
    for name in ("latent_mean", "latent_std"):
        config[name] = case.inputs[name].tolist() if name in case.inputs else case.config[name]
    model = build_vae(config, "meta").eval()
    load_strict(model, vae_to_diffusers(case.weights), case.name, assign=True)
    vae = StreamingVAE(model)
    video, latent = case.inputs["video"], case.inputs["latent"]
    x = model.post_quant_conv(vae.denormalise(latent.transpose(1, 2)))
    whole, _ = decode_features(model, x)  # not clamped, as recorded
    out = {
        "encoded_mu_normalised": vae.encode(video.transpose(1, 2)).transpose(1, 2),
        "encoded_mu_raw": model.encode(video).latent_dist.mode(),
        "decoded": whole,
    }
    if sizes := case.config.get("stream_chunks_in_latent_frames"):
        state, pieces = None, []
        for part in x.split(sizes, 2):
            pixels, state = decode_features(model, part, state)
            pieces.append(pixels)
        out |= {f"stream_chunk_{i}": pixels for i, pixels in enumerate(pieces)}
        out["stream_minus_full_maxabs"] = (torch.cat(pieces, 2) - whole).abs().max()
    return out
