"""The ring's promises: static addresses, commits that move a chunk and nothing else, chunks that can be abandoned."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny, tolerance
from wan.cache import Ring
from wan.context import Cached
from wan.geometry import Span
from wan.ledger import CacheConfig

MODEL = tiny.denoiser()
TEXT = tiny.condition()
CHUNK = 3


class CopiedBytes(TorchDispatchMode):
    """Counts the bytes that copies, clones and concatenations write."""

    names = ("aten::copy_", "aten::clone", "aten::cat", "aten::stack", "aten::_to_copy", "aten::contiguous")

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.name().split(".")[0] in self.names:
            self.total += out.numel() * out.element_size()
        return out


def roll_video(config, num_chunks: int, visit=lambda cache, span: None, chunk: int = CHUNK):
    """Runs one denoising pass and the context pass per chunk; `visit` is called between them. Returns (cache, x)."""
    cache = tiny.ring(MODEL, config, chunk)
    noisy, clean = (tiny.latents(num_chunks * chunk, seed=seed) for seed in (1, 2))
    made = []
    for span in tiny.spans(*[chunk] * num_chunks):
        own = slice(span.start, span.stop)
        with torch.no_grad():
            made.append(MODEL(noisy[:, own], 0.7, TEXT, Cached(cache, span)))
            visit(cache, span)
            context = Cached(cache, span)
            MODEL(clean[:, own], 0.0, TEXT, context)
            context.commit()
    return cache, tiny.healthy(torch.cat(made, 1))


def record_views(monkeypatch) -> list:
    """Notes the address, offset, shape and stride of everything that `Ring.write` returns."""
    original, seen = Ring.write, []

    def write(self, layer, plan, k, v):
        views = original(self, layer, plan, k, v)
        seen.append((plan.span.start, layer, [(x.data_ptr(), x.storage_offset(), x.shape, x.stride()) for x in views]))
        return views

    monkeypatch.setattr(Ring, "write", write)
    return seen


@pytest.mark.parametrize("config", [CacheConfig(9, 2), CacheConfig(7, 0, "read"), CacheConfig(5, 2)], ids=str)
def test_addresses_are_static_once_the_window_is_full(config, monkeypatch):
    seen = record_views(monkeypatch)
    roll_video(config, 7)
    full = config.window_frames - CHUNK
    by_layer = [{str(views) for start, layer, views in seen if layer == n and start >= full} for n in range(2)]
    assert [len(views) for views in by_layer] == [1, 1]
    growing = {str(views) for start, layer, views in seen if layer == 0 and start < full}
    assert not growing & by_layer[0], "before that the view grows"


def test_views_are_views(monkeypatch):
    """Every pass reads one slice of the ring's own storage, contiguous along the tokens."""
    original = Ring.write

    def write(self, layer, plan, k, v):
        views = original(self, layer, plan, k, v)
        for view, store in zip(views, (self.keys, self.values), strict=True):
            assert view.untyped_storage().data_ptr() == store.untyped_storage().data_ptr()
            assert view.stride() == store[layer].stride()
            assert view.shape[1] == (len(plan.span) + len(plan.read)) * self.shape.frame_tokens
        return views

    monkeypatch.setattr(Ring, "write", write)
    roll_video(CacheConfig(9, 2), 4)


def check_commit(cache, plan) -> int:
    """Commits and returns how many of the committed frames' slots changed; others must keep their bits."""
    before = cache.keys.clone(), cache.values.clone()
    cache.commit(plan)
    changed = set()
    for old, new in zip(before, (cache.keys, cache.values), strict=True):
        frames = (old != new).any(-1).any(-1).any(0).any(0).unflatten(0, (-1, cache.shape.frame_tokens)).any(-1)
        changed |= set(frames.nonzero().flatten().tolist())
    assert changed == {cache.ledger.chunk_frames + slot for _, slot in plan.writes}
    return len(changed)


@pytest.mark.parametrize("config", [CacheConfig(9, 2), CacheConfig(12, 5), CacheConfig(4, 1), CacheConfig(3)], ids=str)
def test_commit_changes_the_named_slots_alone(config, monkeypatch):
    changed = []

    def commit(self):
        changed.append(check_commit(self.cache, self.plan))

    monkeypatch.setattr(Cached, "commit", commit)
    roll_video(config, 6)
    assert max(changed) == min(CHUNK, config.window_frames - CHUNK)


def bytes_per_chunk(window: int, sink: int = 2, rope: str = "write") -> tuple[int, int]:
    """Returns the bytes copied by the passes and by the commit of a chunk after the window is full."""
    cache, _ = roll_video(CacheConfig(window, sink, rope), -(-window // CHUNK) + 1)
    start = cache.ledger.next_frame
    context = Cached(cache, Span(start, start + CHUNK))
    with torch.no_grad(), CopiedBytes() as passes:
        MODEL(tiny.latents(CHUNK), 0.7, TEXT, context)
    with torch.no_grad(), CopiedBytes() as commits:
        context.commit()
    return passes.total, commits.total


def test_copied_bytes_do_not_depend_on_the_window():
    (passes, commits), long = bytes_per_chunk(12), bytes_per_chunk(36)
    assert (passes, commits) == long
    spec, tokens = MODEL.spec, CHUNK * tiny.GEOMETRY.frame_tokens
    assert commits == 2 * spec.num_layers * tokens * spec.dim * 4, "the chunk's keys and values, once"
    assert passes > commits, "the scratch is written too, so the count sees something"


def test_reading_rotation_copies_more_in_a_longer_window():
    """The twin of the count: rotated keys are a copy, and it shows; the commit stays what it was."""
    short, long = bytes_per_chunk(12, rope="read"), bytes_per_chunk(36, rope="read")
    assert long[0] > short[0] > bytes_per_chunk(12)[0]
    assert long[1] == short[1] == bytes_per_chunk(12)[1]


def abandon(cache, span, leak: bool = False):
    """Runs passes of the chunk over other noise, some of it shorter, and leaves them."""
    for length in (1, len(span)):
        part = Span(span.start, span.start + length)
        context = Cached(cache, part)
        MODEL(tiny.latents(length, seed=9), 0.4, TEXT, context)
        if leak:  # as a cache does that writes in place while it denoises
            book, cache.ledger.commit = cache.ledger.commit, lambda plan: None
            cache.commit(context.plan)
            cache.ledger.commit = book


@pytest.mark.parametrize("config", [CacheConfig(9, 2), CacheConfig(9, 2, "read"), CacheConfig(4, 1)], ids=str)
def test_an_abandoned_chunk_leaves_no_trace(config):
    cache, wanted = roll_video(config, 6)
    other, given = roll_video(config, 6, abandon)
    assert torch.equal(given, wanted)
    assert cache.ledger.state() == other.ledger.state()
    last = max(cache.ledger.slot_of)
    assert all(torch.equal(a, b) for a, b in zip(cache.frame(1, last), other.frame(1, last), strict=True))


@pytest.mark.parametrize("config", [CacheConfig(9, 2), CacheConfig(9, 2, "read")], ids=str)
def test_a_leak_shows(config):
    _, wanted = roll_video(config, 6)
    _, given = roll_video(config, 6, lambda cache, span: abandon(cache, span, leak=True))
    assert tiny.error(given, wanted) > tolerance.DIFFERENT


def test_a_ring_refuses_a_gradient():
    with pytest.raises(AssertionError, match="no gradient"):
        MODEL(tiny.latents(CHUNK), 0.5, TEXT, Cached(tiny.ring(MODEL, CacheConfig(9), CHUNK), Span(0, CHUNK)))
