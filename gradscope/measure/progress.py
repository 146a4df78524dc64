"""How far the work is: of one sequence by what its chains cost, of all from that of each."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

# Called with (sequences done, sequences in all), the first with a fraction.
Progress = Callable[[float, int], None]
# Called with the fraction that is done of one piece of work.
Fraction = Callable[[float], None]

_SECONDS_BETWEEN_REPORTS = 0.1


class Tally:
    """The progress of sequences that cost so much each, told as so many done of them all; from any thread."""

    def __init__(self, progress: Progress | None, costs: Sequence[float]) -> None:
        self.watched = progress is not None
        self._progress, self._done, self._first = progress, [0.0] * len(costs), 0
        self._weights = [len(costs) * cost / sum(costs) for cost in costs]

    def beyond(self, first: int) -> Tally:
        """The same of the sequences from number ``first`` on, which are counted from 0 there."""
        later = copy.copy(self)
        later._first = self._first + first
        return later

    def of(self, numbers: Iterable[int]) -> Fraction:
        """What tells how far these sequences are, which are worked on together."""
        together = [self._first + number for number in numbers]

        def report(fraction: float) -> None:
            for number in together:
                self._done[number] = fraction * self._weights[number]
            if self._progress:
                self._progress(sum(self._done), len(self._done))

        return report


class Meter:
    """How far some chains are, from the steps that were read and what each chain costs."""

    def __init__(self, report: Fraction) -> None:
        self._report, self._reported = report, time.monotonic()
        self._reads = 0
        self._left: dict[str, float] = {}
        self._expected: Mapping[str, float] = {}
        self._total = 1.0

    def begin(self, costs: Mapping[str, float], reads: Mapping[str, float]) -> None:
        """These chains are to be gone through, in this order; reads : how many steps are read of each."""
        self._left, self._expected = dict(costs), reads
        self._total = sum(costs.values())

    def read(self, steps: int = 1) -> None:
        """So many more steps were read."""
        self._reads += steps
        if time.monotonic() > self._reported + _SECONDS_BETWEEN_REPORTS:
            self._tell()

    def finished(self, name: str) -> None:
        """The chain called ``name`` is done."""
        self._left.pop(name, None)
        self._reads = 0
        self._tell()

    def _tell(self) -> None:
        name, cost = next(iter(self._left.items()), ("", 0.0))
        under_way = cost * min(1.0, self._reads / self._expected[name]) if name else 0.0
        self._reported = time.monotonic()
        self._report((self._total - sum(self._left.values()) + under_way) / self._total)
