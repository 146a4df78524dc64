"""One path of the one-step Jacobians on the host, in float64: as slopes of units, or dense."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.linearize.more_digits import Some
from gradscope.product_svd.ball_product import exact_numbers
from gradscope.product_svd.extended_range_array import Wide
from gradscope.product_svd.steps import UnknownDigitsError


@dataclass(frozen=True, kw_only=True)
class _Ranged:
    """Numbers of every step, which float64 may take as 0 where they are not.

    far : the same with exponents of their own then; digits : the same with as many digits as are wanted.
    """

    far: Wide | None = None
    digits: Some | None = None

    @property
    def numbers(self) -> Array:
        """In float64, (T, ...)."""
        raise NotImplementedError

    @property
    def beyond(self) -> bool:
        """Whether float64 takes any of them as 0 that is not."""
        return self.far is not None

    @property
    def bits(self) -> float:
        """From the smallest to the largest, or to 1."""
        return (Wide.of(self.numbers) if self.far is None else self.far).bits_below_one

    @property
    def has_digits(self) -> bool:
        """Whether ``balls`` has its steps."""
        return self.digits is not None

    def held(self, t: int) -> Wide:
        """Those of step t."""
        return Wide.of(self.numbers[t]) if self.far is None else self.far[t]

    def some(self, part: Any) -> dict[str, Any]:
        """``far`` and ``digits`` of some of them."""
        return {
            "far": None if self.far is None else self.far[part],
            "digits": None if self.digits is None else self.digits.part(part),
        }

    def balls_of(self, t: int, bits: int) -> Array:
        """Those of step t. Raises UnknownDigitsError."""
        if self.digits is None:
            raise UnknownDigitsError
        return np.asarray(self.digits.balls(bits)[t])


@dataclass(frozen=True)
class UnitPath(_Ranged):
    """A path of the fast form: step t is diag(slope_t) M diag(link_t) for each component it writes.

    slope : (T, components, n); matrix : M (n, n), None is the identity; link : (T, n), None is ones;
    source : index of the component that is read; far : of the slopes.
    """

    name: str
    slope: Array
    source: int
    matrix: Array | None
    link: Array | None = None

    @property
    def numbers(self) -> Array:
        """The slopes."""
        return self.slope

    @property
    def has_digits(self) -> bool:
        """Not of links, which are known in float64 alone."""
        return self.digits is not None and self.link is None

    @property
    def alone(self) -> UnitPath:
        """The path within the component that it reads: what its own chain multiplies."""
        own = (slice(None), slice(self.source, self.source + 1))
        return replace(self, slope=self.slope[own], source=0, **self.some(own))

    def after(self, first: int) -> UnitPath:
        """The steps from this one on."""
        link = None if self.link is None else self.link[first:]
        return replace(self, slope=self.slope[first:], link=link, **self.some(slice(first, None)))

    def wide(self, t: int) -> Wide:
        """Step t, (m, n) in the columns of the component that is read."""
        found = self.held(t)[..., None].times(self._wide_matrix)
        if self.link is not None:
            found = found.times(Wide.of(self.link[t]))
        return found.reshape(-1, found.mantissa.shape[-1])

    def balls(self, t: int, bits: int) -> Array:
        """The same as balls. Raises UnknownDigitsError."""
        if not self.has_digits:
            raise UnknownDigitsError
        found = np.asarray(self.balls_of(t, bits)[..., None] * self._exact_matrix)
        return found.reshape(-1, found.shape[-1])

    @cached_property
    def _exact_matrix(self) -> Array:
        return exact_numbers(np.eye(self.width) if self.matrix is None else self.matrix)

    @cached_property
    def _wide_matrix(self) -> Wide:
        return Wide.of(np.eye(self.width) if self.matrix is None else self.matrix)

    @property
    def width(self) -> int:
        """Units n."""
        return int(self.slope.shape[2])

    @property
    def diagonal(self) -> Array | None:
        """(T, n) where every step is diagonal, as one component's without a matrix is."""
        if self.matrix is not None or self.slope.shape[1] > 1 or self.beyond:
            return None
        return self.slope[:, 0] * (1.0 if self.link is None else self.link)

    @cached_property
    def writes(self) -> tuple[int, ...]:
        """Components that the path changes at any step: an output gate leaves c alone."""
        return tuple(np.flatnonzero(self.slope.any(axis=(0, 2))).tolist())

    def _factor(self, t: int, component: int, matrix: Array) -> Array:
        """(n, n), the block of step t by which a component is written."""
        left = self.slope[t, component][:, None] * matrix
        return np.asarray(left if self.link is None else left * self.link[t])

    def add_to(self, columns: Array, t: int) -> None:
        """Add step t to the ``columns`` (m, n) of the component that is read."""
        n = self.slope.shape[-1]
        for component in self.writes:
            block = columns[component * n : (component + 1) * n]
            if self.matrix is None:
                diagonal = np.einsum("ii->i", block)  # a view
                diagonal += self.slope[t, component] * (1.0 if self.link is None else self.link[t])
            else:
                block += self._factor(t, component, self.matrix)

    def steps(self, low: int, high: int) -> Array:
        """Some steps at once, (L, m, n) in the columns of the component that is read."""
        slope, (_, components, n) = self.slope[low:high], self.slope.shape
        matrix = np.eye(n) if self.matrix is None else self.matrix
        found = slope[..., None] * matrix
        if self.link is not None:
            found *= self.link[low:high, None, None]
        return np.asarray(found.reshape(-1, components * n, n))

    def diagonals(self, low: int, high: int) -> Array:
        """The same for a path without a matrix: (L, components, n)."""
        slope = self.slope[low:high]
        return slope if self.link is None else slope * self.link[low:high, None]

    def add_diagonals(self, diagonals: Array, t: int) -> None:
        """The same for a path without a matrix: ``diagonals`` is (components, n)."""
        diagonals += self.slope[t] if self.link is None else self.slope[t] * self.link[t]

    def push(self, read: Array) -> Array:
        """J_t a for all t, (T, m), of what the path reads, (T, n) or (1, n)."""
        read = read if self.link is None else read * self.link
        through = read if self.matrix is None else read @ self.matrix.T
        return np.asarray((self.slope * through[:, None]).reshape(len(self.slope), -1))

    def pull(self, written: Array) -> Array:
        """J_t^T b for all t, (T, n) in the component that the path reads, of b (T, m) or (1, m)."""
        units = (written.reshape(-1, *self.slope.shape[1:]) * self.slope).sum(axis=1)
        read = units if self.matrix is None else units @ self.matrix
        return np.asarray(read if self.link is None else read * self.link)

    @property
    def absolute(self) -> UnitPath:
        """The same of absolute values."""
        matrix = None if self.matrix is None else np.abs(self.matrix)
        link = None if self.link is None else np.abs(self.link)
        return replace(self, slope=np.abs(self.slope), matrix=matrix, link=link)

    @property
    def sizes(self) -> Array:
        """(T, m) largest entry that a row can have."""
        largest = np.ones(self.slope.shape[-1]) if self.matrix is None else np.abs(self.matrix).max(axis=1)
        link = 1.0 if self.link is None else np.abs(self.link).max(axis=1)[:, None, None]
        return np.asarray((np.abs(self.slope) * largest * link).reshape(len(self.slope), -1))


@dataclass(frozen=True)
class DensePath(_Ranged):
    """A path of a cell without a per-unit form: its Jacobians as they are, (T, m, m).

    component : where in the state its own chain stays, None is all of it; far : of the entries.
    """

    name: str
    stack: Array
    component: slice | None = None

    source = 0

    @property
    def numbers(self) -> Array:
        """The entries."""
        return self.stack

    def add_to(self, columns: Array, t: int) -> None:
        """Add this path's Jacobian of step t to ``columns`` (m, m)."""
        columns += self.stack[t]

    def steps(self, low: int, high: int) -> Array:
        """Some steps at once, (L, m, m)."""
        return self.stack[low:high]

    @property
    def alone(self) -> DensePath:
        """The path within its component."""
        part = self.component
        if part is None:
            return self
        own = (slice(None), part, part)
        return DensePath(self.name, self.stack[own], **self.some(own))

    def after(self, first: int) -> DensePath:
        """The steps from this one on."""
        return replace(self, stack=self.stack[first:], **self.some(slice(first, None)))

    def wide(self, t: int) -> Wide:
        """Step t."""
        return self.held(t)

    def balls(self, t: int, bits: int) -> Array:
        """The same as balls."""
        return self.balls_of(t, bits)

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.stack.shape[2])

    @property
    def diagonal(self) -> Array | None:
        """(T, m) where every step is diagonal."""
        found = np.diagonal(self.stack, axis1=1, axis2=2)
        return found if not self.beyond and np.count_nonzero(self.stack) == np.count_nonzero(found) else None

    def push(self, read: Array) -> Array:
        """J_t a for all t, (T, m), of a (T, m)."""
        return np.asarray(np.einsum("tij,tj->ti", self.stack, read))


Path = UnitPath | DensePath


def most_operations(paths: Iterable[Path]) -> float:
    """How many it takes to have all of these with more digits, infinite where of any there are none."""
    paths = list(paths)
    if not all(path.has_digits for path in paths):
        return math.inf
    every = {id(path.digits.every): path.digits.every for path in paths if path.digits is not None}
    return sum(one.operations for one in every.values())
