"""Draws depend on their key alone: not on order, not on ranks, not on the process."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.rng import Recording, Rng, hash_key, seed_libraries

PARTS = st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=8))
KEYS = st.lists(PARTS, max_size=4).map(tuple)
SHAPE = (2, 3)


def _draws(rng: Rng, key) -> tuple[torch.Tensor, ...]:
    return (
        rng.normal(SHAPE, *key),
        rng.uniform(*key, shape=SHAPE),
        rng.integers(0, 1000, *key, shape=SHAPE),
        rng.permutation(9, *key),
    )


@given(keys=st.lists(KEYS, min_size=2, max_size=6, unique=True), data=st.data())
def test_draws_do_not_depend_on_the_order(keys, data):
    rng = Rng(7)
    first = {key: _draws(rng, key) for key in keys}
    for key in data.draw(st.permutations(keys)):
        assert all(torch.equal(a, b) for a, b in zip(first[key], _draws(rng, key), strict=True))


@given(a=KEYS, b=KEYS, seeds=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_equal_keys_and_only_they_give_equal_draws(a, b, seeds):
    same = torch.equal(Rng(seeds[0]).normal((16,), *a), Rng(seeds[1]).normal((16,), *b))
    assert same == ((seeds[0], a) == (seeds[1], b))


@given(count=st.integers(0, 9), world=st.integers(1, 6), key=KEYS)
def test_a_batch_does_not_depend_on_how_ranks_split_it(count, world, key):
    rng, indices = Rng(3), list(range(count))
    batches = {
        "normal": lambda part: rng.normal_batch(SHAPE, part, *key),
        "uniform": lambda part: rng.uniform_batch(SHAPE, part, *key),
        "integers": lambda part: rng.integers_batch(0, 9, part, *key, shape=SHAPE),
    }
    for name, draw in batches.items():
        whole = draw(indices)
        assert whole.shape == (count, *SHAPE)
        split = torch.empty_like(whole)
        for rank in range(world):
            split[rank::world] = draw(indices[rank::world])
        assert torch.equal(whole, split), name


def test_batch_rows_are_single_draws_and_differ():
    rng = Rng(1)
    batch = rng.normal_batch(SHAPE, [5, 0, 9], "sample", 2, "noise")
    assert torch.equal(batch[2], rng.at("sample", 2, "noise", 9).normal(SHAPE))
    assert not torch.equal(batch[0], batch[1])


@given(a=KEYS, b=KEYS)
def test_at_lengthens_the_key(a, b):
    assert torch.equal(Rng(0).at(*a).at(*b).normal(SHAPE), Rng(0).normal(SHAPE, *a, *b))


def test_shared_draws_are_apart():
    rng = Rng(0)
    draws = [rng.shared(1, "x"), rng.shared(2, "x"), rng.shared(1, "y"), rng.at("x", 1), rng.at("x", 2)]
    values = [tuple(source.normal((8,)).tolist()) for source in draws]
    assert len(set(values)) == len(values)


def test_keys_that_share_the_low_32_bits_differ():
    # torch's own CPU generator fails here: it drops the upper half of its seed.
    low = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5 + 2**32)
    assert torch.equal(*(torch.randn(16, generator=g) for g in low))
    assert not torch.equal(Rng(5).normal((16,)), Rng(5 + 2**32).normal((16,)))


def test_another_process_draws_the_same():
    code = (
        "from utils.rng import Rng; print(Rng(11).normal((4,), 'a', 1).tolist(), Rng(11).integers(0, 99, 'b').item())"
    )
    options = {"capture_output": True, "text": True, "check": True}
    printed = subprocess.run([sys.executable, "-c", code], **options).stdout.strip()
    assert printed == f"{Rng(11).normal((4,), 'a', 1).tolist()} {Rng(11).integers(0, 99, 'b').item()}"


def test_draws_are_pinned():
    """A finished run must stay reproducible: these numbers may change only with a note in the docs."""
    assert hash_key(0, "noise", 3) == 0x562985CC195DD06387BABBA241D2CD3F
    assert Rng(0).integers(0, 1_000_000, "noise", 3) == 894720
    assert Rng(0).normal((3,), "noise", 3).tolist() == [-1.4850035905838013, 0.8722714781761169, 1.2685840129852295]


def test_draws_follow_their_laws():
    rng = Rng(0)
    normal, uniform = rng.normal((200_000,), "n"), rng.uniform("u", shape=(200_000,))
    whole = rng.integers(-2, 3, "i", shape=(200_000,))
    assert normal.dtype == uniform.dtype == torch.float32 and whole.dtype == torch.int64
    assert abs(normal.mean()) < 0.01 and abs(normal.std() - 1) < 0.01 and abs((normal**4).mean() - 3) < 0.1
    assert 0 <= uniform.min() and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.005
    counts = torch.bincount(whole + 2) / len(whole)
    assert len(counts) == 5 and (counts - 0.2).abs().max() < 0.01
    assert sorted(rng.permutation(50, "p").tolist()) == list(range(50))
    assert rng.normal((), "s").shape == rng.uniform("s").shape == rng.integers(0, 2, "s").shape == ()


def test_neighbouring_keys_are_uncorrelated():
    draws = Rng(0).normal_batch((10_000,), range(20), "x")
    off_diagonal = torch.corrcoef(draws) - torch.eye(20)
    assert off_diagonal.abs().max() < 0.05


@pytest.mark.parametrize("part", [1.0, True, None, torch.tensor(1.5), b"x"])
def test_what_is_no_key_is_refused(part):
    with pytest.raises(ValueError, match="use ints and strings only"):
        Rng(0).normal(SHAPE, part)


def test_integers_need_a_range():
    for draw in (Rng(0), Recording([torch.tensor(1)])):
        with pytest.raises(ValueError, match="upper end"):
            draw.integers(3, 3, "x")


def test_seed_libraries_repeats_library_draws():
    def weights(seed):
        seed_libraries(Rng(seed))
        return torch.nn.Linear(4, 4).weight.detach()

    with torch.random.fork_rng():
        assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


@settings(max_examples=25)
@given(counts=st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_recording_answers_like_rng(counts):
    """What Rng drew, replayed by Recording through the same calls, is the same."""

    def run(source):
        drawn = []
        for step, n in enumerate(counts):
            drawn += [
                source.shared(step, "exit").integers(0, 4),
                source.normal_batch(SHAPE, range(n), "sample", step),
                source.at("sigma", step).uniform(shape=(2,)),
                source.at("order").permutation(5, step),
                source.uniform_batch((), range(n), step),
                source.integers_batch(0, 4, range(n), step),
            ]
        return drawn

    drawn = run(Rng(4))
    recording = Recording(drawn)
    assert all(torch.equal(a, b) for a, b in zip(drawn, run(recording), strict=True))
    recording.finish()


def test_recording_is_strict():
    with pytest.raises(ValueError, match=r"draw 0 .*'noise', 2.* shape \[3, 2\], asked for is \[2, 3\]"):
        Recording([torch.zeros(3, 2)]).normal(SHAPE, "noise", 2)
    with pytest.raises(ValueError, match="only 0 were recorded"):
        Recording([]).uniform()
    with pytest.raises(ValueError, match="int64, asked for are floats"):
        Recording([torch.zeros(2, dtype=torch.int64)]).normal((2,))
    with pytest.raises(ValueError, match="asked for are integers"):
        Recording([torch.zeros(())]).integers(0, 2)
    with pytest.raises(ValueError, match=r"lies in \[1, 7\], asked for is \[0, 7\)"):
        Recording([torch.tensor([1, 7])]).integers(0, 7, shape=(2,))
    with pytest.raises(ValueError, match="lies in"):
        Recording([torch.tensor(1.0)]).uniform()
    half = Recording([torch.zeros(1), torch.zeros(1)])
    half.normal((1,))
    with pytest.raises(ValueError, match="1 of 2 recorded draws"):
        half.finish()


def test_recording_reshapes_only_when_told():
    flat = torch.arange(12.0).reshape(6, 2)
    drawn = Recording([flat], reshape=True).normal_batch((3, 2), [0, 1], "x")
    assert torch.equal(drawn, flat.reshape(2, 3, 2))
    with pytest.raises(ValueError, match="shape"):
        Recording([flat], reshape=True).normal((5, 2))
    drawn += 1
    assert flat[0, 0] == 0  # a draw written into leaves the recording as it was
