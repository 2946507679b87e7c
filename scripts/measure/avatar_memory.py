"""Arithmetic behind `estimate_memory.py avatar`: what each GPU of an avatar's generation holds, from sizes alone.

Weights are counted on the meta device, keys and values by the storages themselves, made there too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache

from scripts.measure.memory import BF16, TEXT_ENCODER, inside_block, part

SPEC, SIZE, STEPS, CHUNK, WINDOW = "s2v-14B", (704, 384), 4, 3, 12  # Live-Avatar: 4 steps, 3 + 9 latent frames
AUDIO_ENCODER = 315.4e6  # parameters of wav2vec2-large
VAE_CHANNELS, VAE_MAPS = 96, 6  # of the decoder's widest frames; how many of them live at a time
NOMINAL = {"80 GB": 80e9, "48 GB": 48e9, "24 GB": 24e9}


@dataclass(frozen=True)
class Layout:
    """One way to run. ranks: the denoising steps that each GPU holds; decoder: the GPU that decodes (-1: the last,
    next to its steps). The other fields are knobs of the model."""

    what: str
    card: str
    ranks: tuple[int, ...]
    decoder: bool = False
    linears: str = "weights"
    parts: bool = True
    blocks: bool = False
    caches: str = "device"

    @property
    def knobs(self) -> str:
        """The knobs that a user writes."""
        written = [f"model.linears={self.linears}"] if self.linears != "weights" else []
        written += [f"model.offload.{name}=true" for name in ("parts", "blocks") if getattr(self, name)]
        written.append("vae.dtype=bf16")
        return " ".join(written + ([f"model.offload.caches={self.caches}"] if self.caches != "device" else []))


LAYOUTS = (
    Layout("1 GPU, a ring for each step", "80 GB", (4,)),
    Layout("1 GPU", "80 GB", (4,), caches="staged"),
    Layout("1 GPU, fp8", "80 GB", (4,), linears="fp8"),
    Layout("1 GPU, fp8", "48 GB", (4,), linears="fp8", caches="cpu"),
    Layout("1 GPU, fp8, blocks swapped", "24 GB", (4,), linears="fp8", caches="cpu", blocks=True),
    Layout("2 GPUs, the last decodes too", "80 GB", (2, 2)),
    Layout("2 GPUs, fp8", "48 GB", (2, 2), linears="fp8"),
    Layout("3 GPUs", "80 GB", (2, 2), decoder=True),
    Layout("4 GPUs, the last decodes too", "80 GB", (1, 1, 1, 1)),
    Layout("5 GPUs", "80 GB", (1, 1, 1, 1), decoder=True),
    Layout("5 GPUs, fp8", "48 GB", (1, 1, 1, 1), decoder=True, linears="fp8"),
)


def title(row: dict) -> str:
    """Returns the line above a row's parts."""
    return f"{row['what']}, {row['card']}, {row['GPU']}   {row['knobs']}"


def rows() -> list[dict]:
    """Returns a row for each layout and kind of GPU in it: its parts {what, sum (the arithmetic), GB} and their sum."""
    made = []
    for layout in LAYOUTS:
        kinds = {f"steps: {steps}": steps for steps in layout.ranks}
        if layout.decoder:
            kinds["decoder"] = 0
        for kind, steps in kinds.items():
            parts = estimate(layout, steps)
            total = sum(part["GB"] for part in parts)
            row = {"GPU": kind, "parts": parts, "total": round(total, 3), "fits": total * 1e9 <= NOMINAL[layout.card]}
            made.append({**asdict(layout), "knobs": layout.knobs, **row})
    return made


def estimate(layout: Layout, steps: int) -> list[dict]:
    """Returns the parts of a GPU that holds so many denoising steps; of the one that only decodes for 0."""
    decodes = not layout.decoder or not steps
    parts = [*_transformer(layout, steps)] if steps else []
    if not layout.parts:
        parts.append(part("text encoder", TEXT_ENCODER * BF16, f"{TEXT_ENCODER / 1e9:.2f}e9 x {BF16}"))
    if steps:
        parts.append(part("audio encoder", AUDIO_ENCODER * BF16, f"{AUDIO_ENCODER / 1e6:.1f}e6 x {BF16}"))
    working = [working_memory()] if steps else []
    if decodes:
        parts.append(part("VAE", vae_values() * BF16, f"{vae_values() / 1e6:.1f}e6 x {BF16}"))
        working.append(inside_vae())
    return [*parts, max(working, key=lambda part: part["GB"])]


def _transformer(layout: Layout, steps: int):
    """Yields weights, keys and values, and text keys."""
    from pipeline.memory import weight_bytes
    from wan.family import find_published

    sizes = find_published(SPEC).transformer
    weights = weight_bytes(sizes, BF16, layout.linears, layout.blocks)
    whole = weight_bytes(sizes, 1)
    narrow = 2 * whole - weight_bytes(sizes, BF16, layout.linears)
    terms = f"{whole / 1e9:.3f}e9 x {BF16}"
    if narrow:
        terms = f"{(whole - narrow) / 1e9:.3f}e9 x {BF16} + {narrow / 1e9:.3f}e9 x 1"
    yield part("weights", weights, terms + ", all blocks but 3 in CPU memory" * layout.blocks)
    yield from storage_parts(steps, layout.caches)
    text = 2 * sizes.num_layers * sizes.text_len * sizes.dim * BF16
    yield part("text keys", text, f"2 x {sizes.num_layers} layers x {sizes.text_len} x {sizes.dim} x {BF16}")


@cache
def storage_bytes(steps: int, caches: str) -> dict[str, float]:
    """Returns the bytes on the device of the caches of so many steps, as these allocate them."""
    import torch

    from pipeline.memory import shapes
    from wan.cache import CacheShape, Ring
    from wan.family import find_published
    from wan.geometry import Geometry
    from wan.ledger import CacheConfig, Ledger
    from wan.staging import Staged

    spec = find_published(SPEC)
    geometry, sizes = Geometry.of(spec, *SIZE), spec.transformer
    pinned = shapes(sizes).pinned_runs(geometry.grid)
    shape = CacheShape(sizes.num_layers, 1, sizes.num_heads, sizes.head_dim, geometry.frame_tokens)
    ledger = Ledger(CacheConfig(WINDOW, content="same_step"), CHUNK, None, pinned)
    if caches == "device":
        ring = Ring(ledger, shape, "meta", torch.bfloat16)
        raw = ring.pinned(0)[0]
        return {"rings": steps * (ring.keys.nbytes + ring.values.nbytes), "raw": sizes.num_layers * raw.nbytes}
    at_home = caches == "cpu"
    staged = Staged(ledger, shape, MetaCopier(), "meta", torch.bfloat16, at_home)
    kept = 0 if at_home else steps * sum(x.nbytes for x in staged.home)
    buffers = sum(x.nbytes for pair in staged.work.buffers for x in pair)
    return {"rings": kept, "raw": sum(x.nbytes for x in staged.work.raw), "buffers": buffers}


class MetaCopier:
    """A copier whose CPU memory is not there."""

    def home(self, shape, dtype):
        """Returns a tensor without memory."""
        import torch

        return torch.zeros(shape, dtype=dtype, device="meta")


def storage_parts(steps: int, caches: str):
    """Yields the parts of the caches with their arithmetic."""
    from wan.family import find_published
    from wan.geometry import Geometry

    sizes = find_published(SPEC).transformer
    unit = Geometry.of(find_published(SPEC), *SIZE).frame_tokens
    found, pinned = storage_bytes(steps, caches), 5 * unit // 2
    width = f"{sizes.num_layers} layers x {sizes.dim} x {BF16}"
    tokens = WINDOW * unit + (pinned if caches == "device" else 0)
    if found["rings"]:
        yield part("keys and values", found["rings"], f"{steps} steps x 2 x {tokens} tokens x {width}")
    both = 1 if caches == "device" else 2
    yield part("pinned runs", found["raw"], f"{both} x {pinned} tokens x {width}")
    if "buffers" in found:
        terms = f"{1 + (caches == 'cpu')} x 2 x {WINDOW * unit + pinned} tokens x {sizes.dim} x {BF16}"
        yield part("working buffers", found["buffers"], terms)


def working_memory() -> dict:
    """Returns what one block of a chunk's pass keeps at a time."""
    from wan.family import find_published
    from wan.geometry import Geometry

    sizes = find_published(SPEC).transformer
    tokens = CHUNK * Geometry.of(find_published(SPEC), *SIZE).frame_tokens
    return inside_block("inside a block", tokens, sizes)


@cache
def vae_values() -> int:
    """Returns the number of the VAE's weights."""
    from wan.checkpoint.library import VAE_CONFIGS, build_vae

    return sum(weight.numel() for weight in build_vae(VAE_CONFIGS["vae 2.1"], "meta").parameters())


def inside_vae() -> dict:
    """Returns what decoding keeps at a time, at the widest: 4 pixel frames of a latent and 2 that are carried on."""
    height, width = SIZE
    size = VAE_MAPS * VAE_CHANNELS * (4 + 2) * height * width * BF16
    return part(
        "inside the VAE", size, f"{VAE_MAPS} maps x {VAE_CHANNELS} channels x 6 frames x {height} x {width} x {BF16}"
    )
