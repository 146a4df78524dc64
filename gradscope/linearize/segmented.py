"""A chain too long to hold: its Jacobians by segment, the last ones kept."""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.linearize.jacobian_chain import JacobianChain
from gradscope.product_svd.extended_range_array import Wide
from gradscope.product_svd.plain_product import Beside
from gradscope.product_svd.steps import Layout, StepSource

# Two runs over a chain may be on either side of a boundary.
_KEPT = 2


class SegmentedChain(StepSource):
    """A chain in segments, each loaded when one of its steps is read.

    segment : number -> that segment's chain; starts : the first step of each; steps : T;
    read : called at every step that is read.
    """

    def __init__(
        self,
        segment: Callable[[int], JacobianChain],
        starts: Sequence[int],
        steps: int,
        read: Callable[[], None] | None = None,
    ) -> None:
        self.segment = segment
        self.starts = starts
        self.steps = steps
        self._read = read
        self._last: tuple[int, JacobianChain] | None = None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, t: Any) -> Any:
        segment, at = self._find(t)
        return segment[at]

    @cached_property  # read at every step: the first segment would be loaded again and again
    def layout(self) -> Layout | None:  # type: ignore[override]
        """As of the segments."""
        return self.segment(0).layout

    @property
    def rank(self) -> int:
        """As of the first segment: no product has more."""
        return self.segment(0).rank

    @cached_property
    def window(self) -> tuple[slice, slice] | None:  # type: ignore[override]
        """As of the segments."""
        return self.segment(0).window

    def parts(self, t: int) -> list[Array]:
        """Step t as blocks of columns, as ``CellChain.parts``."""
        segment, at = self._find(t)
        return segment.parts(at)

    def terms(self, t: int) -> list[Array]:
        """As of the segments."""
        segment, at = self._find(t)
        return segment.terms(at)

    @cached_property
    def beyond(self) -> bool:  # type: ignore[override]
        """Of any segment, as ``CellChain.beyond``."""
        return any(self.segment(i).beyond for i in range(len(self.starts)))

    def wide(self, t: int) -> Wide:
        """As of the segments."""
        segment, at = self._find(t)
        return segment.wide(at)

    @cached_property
    def operations(self) -> float:  # type: ignore[override]
        """As of its one segment: of more none has digits."""
        return self.segment(0).operations if len(self.starts) == 1 else math.inf

    def balls(self, t: int, bits: int) -> Array:
        """As of the segments."""
        segment, at = self._find(t)
        return segment.balls(at, bits)

    def survey(self) -> tuple[Array, bool]:
        """Of all segments, as ``CellChain.survey``."""
        if self.beyond:
            return np.zeros((self.steps, 0)), False
        sizes, certain = zip(*(self.segment(i).survey() for i in range(len(self.starts))), strict=True)
        return np.concatenate(sizes), all(certain)

    @property
    def span(self) -> float:
        """Of all segments, as ``CellChain.span``."""
        return max(float(self.segment(i).span) for i in range(len(self.starts)))

    @property
    def chains(self) -> dict[str, SegmentedChain]:
        """The full chain and each named path's own, as those of ``CellChain``."""
        first = self.segment(0)
        return {name: self if chain is first else self._path(name) for name, chain in first.chains.items()}

    @property
    def diagonal(self) -> Array | None:
        """(T, n) where every step of the chain is diagonal."""
        found = []
        for i in range(len(self.starts)):
            part = self.segment(i).diagonal
            if part is None:
                return None
            found.append(part)
        return np.concatenate(found)

    def without(self, path: str) -> SegmentedChain:
        """As of the segments."""
        return SegmentedChain(lambda i: self.segment(i).without(path), self.starts, self.steps, self._read)

    def after(self, first: int, rest: JacobianChain) -> SegmentedChain:
        """The steps from this one on; rest : those that the first segment has, one at least."""
        starts = [0, *(start - first for start in self.starts[1:])]
        return SegmentedChain(
            lambda i: self.segment(i) if i else rest, starts, self.steps - first, self._read
        )

    def beside(self) -> Iterator[Beside]:
        """As of the segments."""
        for i in reversed(range(len(self.starts))):
            for step in self.segment(i).beside():
                if self._read:
                    self._read()
                yield step

    def _path(self, name: str) -> SegmentedChain:
        return SegmentedChain(lambda i: self.segment(i).chains[name], self.starts, self.steps, self._read)

    def _find(self, t: int) -> tuple[JacobianChain, int]:
        """The segment that holds step t, and which of its steps that is."""
        if not 0 <= t < self.steps:
            raise IndexError(t)
        if self._read:
            self._read()
        i = bisect.bisect_right(self.starts, t) - 1
        last = self._last  # two threads may be at different segments
        if last is None or last[0] != i:
            self._last = last = (i, self.segment(i))
        return last[1], t - self.starts[i]


def keeping_recent(load: Callable[[int], JacobianChain]) -> Callable[[int], JacobianChain]:
    """``load`` with the last few segments kept; threads that want the same one load it once."""
    kept, lock = lru_cache(_KEPT)(load), threading.Lock()

    def recent(i: int) -> JacobianChain:
        with lock:
            return kept(i)

    return recent
