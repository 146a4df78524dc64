"""A chain whose Jacobians are in memory: what it can be asked, whatever they are made up of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np

from gradscope.compiled_svd.step_arrays import StepArrays
from gradscope.custom_types import Array
from gradscope.product_svd.extended_range_array import Wide
from gradscope.product_svd.plain_product import Beside
from gradscope.product_svd.steps import StepSource

# Chains smaller than this are formed once.
_KEEP_BYTES = 32 * 2**20
# A row that a probe finds this much smaller than its bound may be an exact zero, rounded.
_CANCELS = 1e-13


class JacobianChain(StepSource):
    """Steps that are in memory: item t is the (m, m) Jacobian of step t.

    steps : T; size : m; starts : one segment, as SegmentedChain has them.
    """

    steps: int
    size: int
    starts: Sequence[int] = (0,)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, t: Any) -> Any:
        if not 0 <= t < self.steps:
            raise IndexError(t)
        return self._kept[t] if self._kept else self._sum(t)

    def segment(self, i: int) -> Self:
        """The chain itself."""
        return self

    @cached_property
    def _kept(self) -> list[Array]:
        """All steps at once, if they are small: they are gone through several times."""
        return [self._sum(t) for t in range(self.steps)] if self._small else []

    @property
    def _small(self) -> bool:
        return 8 * self.steps * self.size**2 <= _KEEP_BYTES

    @abstractmethod
    def _sum(self, t: int) -> Array:
        """Step t, formed."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Of the paths."""

    @property
    @abstractmethod
    def chains(self) -> Mapping[str, JacobianChain]:
        """The full chain and each named path's own: itself again where a path is all there is."""

    @abstractmethod
    def without(self, path: str) -> Self:
        """The full chain of all paths but this one."""

    @abstractmethod
    def beside(self) -> Iterator[Beside]:
        """The steps of what ``without`` gives of every path, side by side, the last first."""

    @property
    def diagonal(self) -> Array | None:
        """(T, n) where every step of the chain is diagonal."""
        return None

    @property
    def zero_steps(self) -> Array:
        """Indices of the steps that are exactly zero, where that is seen without a look at every entry."""
        return np.zeros(0, int)

    @property
    def step_arrays(self) -> StepArrays | None:
        """The steps as a compiled program takes them, where one does."""
        return None

    @abstractmethod
    def wide_terms(self, t: int) -> Iterator[tuple[str, slice, slice, Wide]]:
        """Of every path its name, its rows and columns of step t, and what stands there."""

    @abstractmethod
    def carried(self, backward: Array, forward: Array) -> dict[str, Array]:
        """b_t^T J_t a_t of every path for all t, {path: (T,)}, of b and a (T, m)."""


def sums_but_one(each: Array) -> Array:
    """(L, P, ...) what all but one of (P, L, ...) add up to, without subtracting."""
    others = 1.0 - np.eye(len(each))
    return np.asarray((others @ each.reshape(len(each), -1)).reshape(each.shape).swapaxes(0, 1))


def random_row(size: int) -> Array:
    """(1, m), to probe steps with."""
    return np.random.default_rng(0).normal(size=(1, size))


def nonzero(rows: Array, sizes: Array, columns: Array) -> bool:
    """Whether no row or column is zero of steps by which a random vector became these, (T, m) each."""
    return bool((np.abs(rows) > _CANCELS * sizes).all() and columns.all())
