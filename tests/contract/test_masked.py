"""A cached walk equals one masked forward over the whole clip: causal masks, and teacher forcing's."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from tests import tiny, tolerance
from tests.contract.oracle import Book
from wan.attention import masks
from wan.attention.masks import FrameMask
from wan.context import Cached, Masked
from wan.geometry import Geometry
from wan.ledger import CacheConfig, Ledger
from wan.transformer import RunInput

BATCH = 2
LENGTHS = (1, 3, 2, 3, 3, 1, 3)
POLICIES = [(-1, 0), (3, 0), (5, 2), (6, 0), (8, 5), (9, 2), (30, 4)]  # (window, sink) for chunks of 3
PASSES = 2 * len(LENGTHS)  # at most: a noisy and a clean one of each chunk


@functools.cache
def network(dtype):
    """Returns the model and the text; `tiny.DTYPE` is that of the test."""
    return tiny.denoiser(dtype=dtype), tiny.condition(BATCH, dtype=dtype)


def clip(seed: int, lengths=LENGTHS, geometry=tiny.GEOMETRY):
    return tiny.latents(sum(lengths), BATCH, seed, geometry=geometry)


def walked(config: CacheConfig, lengths=LENGTHS, noisy=None, sigma=0.7, storage=tiny.ring, geometry=tiny.GEOMETRY):
    """Returns the velocities (context passes, noisy passes) over the cache."""
    fields = {} if storage is tiny.kept_chunks else {"geometry": geometry}
    model, text = network(tiny.DTYPE)
    cache = storage(model, config, max(lengths), sum(lengths), BATCH, **fields)
    clean = clip(1, lengths, geometry)
    return tiny.walk(model, cache, tiny.spans(*lengths), clean, text, noisy, sigma)


@torch.no_grad()
def masked(mask: FrameMask, lengths=LENGTHS, positions=None, geometry=tiny.GEOMETRY) -> torch.Tensor:
    """Returns the velocities of one forward over the clean clip."""
    model, text = network(tiny.DTYPE)
    return tiny.healthy(model(clip(1, lengths, geometry), 0.0, text, Masked(mask, positions)))


@torch.no_grad()
def forced(mask: FrameMask, noisy, sigma, clean_sigma: float = 0.0) -> torch.Tensor:
    """Returns the noisy half's velocities of one forward over [clean | noisy]."""
    model, text = network(tiny.DTYPE)
    clean = RunInput(clip(1), torch.full((BATCH, sum(LENGTHS)), clean_sigma), "clean")
    return tiny.healthy(model(noisy, sigma, text, Masked(mask), clean))


@pytest.mark.parametrize("storage", [tiny.ring, tiny.kept_chunks], ids=["ring", "chunks"])
@pytest.mark.parametrize(("window", "sink"), POLICIES)
def test_written_rotation_is_one_masked_forward(window, sink, storage, bound):
    wanted = masked(masks.causal(tiny.spans(*LENGTHS), window, sink))
    assert tiny.error(walked(CacheConfig(window, sink), storage=storage)[0], wanted) < bound(PASSES)


@pytest.mark.parametrize("size", [(16, 16), (16, 80), (48, 32)])
def test_it_holds_at_any_resolution(size, bound):
    geometry = Geometry(*size, latent_channels=4)
    lengths, borders = (2, 2, 2), tiny.spans(2, 2, 2)
    wanted = masked(masks.causal(borders, 5, 1), lengths, geometry=geometry)
    assert wanted.shape[-2:] == geometry.latent_size
    assert tiny.error(walked(CacheConfig(5, 1), lengths, geometry=geometry)[0], wanted) < bound(PASSES)


@pytest.mark.parametrize(
    ("window", "sink", "lengths", "equal"),  # equal: frames before the first chunk that missed a frame
    [
        (-1, 0, (3, 3, 3), 9),
        (12, 0, (3, 3, 3, 3), 12),
        (6, 0, (3, 3, 3), 6),
        (9, 2, (3, 3, 3, 3), 9),
        (5, 2, (3, 3), 3),
    ],
)
def test_read_rotation_is_it_until_the_first_eviction(window, sink, lengths, equal, bound):
    wanted = masked(masks.causal(tiny.spans(*lengths), window, sink), lengths)
    given, _ = walked(CacheConfig(window, sink, "read"), lengths)
    assert tiny.error(given[:, :equal], wanted[:, :equal]) < bound(PASSES)
    # without a sink what is left moves as one, which the frames' distances do not show
    if equal < sum(lengths) and sink:
        assert tiny.error(given[:, equal:], wanted[:, equal:]) > max(tolerance.DIFFERENT, bound(PASSES))


def test_without_a_sink_both_rotations_agree(bound):
    """Distances are all that rotation knows, and history and chunk stay neighbours."""
    given, wanted = (walked(CacheConfig(6, 0, rope))[0] for rope in ("read", "write"))
    assert tiny.error(given, tiny.healthy(wanted)) < bound(PASSES)


def drop_sink(mask: FrameMask):
    return masks.causal(tiny.spans(*LENGTHS), 9 - 2, 0), None


def see_one_more_frame(mask: FrameMask):
    return masks.causal(tiny.spans(*LENGTHS), 9 + 1, 2), None


def see_the_future(mask: FrameMask):
    return FrameMask(mask.frames | mask.frames.T), None


def shift_a_position(mask: FrameMask):
    return mask, [*range(sum(LENGTHS) - 1), sum(LENGTHS)]


@pytest.mark.parametrize("mutate", [drop_sink, see_one_more_frame, see_the_future, shift_a_position])
def test_other_masks_and_positions_break_it(mutate, float64):
    mask, positions = mutate(masks.causal(tiny.spans(*LENGTHS), 9, 2))
    given, _ = walked(CacheConfig(9, 2))
    assert tiny.error(given, masked(mask, positions=positions)) > tolerance.DIFFERENT


def test_the_whole_clip_recomputed_in_the_window_alone_is_not_it(float64):
    """A frame's deep keys depend on frames that were evicted since; nobody may drop them and recompute."""
    lengths, window = (3, 3, 3), 6
    given, _ = walked(CacheConfig(window), lengths)
    model, text = network(tiny.DTYPE)
    with torch.no_grad():
        mask = masks.causal(tiny.spans(3, 3))
        alone = model(clip(1, lengths)[:, 3:], 0.0, text, Masked(mask, range(3, 9)))
    assert tiny.error(given[:, 6:], alone[:, 3:]) > tolerance.DIFFERENT


def noisy_clip():
    sigma = torch.tensor([[0.3], [0.9]]) * torch.linspace(0.6, 1, len(LENGTHS))
    return clip(2), sigma.repeat_interleave(torch.tensor(LENGTHS), 1)


@pytest.mark.parametrize(("window", "sink"), POLICIES)
def test_teacher_forcing_is_the_denoising_pass_over_clean_context(window, sink, bound):
    noisy, sigma = noisy_clip()
    _, given = walked(CacheConfig(window, sink), noisy=noisy, sigma=sigma)
    wanted = forced(masks.teacher_forcing(tiny.spans(*LENGTHS), window, sink), noisy, sigma)
    assert tiny.error(given, wanted) < bound(PASSES)


def skip_context_pass(monkeypatch):
    original = Cached.__init__

    def make(self, cache, span):
        original(self, cache, span)
        cache.write = lambda layer, plan, k, v: _stale(cache, layer, plan, k, v)

    monkeypatch.setattr(Cached, "__init__", make)


def _stale(cache, layer, plan, k, v):
    """Lets only the first pass of a chunk write its keys to the scratch."""
    if cache.__dict__.setdefault("entered", {}).get(layer) == plan.span:
        return cache.keys[layer][:, : k.shape[1]], cache.values[layer][:, : v.shape[1]]
    cache.entered[layer] = plan.span
    return type(cache).write(cache, layer, plan, k, v)


def forget_sink(monkeypatch):
    original = Ledger.__init__

    def make(self, config, *arguments):
        original(self, replace(config, sink_frames=0, window_frames=config.window_frames), *arguments)

    monkeypatch.setattr(Ledger, "__init__", make)


@pytest.mark.parametrize("mutate", [skip_context_pass, forget_sink])
def test_mutations_of_the_walk_break_teacher_forcing(mutate, monkeypatch, float64):
    noisy, sigma = noisy_clip()
    mutate(monkeypatch)
    _, given = walked(CacheConfig(9, 2), noisy=noisy, sigma=sigma)
    wanted = forced(masks.teacher_forcing(tiny.spans(*LENGTHS), 9, 2), noisy, sigma)
    assert tiny.error(given, wanted) > tolerance.DIFFERENT


def test_another_context_sigma_breaks_teacher_forcing(float64):
    noisy, sigma = noisy_clip()
    _, given = walked(CacheConfig(9, 2), noisy=noisy, sigma=sigma)
    mask = masks.teacher_forcing(tiny.spans(*LENGTHS), 9, 2)
    assert tiny.error(given, forced(mask, noisy, sigma, clean_sigma=0.05)) > tolerance.DIFFERENT


@pytest.mark.parametrize(("window", "sink"), POLICIES)
def test_masks_are_those_of_the_definition(window, sink):
    borders = tiny.spans(*LENGTHS)
    book = Book(window, sink, 3)
    assert torch.equal(masks.causal(borders, window, sink).frames, book.mask(borders).frames)
    forcing = masks.teacher_forcing(borders, window, sink).frames
    total = borders[-1].stop
    assert torch.equal(forcing[total:, :total], book.mask(borders, with_own=False).frames)
