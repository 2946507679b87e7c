"""What `scripts/benchmark.py infer` measures: the chunks of a causal video, from noise to pixels on the host.

Timed is the code that generates videos (`pipeline.causal`, `wan.codec.vae`), chunk by chunk after the window is full.
On CUDA the parts are separated by events on the stream, so that measuring adds no synchronisation.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

import wan.context
from pipeline.batch.request import KeyedNoise, Request
from pipeline.bundle import ModelBundle, build_decoder, load_bundle, place, set_knobs, set_linears
from pipeline.executor import PlainExecutor
from utils.counter import OTHER, CopiedBytes, count_allocations
from utils.media.image import to_uint8
from utils.precision import check_float8
from utils.rng import Rng
from wan.attention import dispatch
from wan.attention.call import AttentionCall
from wan.cache import Ring
from wan.checkpoint.library import VAE_CONFIGS, build_vae, load_vae
from wan.checkpoint.parts import find_parts
from wan.codec.vae import StreamingVAE
from wan.condition import Condition
from wan.encoders.text import DTYPES
from wan.family import find_published, get_family
from wan.flops import PassFlops, decode_flops, pass_flops
from wan.geometry import Geometry
from wan.rope import RotaryTable

VAE_FAMILY = {"Wan2.1_VAE.pth": "vae 2.1", "Wan2.2_VAE.pth": "vae 2.2"}
TIMED = ("denoise", "context", "decode", "end to end")
SCOPES = ("cache write", "commit", "rotated keys", "angle tables", OTHER, "decode")


def build_kit(config, random_weights: bool, layers: int | None, device: torch.device) -> tuple[ModelBundle, str]:
    """Returns (the model, what its weights are). Random ones need no file: speed does not depend on them.

    layers: keep only so many blocks. The VAE is that of the model's folder if it has one, random otherwise.
    """
    if not random_weights:
        bundle = load_bundle(config.model, config.vae, config.text, config.decoder)
        return bundle, f"{config.model.checkpoint or config.model.path} ({bundle.weights_hash})"
    spec = find_published(config.model.spec)
    spec = replace(spec, transformer=replace(spec.transformer, num_layers=layers or spec.transformer.num_layers))
    dtype = DTYPES[config.model.dtype]
    torch.manual_seed(config.seed)
    with torch.device(device):
        network = draw_zeros(get_family(spec.transformer).network(spec.transformer))
    if config.model.linears != "weights":
        check_float8(device, config.model.linears == "fp8_rows")
    network = set_linears(set_knobs(network.to(dtype), config.model), config.model)
    denoiser = place(get_family(spec.transformer).denoiser(network), config.model, device)
    folder = Path(config.model.path)
    path = find_parts(folder).vae if folder.is_dir() else None
    model = load_vae(path) if path else build_vae(VAE_CONFIGS[VAE_FAMILY[spec.vae_file]], device)
    torch.nn.Module.to(model, DTYPES[config.vae.dtype])  # diffusers' own `to` warns about a list that is empty
    vae = StreamingVAE(model.requires_grad_(False), config.vae).eval().to(device)
    decoder = build_decoder(config.decoder, vae, device)
    bundle = ModelBundle(spec, denoiser, vae, None, None, device, dtype, "random", decoder)
    bundle.offload = config.model.offload
    return bundle, f"random, VAE {path or 'random'}"


def draw_zeros(network: torch.nn.Module) -> torch.nn.Module:
    """Draws the weights that are zero in a fresh network (its last projection): zeros would be measured otherwise."""
    for weight in network.parameters():
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.xavier_uniform_(weight)
    return network


def attention_backend(config, bundle: ModelBundle) -> str:
    """Returns the backend that runs: the configured one, or what `auto` comes to for these heads on this device."""
    if config.model.attention.backend != "auto":
        return config.model.attention.backend
    spec = bundle.spec.transformer
    q = torch.empty(1, 1, spec.num_heads, spec.head_dim, device=bundle.device, dtype=bundle.dtype)
    return f"auto: {dispatch.chosen(AttentionCall(q, q, q))}"


@dataclass(frozen=True)
class TimedExecutor(PlainExecutor):
    """The executor, with marks before and after each part: `marks` = [(name, begin, end)] of the running chunk."""

    marks: list = field(default_factory=list)

    def denoise(self, *arguments):
        begin = mark(self.rollout.device)
        chunk = super().denoise(*arguments)
        self.marks.append(("denoise", begin, mark(self.rollout.device)))
        return chunk

    def commit(self, *arguments):
        begin = mark(self.rollout.device)
        super().commit(*arguments)
        self.marks.append(("context", begin, mark(self.rollout.device)))


def mark(device: torch.device):
    """Returns a point in time: an event on the CUDA stream, or the host's clock in seconds."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def milliseconds(begin, end) -> float:
    """Returns the time between two marks; waits for the second."""
    if isinstance(begin, float):
        return 1e3 * (end - begin)
    end.synchronize()
    return begin.elapsed_time(end)


class MeasuredVideo:
    """A batch of videos for the stopwatch; `advance` makes one chunk of each."""

    def __init__(self, config, bundle: ModelBundle, num_chunks: int):
        """num_chunks: how many `advance` can make, those that fill the window not counted."""
        self.bundle, self.batch, spec = bundle, config.batch, bundle.spec.transformer
        self.geometry = Geometry.of(bundle.spec, config.height, config.width)
        self.sampler = config.build_sampler()
        pipeline = config.pipeline.build(config.generation, bundle, self.sampler, self.geometry)
        self.executor = pipeline.executor = TimedExecutor(pipeline.rollout)
        window, self.chunk_frames = config.generation.cache.window_frames, config.generation.chunk
        total = pipeline.round_up(window + (num_chunks + 1) * self.chunk_frames)
        texts = (Rng(config.seed).normal((self.batch, spec.text_len, spec.text_dim), "text", i) for i in range(2))
        condition = Condition(*texts).to(bundle.device, bundle.dtype)
        requests = [Request("benchmark", 0, sample, "benchmark") for sample in range(self.batch)]
        self._noise = KeyedNoise(Rng(config.seed), requests, self.geometry.latent_shape(1)[1:], bundle.dtype)
        self._noise_ms, self._state = 0.0, None
        self.state = pipeline.start(self.batch, total)
        self._chunks = pipeline.generate(condition, self._draw, self.batch, total, state=self.state)

    def _draw(self, span, k):
        begin = time.perf_counter()
        noise = self._noise(span, k)
        self._noise_ms += 1e3 * (time.perf_counter() - begin)
        return noise

    @property
    def full(self) -> bool:
        """True when a commit must evict: from here on every chunk costs the same."""
        ledgers = [cache.ledger for branches in self.state.caches for cache in branches]
        return all(len(ledger.slot_of) == ledger.num_slots for ledger in ledgers)

    def fill(self) -> MeasuredVideo:
        """Generates chunks, undecoded, until the window is full."""
        while not self.full:
            next(self._chunks)
        return self

    def latents(self) -> torch.Tensor:
        """Returns the next chunk's latents [B, F, C, h, w]."""
        return next(self._chunks).latents

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Returns the chunk's pixels, uint8 [B, P, H, W, 3] on the host."""
        pixels, self._state = self.bundle.decoder.decode_stream(latents, self._state)
        return to_uint8(pixels)

    def advance(self) -> tuple[dict[str, float], int]:
        """Makes one chunk; returns its milliseconds by part, and its pixel frames (of all videos of the batch)."""
        self.executor.marks.clear()
        self._noise_ms, start = 0.0, time.perf_counter()
        latents = self.latents()
        begin = mark(self.bundle.device)
        pixels = self.decode(latents)
        marks = [*self.executor.marks, ("decode", begin, mark(self.bundle.device))]
        times = {"end to end": 1e3 * (time.perf_counter() - start), "noise drawing": self._noise_ms}
        return times | {name: milliseconds(a, b) for name, a, b in marks}, pixels.shape[0] * pixels.shape[1]

    @property
    def branches(self) -> int:
        """Forwards per step: 2 with guidance."""
        return len(self.state.caches[0])

    def flops(self) -> dict[str, object]:
        """Returns {pass: PassFlops, denoise, context, decode: operations of a chunk}; the window must be full."""
        ledger, unit = self.state.caches[0][0].ledger, self.geometry.frame_tokens
        keys = (len(ledger.slot_of) + self.chunk_frames) * unit
        one = pass_flops(self.bundle.spec.transformer, self.chunk_frames * unit, keys, self.batch)
        shape = (self.batch, *self.geometry.latent_shape(self.chunk_frames))
        return {
            "pass": one,
            "denoise": self.sampler.num_steps * self.branches * one.total,
            "context": 0 if self.state.same_step else self.branches * one.total,
            "decode": decode_flops(self.bundle.decoder, shape),
        }


@contextlib.contextmanager
def cache_scopes(copies: CopiedBytes):
    """A context: copies made by the cache are counted under the names of SCOPES.

    cache write: a pass's own keys and values into the scratch. commit: scratch to slots. rotated keys: what
    turning keys that lie in the cache writes (`rope: read`). angle tables: cosines and sines of a forward.
    decode: VAE and pixels to the host. other: activations, noise, casts.
    """
    write, rotate, stores = Ring.write, wan.context.rotate, set()

    def noted_write(self, *args):
        stores.add(self.keys.untyped_storage().data_ptr())
        return write(self, *args)

    def noted_rotate(x, *angles):
        in_cache = x.untyped_storage().data_ptr() in stores
        return copies.scoped("rotated keys", rotate)(x, *angles) if in_cache else rotate(x, *angles)

    with contextlib.ExitStack() as stack:
        for owner, name, wrapped in (
            (Ring, "write", copies.scoped("cache write", noted_write)),
            (Ring, "commit", copies.scoped("commit", Ring.commit)),
            (RotaryTable, "angles", copies.scoped("angle tables", RotaryTable.angles)),
            (wan.context, "rotate", noted_rotate),
            (MeasuredVideo, "decode", copies.scoped("decode", MeasuredVideo.decode)),
        ):
            stack.enter_context(patch.object(owner, name, wrapped))
        yield


def count_copies(make_chunk) -> tuple[dict[str, int], list[str]]:
    """Returns ({scope: bytes copied while `make_chunk()` runs}, names of the attention kernels seen)."""
    copies = CopiedBytes()
    with cache_scopes(copies), copies:
        make_chunk()
    found = Counter(copies.bytes)
    return {scope: found[scope] for scope in SCOPES}, sorted(copies.kernels)


def measure(config, bundle: ModelBundle, warmup: int, chunks: int, peak: float) -> dict:
    """Returns times, rates, operations, utilisation, memory, copies and allocations of the steady state."""
    video = MeasuredVideo(config, bundle, warmup + chunks + 2).fill()
    for _ in range(warmup):
        video.advance()
    flops = video.flops()
    if bundle.device.type == "cuda":
        torch.cuda.synchronize(bundle.device)
        torch.cuda.reset_peak_memory_stats(bundle.device)
    rows, frames = zip(*(video.advance() for _ in range(chunks)), strict=True)
    memory = peak_memory(bundle.device)
    copied, kernels = count_copies(video.advance)
    latents, network = count_allocations(video.latents, bundle.device)
    _, decoder = count_allocations(lambda: video.decode(latents), bundle.device)
    times = {name: [row[name] for row in rows] for name in rows[0]}
    total = {name: sum(values) / 1e3 for name, values in times.items()}
    network_seconds = total["denoise"] + total["context"]
    whole = flops["denoise"] + flops["context"] + flops["decode"]
    work = {**{name: flops[name] for name in TIMED[:-1]}, "end to end": whole}
    seconds = {"denoise": total["denoise"], "denoise + context": network_seconds, "end to end": total["end to end"]}
    return {
        "chunks": {"warm-up": warmup, "measured": chunks, "pixel frames each": frames[0]},
        "ms per chunk": {name: quantiles(values) for name, values in times.items()},
        "fps": {name: sum(frames) / value for name, value in seconds.items()},
        "tera-operations": _tera(flops["pass"], work),
        "MFU": {name: work[name] * chunks / total[name] / peak for name in TIMED},
        "peak memory": memory,
        "bytes copied per chunk": copied,
        "allocations per chunk": {"network": network, "decode": decoder},
        "attention kernels": kernels,
    }


def _tera(one: PassFlops, work: dict[str, int]) -> dict:
    per_pass = {name: value / 1e12 for name, value in vars(one).items()}
    return {"per pass": per_pass, "per chunk": {name: value / 1e12 for name, value in work.items()}}


def quantiles(values: list[float]) -> dict[str, float]:
    """Returns {p50, p95, mean}."""
    return {"p50": np.quantile(values, 0.5), "p95": np.quantile(values, 0.95), "mean": np.mean(values)}


def peak_memory(device: torch.device) -> dict[str, int]:
    """Returns bytes: of tensors in the measured chunks (CUDA), or resident in the process since its start (CPU)."""
    if device.type == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return {"CUDA allocated": allocated, "CUDA reserved": reserved}
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return {"resident (RSS)": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def compare_windows(config, bundle: ModelBundle, windows: list[int]) -> dict[str, dict[str, int]]:
    """Returns the bytes copied per chunk, undecoded, of each rotation and window: `rope: write, W = 12` -> scopes."""
    rows = {}
    for rope in ("write", "read"):
        for window in windows:
            cache = replace(config.generation.cache, window_frames=window, rope=rope)
            changed = replace(config, generation=replace(config.generation, cache=cache))
            rows[f"rope: {rope}, W = {window}"], _ = count_copies(MeasuredVideo(changed, bundle, 1).fill().latents)
    return rows
