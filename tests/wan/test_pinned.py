"""Pinned runs: a prefill pass and a cache are one masked forward; their keys are kept raw and rotated when read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests import tiny, tolerance
from tests.contract.oracle import ForgetfulText
from tests.examples.pinned import PAST, past_input, prefill
from wan import cache as storages
from wan.attention.call import AttentionCall
from wan.attention.dispatch import attend
from wan.attention.masks import FrameMask, causal, teacher_forcing
from wan.cache import CacheShape, Chunks, Ring
from wan.context import Cached, Masked, Prefill, Recached
from wan.geometry import Geometry, Span
from wan.ledger import CacheConfig, Ledger
from wan.sequence import WholeSequence
from wan.transformer import RunInput

GEOMETRY = Geometry(32, 96, latent_channels=4)  # 2 x 6 tokens a frame; the pinned frames have 1 x 3
MODEL = tiny.denoiser(dtype=torch.float64)
BATCH, LENGTHS = 2, (1, 3, 2, 3, 3)
BORDERS, TOTAL = tiny.spans(*LENGTHS), sum(LENGTHS)
TEXT = tiny.condition(BATCH, dtype=torch.float64)
CLIP = tiny.latents(TOTAL, BATCH, dtype=torch.float64, geometry=GEOMETRY)
NOISY = CLIP.flip(1)
FRAMES = tiny.draw("past", shape=(BATCH, 2, 4, 2, 6), dtype=torch.float64)
PINNED = past_input(FRAMES)
POLICIES = [(-1, 0), (6, 2), (3, 0), (5, 2)]


def empty(storage=Ring, config=None, pinned=(PAST,)):
    """Returns an empty cache with room for the pinned run."""
    ledger = Ledger(config or CacheConfig(6, 2), 3, TOTAL, pinned)
    shape = CacheShape(2, BATCH, 2, MODEL.spec.head_dim, GEOMETRY.frame_tokens)
    return storage(ledger, shape, dtype=torch.float64) if storage is Ring else storage(ledger, shape)


def filled(storage=Ring, config=None):
    """Returns a cache after its prefill pass."""
    cache = empty(storage, config)
    prefill(MODEL, cache, PINNED, TEXT)
    return cache


def walk(cache, borders=BORDERS):
    """Returns the velocities of context passes and noisy passes."""
    return tiny.walk(MODEL, cache, borders, CLIP, TEXT, NOISY)


def beside_the_past(mask: FrameMask, pinned: int = 2) -> FrameMask:
    """The past sees itself, and everything sees the past."""
    frames = torch.block_diag(torch.ones(pinned, pinned), mask.frames) > 0
    frames[pinned:, :pinned] = True
    return FrameMask(frames)


@torch.no_grad()
def one_forward(window: int, sink: int, noisy: bool = False, pinned: RunInput = PINNED) -> torch.Tensor:
    """Returns the velocities of one masked forward over [past | clip], or [past | clip | noisy clip]."""
    runs, make = [pinned, RunInput(CLIP, torch.zeros(BATCH, 1))], causal
    if noisy:
        runs[1] = replace(runs[1], kind="clean")
        runs, make = [*runs, RunInput(NOISY, torch.full((BATCH, 1), 0.7, dtype=torch.float64))], teacher_forcing
    return tiny.healthy(MODEL.transformer(runs, TEXT, Masked(beside_the_past(make(BORDERS, window, sink)))))


@pytest.mark.parametrize("storage", [Ring, Chunks])
@pytest.mark.parametrize(("window", "sink"), POLICIES)
def test_prefill_and_cache_are_one_masked_forward(window, sink, storage):
    given, noisy = walk(filled(storage, CacheConfig(window, sink)))
    assert tiny.error(given, one_forward(window, sink)) < tolerance.EXACT
    assert tiny.error(noisy, one_forward(window, sink, noisy=True)) < tolerance.EXACT


def test_before_an_eviction_reading_rotation_is_the_same():
    given, noisy = walk(filled(config=CacheConfig(TOTAL + 3, 0, "read")))
    assert tiny.error(given, one_forward(-1, 0)) < tolerance.EXACT
    assert tiny.error(noisy, one_forward(-1, 0, noisy=True)) < tolerance.EXACT


def test_other_pinned_runs_are_another_forward():
    wanted = one_forward(6, 2)
    given = walk(filled())[0]
    shifted = replace(PINNED, positions=((-4, -1), *PINNED.positions[1:]))
    for other in (shifted, replace(PINNED, sigma=PINNED.sigma + 0.3), replace(PINNED, x=FRAMES.flip(1))):
        assert tiny.error(one_forward(6, 2, pinned=other), wanted) > 1e-3
    mask = Masked(causal(BORDERS, 6, 2))
    with torch.no_grad():
        assert tiny.error(MODEL(CLIP, 0.0, TEXT, mask), given) > 1e-2, "the past is attended to"


class SlowOracle:
    """Every frame's and pinned run's raw keys in a list, rotated as complex numbers one by one."""

    cached, times = True, range

    def __init__(self, kept, frames, places):
        """kept: per layer [(k, v)] of what is visible. places: [(times, rows, columns)] of each, then of the span."""
        self.kept, self.frames, self.places = kept, frames, places
        self.text, self.own = ForgetfulText(), {}

    def open(self, layout, table, device, dtype):
        """Returns itself as the view."""
        return self

    def attend(self, layer, q, k, v, config):
        """Rotates queries and every key by its own place."""
        self.own[layer] = (k, v)
        pairs = [*self.kept[layer], (k, v)]
        k = torch.cat([rotated(pair[0], places) for pair, places in zip(pairs, self.places, strict=True)], 1)
        return attend(AttentionCall(rotated(q, self.places[-1]), k, torch.cat([pair[1] for pair in pairs], 1)), config)


def rotated(x, places):
    """Rotates [B, L, N, E] by the angles of (times, rows, columns), one axis position at a time."""
    times, rows, columns = places
    width, theta = x.shape[-1], MODEL.spec.rope_theta
    side = 2 * (width // 6)
    widths = (width - 2 * side, side, side)
    angles = [
        [place[axis] * theta ** (-2 * i / size) for axis, size in enumerate(widths) for i in range(size // 2)]
        for place in ((t, r, c) for t in times for r in rows for c in columns)
    ]
    angles = torch.tensor(angles, dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angles), angles)[None, :, None]
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)


def moved(number: int) -> tuple:
    """The pinned run at other positions in every chunk, on all axes."""
    return (replace(PAST, times=(-5 + 7 * number, 30.5), rows=(number,), columns=(1, 2, 9 - number)),)


@torch.no_grad()
def moving_walk(cache, move=moved):
    """Returns the context passes' velocities, the pinned run elsewhere in every chunk."""
    made = []
    for number, span in enumerate(BORDERS):
        context = Cached(cache, span, move(number))
        made.append(MODEL(CLIP[:, span.start : span.stop], 0.0, TEXT, context))
        context.commit()
    return torch.cat(made, 1)


@torch.no_grad()
def slow_walk(rope: str):
    """The same written out over slow lists: window 6, sink 2."""
    grid = (range(2), range(6))
    past = SlowOracle([[], []], 2, [(PAST.times, PAST.rows, PAST.columns)])
    MODEL.transformer((PINNED,), TEXT, past)
    frames, made = [{}, {}], []
    for number, span in enumerate(BORDERS):
        begin = range(span.start)
        visible = [*begin[:2], *begin[2:][-1:]] if span.start > 2 else list(begin)
        places = [*visible, *range(span.start, span.stop)]
        places = range(len(places)) if rope == "read" else places
        (run,) = moved(number)
        context = SlowOracle(
            [[past.own[layer], *(frames[layer][f] for f in visible)] for layer in (0, 1)],
            len(span),
            [(run.times, run.rows, run.columns), *(((places[i],), *grid) for i in range(len(visible)))]
            + [(places[len(visible) :], *grid)],
        )
        made.append(MODEL(CLIP[:, span.start : span.stop], 0.0, TEXT, context))
        for layer in (0, 1):
            pairs = zip(*(x.chunk(len(span), 1) for x in context.own[layer]), strict=True)
            frames[layer] |= dict(zip(range(span.start, span.stop), pairs, strict=True))
    return tiny.healthy(torch.cat(made, 1))


@pytest.mark.parametrize("storage", [Ring, Chunks])
@pytest.mark.parametrize("rope", ["write", "read"])
def test_pinned_runs_that_move_are_rotated_anew(rope, storage):
    wanted = slow_walk(rope)
    assert tiny.error(moving_walk(filled(storage, CacheConfig(6, 2, rope))), wanted) < tolerance.EXACT
    assert tiny.error(moving_walk(filled(storage, CacheConfig(6, 2, rope)), lambda n: moved(0)), wanted) > 1e-4


def rotated_once(monkeypatch):
    """Keys that stay at the first chunk's positions."""

    def turn(self, layer, plan, *angles):
        self._rotated_at[layer] = plan.pinned if self._rotated_at[layer] else None
        return write(self, layer, plan, *angles)

    write = Ring.write
    monkeypatch.setattr(Ring, "write", turn)


def kept_rotated(monkeypatch):
    """Keys that are kept as the prefill pass rotated them."""
    keep = Ring.pin
    positions = (PAST.times, PAST.rows, PAST.columns)
    monkeypatch.setattr(Ring, "pin", lambda self, layer, k, v: keep(self, layer, rotated(k, positions), v))


def behind_the_slots(monkeypatch):
    """The layout of the keys says that pinned runs come last."""
    runs = Ring.key_runs
    monkeypatch.setattr(Ring, "key_runs", lambda *args: tuple(sorted(runs(*args), key=lambda run: run.kind != "video")))


@pytest.mark.parametrize("mutate", [rotated_once, kept_rotated])
def test_faults_show_when_written(mutate, monkeypatch):
    wanted = slow_walk("write")
    mutate(monkeypatch)
    assert tiny.error(moving_walk(filled()), wanted) > 1e-4


@pytest.mark.parametrize("mutate", [kept_rotated, behind_the_slots])
def test_faults_show_when_read(mutate, monkeypatch):
    wanted = slow_walk("read")
    mutate(monkeypatch)
    assert tiny.error(moving_walk(filled(config=CacheConfig(6, 2, "read"))), wanted) > 1e-4


@pytest.mark.parametrize("rope", ["write", "read"])
def test_a_pass_reads_one_view_of_the_ring(rope, monkeypatch):
    """[scratch | pinned | sink | history], contiguous: nothing is joined, and steady chunks rotate nothing anew."""
    write, seen = Ring.write, []

    def noted(self, layer, plan, *args):
        views = write(self, layer, plan, *args)
        for view, store in zip(views, (self.keys, self.values), strict=True):
            assert view.untyped_storage().data_ptr() == store.untyped_storage().data_ptr()
        assert views[0].shape[1] == (len(plan.span) + len(plan.read)) * 12 + 6
        seen.append((layer, views[0].storage_offset()))
        return views

    cache = filled(config=CacheConfig(6, 2, rope))
    walk(cache)
    monkeypatch.setattr(Ring, "write", noted)
    rotations = []
    monkeypatch.setattr(storages, "rotate", lambda *args: rotations.append(1))
    for _ in range(2):
        with torch.no_grad():
            MODEL(CLIP[:, :3], 0.0, TEXT, Cached(cache, Span(TOTAL, TOTAL + 3)))
    assert len(set(seen)) == 2, "one address per layer"
    assert not rotations, "pinned keys that stay where they are"


def test_without_pinned_runs_a_ring_is_what_it_was():
    cache, other = empty(pinned=()), empty()
    assert other.keys.numel() - cache.keys.numel() == 2 * BATCH * 6 * MODEL.spec.dim
    assert cache._raw.numel() == 0 and "pinned" not in cache.ledger.state() and cache.snapshot() == {}


@pytest.mark.parametrize("storage", [Ring, Chunks])
@pytest.mark.parametrize("rope", ["write", "read"])
def test_a_snapshot_holds_them(storage, rope):
    config = CacheConfig(6, 2, rope)
    cache = filled(storage, config)
    walk(cache, BORDERS[:3])
    state = cache.ledger.state(), cache.snapshot()
    wanted = walk(cache, BORDERS[3:])[0]
    fresh = empty(storage, config)
    fresh.restore(*state)
    assert torch.equal(walk(fresh, BORDERS[3:])[0], wanted)
    assert fresh.ledger.pinned == cache.ledger.pinned == (PAST,)
    lost = {name: torch.zeros_like(x) if name == "pinned_keys" else x for name, x in state[1].items()}
    fresh = empty(storage, config)
    fresh.restore(state[0], lost)
    assert tiny.error(walk(fresh, BORDERS[3:])[0], wanted) > 1e-4, "the twin: keys that were not saved"


@pytest.mark.parametrize("kind", ["reset", "rewind", "bidirectional"])
def test_they_stay_where_the_video_is_recached(kind):
    """Both storages agree after each kind of recache, and hold the pinned keys bit for bit."""
    made = []
    for storage in (Ring, Chunks):
        cache = filled(storage)
        walk(cache, BORDERS[:4])
        before = [x.clone() for x in cache.pinned(1)]
        prefill(MODEL, cache, PINNED, TEXT)  # under the new condition, which here is the old one
        if kind == "bidirectional":
            context = Recached(cache)
            with torch.no_grad():
                MODEL(CLIP[:, list(context.plan.frames)], 0.0, TEXT, context)
                context.commit()
        elif kind == "reset":
            cache.reset()
        else:
            start = cache.rewind().start
            walk(cache, [Span(max(span.start, start), span.stop) for span in BORDERS[:4] if span.stop > start])
        assert all(torch.equal(a, b) for a, b in zip(cache.pinned(1), before, strict=True))
        made.append(walk(cache, BORDERS[4:])[0])
    assert tiny.error(made[0], tiny.healthy(made[1])) < tolerance.EXACT


def test_an_order_of_tokens_changes_nothing():
    wanted = walk(filled())[0]
    MODEL.transformer.sequence = WholeSequence(lambda f, r, c: [t * 5 % (f * r * c) for t in range(f * r * c)])
    given = [walk(filled(storage))[0] for storage in (Ring, Chunks)]
    MODEL.transformer.sequence = WholeSequence()
    assert all(tiny.error(each, wanted) < tolerance.EXACT for each in given)


def test_a_checkpointed_pass_with_gradient_reads_what_was_there():
    """Another prefill between forward and backward does not reach what is recomputed."""
    found = []
    for checkpointing in (False, True):
        model = tiny.denoiser(dtype=torch.float64).requires_grad_(True)
        model.transformer.checkpointing = checkpointing
        cache = empty(Chunks)
        prefill(model, cache, PINNED, TEXT)
        with torch.enable_grad():
            out = model(CLIP[:, :1], 0.7, TEXT, Cached(cache, BORDERS[0]))
        prefill(model, cache, replace(PINNED, x=-FRAMES), TEXT)
        out.square().sum().backward()
        found.append([w.grad for w in model.parameters()])
    assert max(tiny.error(a, b) for a, b in zip(*found, strict=True)) < tolerance.EXACT


def test_what_does_not_fit_is_refused():
    cache = empty()
    with pytest.raises(ValueError, match=r"the pinned runs \['motion'\] are not written: run Prefill first"):
        Cached(cache, BORDERS[0])
    other = replace(PINNED, positions=((-1,), *PINNED.positions[1:]), x=FRAMES[:, :1])
    with pytest.raises(ValueError, match=r"pinned runs \[\('motion', 1, \(1, 3\)\)\] .* made for \[\('motion', 2,"):
        prefill(MODEL, cache, other, TEXT)
    with pytest.raises(ValueError, match="a pinned run has no frame of the video: give it positions"):
        prefill(MODEL, cache, replace(PINNED, positions=None), TEXT)
    cache = filled()
    with pytest.raises(ValueError, match="made for"):
        Cached(cache, BORDERS[0], (replace(PAST, times=(1,)),))
    with torch.no_grad():
        MODEL.transformer((PINNED,), TEXT, Prefill(cache))
    with pytest.raises(ValueError, match="are not written"):
        Cached(cache, BORDERS[0])
