"""The tiny model of the tests: 2 blocks, 2 x 3 tokens a frame, seeded, every weight away from zero.

A fresh Wan transformer predicts zero (its last projection is zero), so it would agree with anything.
Here every weight is drawn: modulation, head, norms and biases too, and `healthy` asserts that what is
compared has the size of a real output.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from pipeline.executor import PlainExecutor
from pipeline.rollout import Chunk, Rollout
from pipeline.sampler import FewStep
from pipeline.state import RolloutState
from pipeline.track import Fixed, Track
from tests import tolerance
from wan.audio.transformer import S2VTransformer
from wan.cache import CacheShape, Chunks, Ring
from wan.condition import Condition
from wan.context import Cached
from wan.denoiser import Denoiser
from wan.geometry import Geometry, Span
from wan.ledger import CacheConfig, Ledger
from wan.schedule import Schedule
from wan.spec import S2VSpec, TransformerSpec
from wan.tokens import Run, TokenLayout
from wan.transformer import WanTransformer

SPEC = TransformerSpec(
    dim=32, ffn_dim=48, freq_dim=16, in_dim=4, out_dim=4, num_heads=2, num_layers=2, text_dim=10, text_len=5
)
GEOMETRY = Geometry(32, 48, latent_channels=4)
S2V_SPEC = S2VSpec(
    **(vars(SPEC) | {"model_type": "s2v"}), audio_dim=6, audio_layers=3, num_audio_token=2, audio_inject_layers=(0, 1)
)
S2V_GEOMETRY = Geometry(64, 64, latent_channels=4)  # the least that motion patches tile
SIGMAS = (1.0, 0.6)
DTYPE = torch.float32  # of what is made here, unless told otherwise; the fixtures `float64` and `bound` change it


def draw(*key, shape, dtype=None) -> torch.Tensor:
    """Returns normal numbers that depend on the key alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype or DTYPE)


def transformer(seed: int = 0, dtype=None, **changes) -> WanTransformer:
    """Returns a frozen transformer of `SPEC` (fields changed by `changes`) with drawn weights."""
    return filled(WanTransformer(replace(SPEC, **changes)), seed, dtype)


def filled(model: WanTransformer, seed: int = 0, dtype=None) -> WanTransformer:
    """Returns the model frozen, with drawn weights."""
    model = model.to(dtype or DTYPE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            values = draw(seed, name, shape=weight.shape, dtype=torch.float64)
            norm = ".norm" in name or name in ("img_emb.proj.0.weight", "img_emb.proj.4.weight")
            if norm and name.endswith("weight"):
                values = 1.2 + 0.3 * values
            elif weight.ndim > 1 and not name.endswith("modulation"):
                values = values * (weight[0].numel() ** -0.5)
            else:
                values = 0.4 * values
            weight.copy_(values)
    return model.eval().requires_grad_(False)


def denoiser(seed: int = 0, dtype=None, **changes) -> Denoiser:
    """Returns the transformer of the same arguments behind the network face."""
    return Denoiser(transformer(seed, dtype, **changes))


def s2v_denoiser(seed: int = 0, dtype=None, **changes) -> Denoiser:
    """Returns an S2V transformer of `S2V_SPEC` with drawn weights behind the network face."""
    return Denoiser(filled(S2VTransformer(replace(S2V_SPEC, **changes)), seed, dtype))


def avatar(batch: int = 1, frames: int = 9, speakers: int = 1, seed: int = 0, dtype=None, **fields) -> Condition:
    """Returns text, portrait, pose and the sound of a video of so many frames; several speakers have a mask each."""
    (_, channels, rows, columns), grid = S2V_GEOMETRY.latent_shape(1), S2V_GEOMETRY.grid
    shapes = {
        "reference": (1, channels, rows, columns),
        "motion": (19, channels, rows, columns),
        "pose": (frames, channels, rows, columns),
        "audio": (speakers, 4 * frames, S2V_SPEC.audio_layers, S2V_SPEC.audio_dim),
    }
    if speakers > 1:
        shapes["speakers"] = (speakers, 1, *grid)
    drawn = {
        name: torch.stack([draw(seed, name, i, shape=shape, dtype=dtype) for i in range(batch)])
        for name, shape in shapes.items()
    }
    return condition(batch, seed, dtype, **(drawn | fields))


def condition(batch: int = 1, seed: int = 0, dtype=None, num_tokens: int = 4, **fields) -> Condition:
    """Returns text and negative text; sample i does not depend on the batch."""
    shape = (num_tokens, SPEC.text_dim)
    text, null = (
        torch.stack([draw(seed, name, i, shape=shape, dtype=dtype) for i in range(batch)]) for name in ("text", "null")
    )
    return Condition(text, null, **fields)


def latents(num_frames: int, batch: int = 1, seed: int = 0, dtype=None, geometry=GEOMETRY) -> torch.Tensor:
    """Returns normal latents [B, F, C, h, w]; sample i does not depend on the batch."""
    shape = geometry.latent_shape(num_frames)
    return torch.stack([draw(seed, "latents", i, shape=shape, dtype=dtype) for i in range(batch)])


def noise(batch: int = 1, seed: int = 0, dtype=None, geometry=GEOMETRY):
    """Returns noise(span, k) -> [B, F, C, h, w] as a rollout asks for it."""

    def of(span: Span, k: int) -> torch.Tensor:
        shape = geometry.latent_shape(len(span))
        return torch.stack([draw(seed, "noise", span.start, k, i, shape=shape, dtype=dtype) for i in range(batch)])

    return of


def spans(*lengths: int) -> list[Span]:
    """Returns adjacent spans of these lengths from frame 0."""
    borders = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    return [Span(a, b) for a, b in zip(borders[:-1], borders[1:], strict=True)]


def ring(model: Denoiser, config: CacheConfig, chunk_frames: int, max_frames=None, batch: int = 1, geometry=GEOMETRY):
    """Returns an empty inference cache for the model, in the dtype of its weights."""
    ledger = Ledger(config, chunk_frames, max_frames)
    return Ring(ledger, _cache_shape(model, batch, geometry), dtype=model.transformer.dtype)


def kept_chunks(model: Denoiser, config: CacheConfig, chunk_frames: int, max_frames=None, batch: int = 1) -> Chunks:
    """Returns an empty training cache for the model."""
    return Chunks(Ledger(config, chunk_frames, max_frames), _cache_shape(model, batch, GEOMETRY))


def rollout(model: Denoiser, cache: CacheConfig, sigmas=SIGMAS, guidance: float = 1.0, **fields) -> Rollout:
    """Returns a few-step rollout of the model in the dtype of its weights."""
    sampler = FewStep(sigmas, Schedule(), guidance)
    fields = {"geometry": GEOMETRY, "dtype": model.transformer.dtype, **fields}
    return Rollout(model, sampler, cache=cache, **fields)


def start(rolls: Rollout, borders, batch: int = 1, given=(), max_frames: int | None = None) -> RolloutState:
    """Returns the state at the start of a video of these chunks; given: chunks before them."""
    spans = [*borders, *(chunk.span for chunk in given)]
    return rolls.start(batch, max(map(len, spans)), max_frames or max(span.stop for span in spans))


def generate(rolls: Rollout, track: Track, borders, noise, batch: int = 1, given=(), **fields) -> Iterator[Chunk]:
    """Yields the chunks of a video."""
    state = start(rolls, borders, batch, given, **fields)
    return PlainExecutor(rolls).run(state, track, borders, noise, given)


def video(rolls: Rollout, condition: Condition, borders, noise, **fields) -> torch.Tensor:
    """Returns all frames of a rollout [B, F, C, h, w]."""
    made = generate(rolls, Fixed(condition), borders, noise, condition.text.shape[0], **fields)
    return torch.cat([chunk.latents for chunk in made], 1)


@torch.no_grad()
def walk(model: Denoiser, cache, borders, clean, condition, noisy=None, sigma=0.7):
    """Walks a clip through a cache: per chunk a pass over `noisy` at `sigma`, then the context pass over `clean`.

    Returns the velocities of all frames [B, F, C, h, w]: of the context passes, and of the noisy ones (or None).
    """
    contexts, noisies = [], []
    for span in borders:
        own = slice(span.start, span.stop)
        if noisy is not None:
            at = sigma[:, own] if isinstance(sigma, torch.Tensor) else sigma
            noisies.append(model(noisy[:, own], at, condition, Cached(cache, span)))
        context = Cached(cache, span)
        contexts.append(model(clean[:, own], 0.0, condition, context))
        context.commit()
    return torch.cat(contexts, 1), torch.cat(noisies, 1) if noisies else None


def rounding(passes: int = 1, dtype=torch.float32) -> float:
    """Returns `tolerance.rounding` of values that went through so many passes of the network one after the other.

    The widest sums are over 126 keys; bf16 is summed in fp32. In series stand 15 sums a layer (three norms, six
    projections, two scores, two softmaxes, two sums of values) and six of embedding and head.
    """
    terms = 1 if dtype == torch.bfloat16 else 21 * GEOMETRY.frame_tokens
    return tolerance.rounding(terms, (15 * SPEC.num_layers + 6) * passes, dtype=dtype)


def layout(num_frames: int, frame_tokens: int = 1, **fields) -> TokenLayout:
    """Returns the layout of one video run at positions 0, 1, 2 ..."""
    return TokenLayout((Run("video", range(num_frames), range(1), range(frame_tokens)),), **fields)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Returns the largest absolute difference; not-a-number counts as infinite."""
    assert a.shape == b.shape, f"{tuple(a.shape)} against {tuple(b.shape)}"
    return (a.double() - b.double()).abs().nan_to_num(nan=float("inf")).max().item()


def healthy(x: torch.Tensor) -> torch.Tensor:
    """Returns x after asserting that it is finite and of the size of a real output."""
    assert x.isfinite().all()
    assert 0.2 < x.detach().float().std() < 5, f"standard deviation {x.detach().float().std():.3g}"
    return x


def _cache_shape(model: Denoiser, batch: int, geometry: Geometry) -> CacheShape:
    spec, tokens = model.spec, model.frame_tokens(geometry.grid)
    return CacheShape(spec.num_layers, batch, spec.num_heads, spec.head_dim, tokens)
