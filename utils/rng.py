"""Keyed randomness: a draw is a function of what is drawn, never of who draws it or when.

A key is a sequence of ints and strings, e.g. `("sample", step, "noise", index, chunk, k)`. Two draws with one key
are equal, on any rank, in any order, in any process; draws with different keys are independent.

Generator: numpy's counter-based Philox under a 128-bit key. Not torch's: its CPU generator keeps only the low 32
bits of a seed, so among 500,000 keyed draws some thirty pairs would share their noise; and its normal_ takes
another path for small tensors and for other CPU instruction sets.
"""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np
import torch

Key = int | str
KEY_BYTES = 16
INT64_LIMIT = 1 << 63


def hash_key(*key: Key) -> int:
    """Returns the 128-bit hash of a key, equal in every process and on every machine.

    Ints and strings are told apart (1 is not "1"), and so are their borders (("ab", "c") is not ("a", "bc")).
    Errors: ValueError if a part is neither an int nor a string (floats do not compare exactly, bools pass as ints).
    """
    digest = blake2b(digest_size=KEY_BYTES)
    for part in key:
        digest.update(_encode(part))
    return int.from_bytes(digest.digest(), "little")


def _encode(part: Key) -> bytes:
    if isinstance(part, str):
        text = part.encode("utf-8", "surrogatepass")
        return b"s%d:" % len(text) + text
    try:
        if isinstance(part, (bool, np.bool_)):
            raise TypeError
        return b"i%d;" % operator.index(part)
    except TypeError:
        kind = type(part).__name__
        raise ValueError(f"a key of random draws holds {part!r} ({kind}); use ints and strings only") from None


class Rng:
    """Draws keyed random tensors on the CPU; the results are to be moved to a device by the caller.

    `Rng(seed)` is the root. `at` and `shared` return the same source with a longer key, so
    `rng.at("a").normal(shape, 1)` equals `rng.normal(shape, "a", 1)`. There is no state to save or to resume.
    """

    def __init__(self, seed: int, *key: Key):
        self.seed, self.key = seed, key
        hash_key(seed, *key)  # raises for what is not a key

    def at(self, *key: Key) -> Rng:
        """Returns the source whose keys all start with this one's and then `key`."""
        return Rng(self.seed, *self.key, *key)

    def shared(self, step: int, name: str) -> Rng:
        """Returns the source of what all ranks agree on in one optimiser step: exit step, length, switch."""
        return self.at("shared", step, name)

    def normal(self, shape: Sequence[int], *key: Key) -> torch.Tensor:
        """Returns standard normal fp32 numbers of `shape`."""
        return torch.from_numpy(np.asarray(self._numpy(key).standard_normal(tuple(shape), dtype=np.float32)))

    def uniform(self, *key: Key, shape: Sequence[int] = ()) -> torch.Tensor:
        """Returns fp32 numbers in [0, 1) of `shape` (a scalar tensor by default)."""
        return torch.from_numpy(np.asarray(self._numpy(key).random(tuple(shape), dtype=np.float32)))

    def integers(self, low: int, high: int, *key: Key, shape: Sequence[int] = ()) -> torch.Tensor:
        """Returns int64 numbers in [low, high) of `shape` (a scalar tensor by default; `int(...)` reads it)."""
        _check_range(low, high)
        return torch.from_numpy(np.asarray(self._numpy(key).integers(low, high, tuple(shape), dtype=np.int64)))

    def permutation(self, count: int, *key: Key) -> torch.Tensor:
        """Returns the numbers 0 .. count-1 in random order, int64."""
        return torch.from_numpy(self._numpy(key).permutation(count).astype(np.int64))

    def normal_batch(self, shape: Sequence[int], indices: Sequence[int], *key: Key) -> torch.Tensor:
        """Returns [len(indices), *shape]; row i is `normal(shape, *key, indices[i])`, whoever holds the others."""
        return _stack(lambda i: self.normal(shape, *key, i), indices, shape, torch.float32)

    def uniform_batch(self, shape: Sequence[int], indices: Sequence[int], *key: Key) -> torch.Tensor:
        """Returns [len(indices), *shape]; row i is `uniform(*key, indices[i], shape=shape)`."""
        return _stack(lambda i: self.uniform(*key, i, shape=shape), indices, shape, torch.float32)

    def integers_batch(self, low: int, high: int, indices: Sequence[int], *key: Key, shape=()) -> torch.Tensor:
        """Returns [len(indices), *shape]; row i is `integers(low, high, *key, indices[i], shape=shape)`."""
        _check_range(low, high)
        return _stack(lambda i: self.integers(low, high, *key, i, shape=shape), indices, shape, torch.int64)

    def _numpy(self, key) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=hash_key(self.seed, *self.key, *key)))


class Recording:
    """The face of `Rng` over recorded tensors, returned in call order; keys are ignored.

    A `*_batch` draw takes one tensor with the batch in front. `reshape=True` accepts a recorded tensor of another
    shape with the same number of elements (ancestors draw [B*n, C, H, W] where a chunk is [B, n, C, H, W]).
    Errors: ValueError when no tensor is left, or shape, kind or range differ, naming the number of the draw.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], reshape: bool = False):
        self.tensors, self.reshape, self.cursor = list(tensors), reshape, 0

    def at(self, *key: Key) -> Recording:
        return self

    def shared(self, step: int, name: str) -> Recording:
        return self

    def normal(self, shape: Sequence[int], *key: Key) -> torch.Tensor:
        return self._take(shape, True, key)

    def uniform(self, *key: Key, shape: Sequence[int] = ()) -> torch.Tensor:
        return self._in_range(self._take(shape, True, key), 0, 1)

    def integers(self, low: int, high: int, *key: Key, shape: Sequence[int] = ()) -> torch.Tensor:
        _check_range(low, high)
        return self._in_range(self._take(shape, False, key), low, high)

    def permutation(self, count: int, *key: Key) -> torch.Tensor:
        return self._in_range(self._take((count,), False, key), 0, max(count, 1))

    def normal_batch(self, shape: Sequence[int], indices: Sequence[int], *key: Key) -> torch.Tensor:
        return self.normal((len(indices), *shape), *key)

    def uniform_batch(self, shape: Sequence[int], indices: Sequence[int], *key: Key) -> torch.Tensor:
        return self.uniform(*key, shape=(len(indices), *shape))

    def integers_batch(self, low: int, high: int, indices: Sequence[int], *key: Key, shape=()) -> torch.Tensor:
        return self.integers(low, high, *key, shape=(len(indices), *shape))

    def finish(self) -> None:
        """Raises ValueError unless every recorded tensor was drawn."""
        if self.cursor != len(self.tensors):
            raise ValueError(f"{self.cursor} of {len(self.tensors)} recorded draws were used; the run draws too little")

    def _take(self, shape, floating: bool, key) -> torch.Tensor:
        what = f"recorded draw {self.cursor} (asked for with the key {key!r})"
        if self.cursor == len(self.tensors):
            raise ValueError(f"{what} does not exist: only {len(self.tensors)} were recorded")
        value, shape = self.tensors[self.cursor], tuple(shape)
        if value.is_floating_point() != floating:
            raise ValueError(f"{what} is {value.dtype}, asked for are {'floats' if floating else 'integers'}")
        fits = value.numel() == math.prod(shape) if self.reshape else tuple(value.shape) == shape
        if not fits:
            raise ValueError(f"{what} has the shape {list(value.shape)}, asked for is {list(shape)}")
        self.cursor += 1
        return value.reshape(shape).clone()  # the caller may write into what it drew

    def _in_range(self, value: torch.Tensor, low: int, high: int) -> torch.Tensor:
        if value.numel() and not bool(((value >= low) & (value < high)).all()):
            found = f"[{value.min().item()}, {value.max().item()}]"
            raise ValueError(f"recorded draw {self.cursor - 1} lies in {found}, asked for is [{low}, {high})")
        return value


def seed_libraries(rng: Rng) -> None:
    """Seeds the global generators of python, numpy and torch: library code (weight init, dropout) draws from them."""
    value = hash_key(rng.seed, *rng.key, "libraries")
    random.seed(value)
    np.random.seed(value % (1 << 32))
    torch.manual_seed(value % INT64_LIMIT)


def _check_range(low: int, high: int) -> None:
    if low >= high:
        raise ValueError(f"integers from [{low}, {high}) were asked for; the upper end must exceed the lower")


def _stack(draw: Callable[[int], torch.Tensor], indices: Sequence[int], shape, dtype) -> torch.Tensor:
    rows = [draw(index) for index in indices]
    return torch.stack(rows) if rows else torch.empty((0, *shape), dtype=dtype)
