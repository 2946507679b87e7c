"""The layout of a sequence: sizes, rows, parts and orders, and that unequal runs and orders change no number."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from tests import tiny, tolerance
from tests.examples.pinned import PAST, past_input
from wan import sequence
from wan.attention import masks
from wan.attention.masks import FrameMask
from wan.context import Full, Masked
from wan.ledger import CacheConfig
from wan.rope import RotaryTable
from wan.sequence import WholeSequence
from wan.tokens import Run, TokenLayout, spread
from wan.transformer import RunInput

MODEL = tiny.denoiser(dtype=torch.float64)
TEXT = tiny.condition(2, dtype=torch.float64)
X = tiny.latents(4, 2, dtype=torch.float64)
SIGMA = torch.tensor([[0.2, 0.9, 0.5, 0.7], [0.7, 0.7, 0.1, 0.4]], dtype=torch.float64)
VIDEO = Run("video", range(4), range(2), range(3), range(2, 6))
COARSE = replace(PAST, sigma=(0, 1), cached=False)
UNEVEN = TokenLayout((COARSE, VIDEO))  # 2 x 3 tokens, then 4 x 6


@pytest.fixture(autouse=True)
def nothing_remembered():
    """Lists of a layout are made once per size; what a fault made must not outlive it."""
    sequence._index.cache_clear()
    yield
    sequence._index.cache_clear()


def shuffled(frames: int, rows: int, columns: int) -> list[int]:
    """A random permutation of a run's tokens, the same for the same size."""
    return random.Random(f"{frames} {rows} {columns}").sample(range(frames * rows * columns), frames * rows * columns)


def within_frames(frames: int, rows: int, columns: int) -> list[int]:
    """The same, each frame's tokens among themselves."""
    one = shuffled(1, rows, columns)
    return [frame * len(one) + token for frame in range(frames) for token in one]


def test_sizes_of_runs_and_layout():
    assert (VIDEO.num_frames, VIDEO.grid, VIDEO.frame_tokens, VIDEO.num_tokens) == (4, (2, 3), 6, 24)
    assert (UNEVEN.num_frames, UNEVEN.num_tokens, UNEVEN.unit, UNEVEN.num_units) == (6, 30, 3, 10)
    assert (UNEVEN.output, UNEVEN.is_even) == (1, False)
    assert [UNEVEN.tokens(n) for n in (0, 1)] == [slice(0, 6), slice(6, 30)]
    assert TokenLayout((COARSE,)).output is None
    assert UNEVEN.only(1).unit == 3 and UNEVEN.only(1).num_units == 8


def test_a_layout_is_a_value():
    same = TokenLayout((Run("motion", [-5, -1], [0.5], [0, 2, 5], [0, 1]), replace(VIDEO)))
    assert same == UNEVEN and hash(same) == hash(UNEVEN)
    moved = TokenLayout((replace(COARSE, times=(7, 8)), VIDEO))
    assert moved != UNEVEN and moved.plain == UNEVEN.plain, "sizes alone"
    with pytest.raises(ValueError, match="'film' is not a kind of token run; write one of .*'reference'"):
        Run("film", range(1), range(1), range(1))


def test_rows_of_modulation_follow_the_greatest_common_divisor():
    assert UNEVEN.modulation_rows == (0, 1, 2, 2, 3, 3, 4, 4, 5, 5)
    assert TokenLayout((replace(VIDEO, sigma=range(4)),)).modulation_rows is None, "one row per frame fits"
    one_sigma = [replace(run, sigma=(0,) * run.num_frames) for run in UNEVEN.runs]
    assert TokenLayout(tuple(one_sigma)).modulation_rows is None, "one row fits all"
    mixed = TokenLayout((VIDEO,), order=shuffled)
    assert mixed.modulation_rows == tuple(2 + token // 6 for token in shuffled(4, 2, 3))


def test_a_rank_asks_which_tokens_it_has():
    parts = [replace(UNEVEN, share=(rank, 3)) for rank in range(3)]
    assert all(part.frame_of_token == (0, 1, 2, 2, 3, 3, 4, 4, 5, 5) for part in parts), "an equal part of each frame"
    assert parts[0].tokens(1) == slice(2, 10)
    parts = [replace(UNEVEN, order=shuffled, share=(rank, 3)).frame_of_token for rank in range(3)]
    whole = [frame for unit in range(10) for part in parts for frame in part[unit : unit + 1]]
    places = [*shuffled(2, 1, 3), *(6 + token for token in shuffled(4, 2, 3))]
    assert whole == [token // 3 if token < 6 else 2 + (token - 6) // 6 for token in places]


def test_orders():
    layout = TokenLayout((VIDEO, replace(COARSE, cached=True)), order=shuffled)
    frame = shuffled(1, 1, 3)
    assert layout.permutation == (*shuffled(4, 2, 3), *(24 + t for t in frame), *(27 + t for t in frame))
    assert [layout.permutation[place] for place in layout.inverse] == list(range(30))
    assert layout.mixes_frames and not replace(layout, order=within_frames).mixes_frames
    assert not replace(layout, runs=(replace(VIDEO, cached=True),)).mixes_frames, "a cache keeps frames apart"
    with pytest.raises(ValueError, match="must name each of them once"):
        print(replace(layout, order=lambda *size: [0] * 24).permutation)


@pytest.mark.parametrize(
    ("over", "count", "wanted"),
    [
        (44, 22, [0, 2, 4, *range(6, 42, 2), 43]),
        (44, 11, [0, 4, 8, 12, 17, 21, 25, 30, 34, 38, 43]),
        (24, 6, [0, 4, 9, 13, 18, 23]),
        (160, 40, None),
        (7, 1, [0]),
    ],
)
def test_spread_positions_are_the_published_ones(over, count, wanted):
    given = spread(count, over)
    assert wanted is None or list(given) == wanted
    assert given == tuple(torch.linspace(0, over - 1, count, dtype=torch.float64).int().tolist())
    assert spread(4, 16, start=-19) == (-19, -14, -9, -4)


def test_spread_in_single_precision_is_off_by_one():
    narrow = torch.linspace(0, 159, 40, dtype=torch.float32).int().tolist()
    assert spread(40, 160) != tuple(narrow)


def test_angles_of_a_layout_are_those_of_its_tokens():
    """Negative, fractional and spread positions, one token at a time."""
    table = RotaryTable(16)
    cos, sin = table.angles(UNEVEN, "cpu", torch.float64)
    tokens = [(t, r, c) for run in UNEVEN.runs for t in run.times for r in run.rows for c in run.columns]
    each = [table((t,), ((r,), (c,)), "cpu", torch.float64) for t, r, c in tokens]
    assert torch.equal(cos, torch.cat([one[0] for one in each])) and torch.equal(sin, torch.cat([o[1] for o in each]))
    ordered = table.angles(replace(UNEVEN, order=shuffled), "cpu", torch.float64)[0]
    assert torch.equal(ordered, cos[list(replace(UNEVEN, order=shuffled).permutation)])
    assert tiny.error(ordered, cos) > 0.1


def test_masks_of_frames_of_unequal_size():
    mask = FrameMask(torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) > 0.5)
    frames = [0] * 3 + [1] * 3 + [frame for frame in range(2, 6) for _ in range(6)]
    assert mask.dense(UNEVEN, UNEVEN, "cpu").tolist() == [[bool(mask.frames[a, b]) for b in frames] for a in frames]
    ordered = replace(UNEVEN, order=shuffled)
    places = list(ordered.permutation)
    assert torch.equal(mask.dense(ordered, UNEVEN, "cpu"), mask.dense(UNEVEN, UNEVEN, "cpu")[places])


def past() -> RunInput:
    """Two coarse frames that are not clean, each with its own sigma."""
    x = tiny.draw("past", shape=(2, 2, 4, 2, 6), dtype=torch.float64)
    return replace(past_input(x), sigma=torch.tensor([[0.1, 0.3], [0.2, 0.6]], dtype=torch.float64))


@torch.no_grad()
def velocity(context=None, order=None, before=(), sigma=SIGMA, condition=TEXT) -> torch.Tensor:
    """Returns the velocity of the clip after other runs, processed in an order."""
    MODEL.transformer.sequence = WholeSequence(order)
    found = MODEL.transformer((*before, RunInput(X, sigma)), condition, context or Full())
    MODEL.transformer.sequence = WholeSequence()
    return tiny.healthy(found)


def by_token(monkeypatch):
    """One modulation row for every single token, written out."""

    def rows(self):
        rows = [row for run in self.runs for row in run.sigma for _ in range(run.frame_tokens)]
        return tuple(rows)

    monkeypatch.setattr(TokenLayout, "modulation_rows", property(rows))


def test_runs_of_unequal_frames_are_modulated_like_single_tokens(monkeypatch):
    given = velocity(before=[past()])
    with monkeypatch.context() as patch:
        by_token(patch)
        sequence._index.cache_clear()
        assert tiny.error(given, velocity(before=[past()])) < tolerance.EXACT
    sequence._index.cache_clear()
    swapped = replace(past(), sigma=past().sigma.flip(1))
    assert tiny.error(given, velocity(before=[swapped])) > 1e-3, "each frame has its own sigma"
    assert tiny.error(given, velocity()) > 1e-2, "the run is attended to"


def test_a_row_per_stretch_too_long_shows(monkeypatch):
    """The twin: rows as if all frames were equally large."""
    given = velocity(before=[past()])
    wrong = property(lambda self: (0, 0, 1, 1, 2, 2, 3, 3, 4, 5) if len(self.runs) == 2 else None)
    monkeypatch.setattr(TokenLayout, "modulation_rows", wrong)
    sequence._index.cache_clear()
    assert tiny.error(given, velocity(before=[past()])) > 1e-3


def test_positions_of_a_run_are_its_own():
    given, moved = velocity(before=[past()]), past()
    for axis in range(3):
        places = [list(axis_places) for axis_places in moved.positions]
        places[axis] = [place + 2 for place in places[axis]]
        assert tiny.error(given, velocity(before=[replace(moved, positions=tuple(places))])) > 1e-4
    shifted = Full([frame + 10 for frame in range(4)])
    places = ([time + 10 for time in moved.positions[0]], *moved.positions[1:])
    given_again = velocity(shifted, before=[replace(moved, positions=places)])
    assert tiny.error(given, given_again) < tolerance.EXACT, "only distances count"


MASK = FrameMask(torch.block_diag(torch.ones(2, 2), masks.causal(tiny.spans(1, 3)).frames) > 0)
MASK.frames[2:, :2] = True  # the video sees the past


@pytest.mark.parametrize("context", [Full, lambda: Masked(MASK)], ids=["full", "masked"])
@pytest.mark.parametrize("sigma", [SIGMA, SIGMA[:, :1]], ids=["per frame", "per sample"])
@pytest.mark.parametrize("order", [shuffled, within_frames])
def test_an_order_of_tokens_changes_nothing(order, sigma, context):
    wanted = velocity(context(), None, [past()], sigma)
    assert tiny.error(velocity(context(), order, [past()], sigma), wanted) < tolerance.EXACT


@pytest.mark.parametrize("rope", ["write", "read"])
@pytest.mark.parametrize("storage", [tiny.ring, tiny.kept_chunks], ids=["ring", "chunks"])
def test_an_order_of_tokens_changes_nothing_in_a_cache(storage, rope):
    spans, clean = tiny.spans(1, 3, 2, 3), tiny.latents(9, dtype=torch.float64)
    walks = []
    for order in (None, shuffled):
        MODEL.transformer.sequence = WholeSequence(order)
        cache = storage(MODEL, CacheConfig(6, 2, rope), 3)
        walks.append(tiny.walk(MODEL, cache, spans, clean, tiny.condition(dtype=torch.float64), clean.flip(1)))
    MODEL.transformer.sequence = WholeSequence()
    assert all(tiny.error(a, tiny.healthy(b)) < tolerance.EXACT for a, b in zip(*walks, strict=True))


def test_the_order_is_asked_everywhere(monkeypatch):
    """The twins: angles, masks or rows that do not know of it."""
    context = Masked(MASK)
    wanted = velocity(context, None, [past()])
    plain = RotaryTable.angles
    faults = {
        "angles": (RotaryTable, "angles", lambda self, layout, *rest: plain(self, replace(layout, order=None), *rest)),
        "rows": (TokenLayout, "mixes_frames", property(lambda self: False)),
        "join": (WholeSequence, "join", lambda self, x, layout: x),
    }
    for owner, name, fault in faults.values():
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fault)
            sequence._index.cache_clear()
            assert tiny.error(velocity(context, shuffled, [past()]), wanted) > 1e-3, name
    dense = FrameMask.dense

    def unordered(self, queries, keys, device):
        return dense(self, *(replace(layout, order=None) for layout in (queries, keys)), device)

    monkeypatch.setattr(FrameMask, "dense", unordered)
    assert tiny.error(velocity(Masked(MASK), shuffled, [past()]), wanted) > 1e-3


def test_what_does_not_fit_is_refused():
    wrong = replace(past(), positions=((-5, -1), (0,), (0, 1)))
    with pytest.raises(ValueError, match=r"positions for 2 x \(1, 2\) tokens given for a motion run of 2 x \(1, 3\)"):
        velocity(before=[wrong])
    with pytest.raises(ValueError, match="two runs of kind video given"):
        velocity(before=[RunInput(X, SIGMA)])
    with pytest.raises(ValueError, match=r"a mask of \(4, 4\) frames was given for \(6, 6\) frames"):
        velocity(Masked(masks.causal(tiny.spans(1, 3))), before=[past()])


def test_block_masks_hide_the_same_tokens():
    """FlexAttention's rule for a pair of tokens, with frames alike, unequal and out of order; and its twin."""
    from torch.nn.attention.flex_attention import create_mask

    from wan.attention.call import AttentionCall
    from wan.attention.flex import Flex

    mask = FrameMask(torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) > 0.5)
    even = tiny.layout(6, 5)
    for queries, keys in ((UNEVEN, UNEVEN), (even, UNEVEN), (replace(UNEVEN, order=shuffled), even)):
        q = torch.zeros(1, 30, 2, 16)
        rule = Flex()._block_mask(AttentionCall(q, q, q, 0, queries, keys, mask)).mask_mod
        given = create_mask(rule, None, None, 30, 30, device="cpu")[0, 0]
        assert torch.equal(given, mask.dense(queries, keys, "cpu"))
        assert not torch.equal(given, mask.dense(even, even, "cpu"))
