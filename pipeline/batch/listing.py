"""The requests of a run and their batches, each built when it is asked for: a million take the memory of their lines.

A list of a million prompts with five samples each is five million requests, of which a run holds one batch at a time.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, overload

from utils.data.prompts import PromptLine

Request = Any  # of pipeline/batch/request.py, which builds them


class Requests(Sequence[Request]):
    """The requests of a run: all samples of a line, then those of the next. Holds the lines alone."""

    def __init__(self, lines: Sequence[PromptLine], num_samples: int, build, uniform: bool):
        """build(row, sample) -> the Request of that sample of `lines[row]`. uniform: all share one schedule."""
        self.lines, self.num_samples, self.uniform, self._build = lines, num_samples, uniform, build

    def __len__(self) -> int:
        return len(self.lines) * self.num_samples

    @overload
    def __getitem__(self, number: int) -> Request: ...
    @overload
    def __getitem__(self, number: slice) -> list[Request]: ...
    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"request {number} of {len(self)}")
        return self._build(*divmod(number % len(self), self.num_samples))

    def each_line(self) -> Iterator[Request]:
        """Yields the first sample of each line."""
        return (self[n] for n in range(0, len(self), self.num_samples))


class Batch(list[Request]):
    """Requests that are computed together. `number`: its place among all batches of the run, on every rank."""

    def __init__(self, requests: Iterable[Request], number: int):
        super().__init__(requests)
        self.number = number


class Batches(Sequence[Batch]):
    """Batches of requests, or some of them; holds numbers alone."""

    def __init__(self, requests: Sequence[Request], order: array, borders: array, numbers: Sequence[int]):
        """order: numbers of requests, those of a batch side by side. borders: where in it each batch begins, and the
        end of the last. numbers: which batches these are.
        """
        self.requests, self._order, self._borders, self.numbers = requests, order, borders, numbers

    @classmethod
    def of(cls, groups: Sequence[Sequence[Request]]) -> Batches:
        """Returns given batches."""
        requests = [request for group in groups for request in group]
        borders = array("Q", accumulate(map(len, groups), initial=0))
        return cls(requests, array("Q", range(len(requests))), borders, range(len(groups)))

    @classmethod
    def cut(cls, requests: Sequence[Request], size: int) -> Batches:
        """Returns the whole list cut into batches whose videos share their schedule."""
        by_schedule: dict[tuple, Any] = {}
        if isinstance(requests, Requests) and requests.uniform:
            by_schedule[()] = range(len(requests))
        else:
            for number, request in enumerate(requests):
                by_schedule.setdefault(request.schedule, array("Q")).append(number)
        order, borders = array("Q"), array("Q")
        for members in by_schedule.values():
            borders.extend(range(len(order), len(order) + len(members), size))
            order.extend(members)
        borders.append(len(order))
        return cls(requests, order, borders, range(len(borders) - 1))

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> Batch: ...
    @overload
    def __getitem__(self, place: slice) -> list[Batch]: ...
    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[n] for n in range(*place.indices(len(self)))]
        return self.at(self.numbers[place])

    def at(self, number: int) -> Batch:
        """Returns the batch of this number among all of the run."""
        members = self._order[self._borders[number] : self._borders[number + 1]]
        return Batch((self.requests[n] for n in members), number)

    @property
    def num_videos(self) -> int:
        """Number of requests in these batches."""
        if len(self) == len(self._borders) - 1:
            return len(self._order)
        return sum(self._borders[n + 1] - self._borders[n] for n in self.numbers)

    def videos(self) -> Iterator[Request]:
        """Yields the requests of these batches, in order."""
        return (request for batch in self for request in batch)

    def choose(self, numbers: Iterable[int]) -> Batches:
        """Returns the batches of these numbers."""
        return Batches(self.requests, self._order, self._borders, array("Q", numbers))

    def without(self, lines: set[int]) -> Batches:
        """Returns these batches, with their numbers, without the lines of a prompt schedule; none of them empty."""
        order, borders = array("Q"), array("Q", [0])
        for begin, end in pairwise(self._borders):
            scripts = ((n, self.requests[n].script) for n in self._order[begin:end])
            order.extend(n for n, script in scripts if not (script and script.line in lines))
            borders.append(len(order))
        return Batches(
            self.requests, order, borders, array("Q", (n for n in self.numbers if borders[n] < borders[n + 1]))
        )

    def schedules(self) -> Iterator[tuple[Request, int]]:
        """Yields (a request, number of batches) of each schedule of these batches."""
        if isinstance(self.requests, Requests) and self.requests.uniform:
            if len(self):
                yield self[0][0], len(self)
            return
        found: dict[tuple, list] = {}
        for number in self.numbers:
            first = self.requests[self._order[self._borders[number]]]
            found.setdefault(first.schedule, [first, 0])[1] += 1
        yield from (tuple(pair) for pair in found.values())
