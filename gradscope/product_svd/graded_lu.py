"""LU of graded rows: pivots in order of size, what cancels set apart, and the bounded factors of D."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.lapack import dgetrf, dlaswp

# A pivot this far below its column may be the rounding noise of an exact cancellation; this far, it is
# noise if any is.
SUSPECT = 1e-10
NOISE = 1e-13
# d whose exponents differ by less can be multiplied with as they are.
MAX_RANGE = 450
# Entries of N this many bits below those of x change nothing, with room for pivot growth.
NEGLIGIBLE_BITS = 64
# Rows of N that are cut off at the same column.
BLOCK = 64


@dataclass
class Graded:
    """P = x.T @ diag(mantissa * 2**exponent) @ y, with x and y well conditioned, d graded.

    x : (r, m_T) array, y : (r, m_0) array, mantissa, exponent : (r,) arrays.
    """

    x: Array
    mantissa: Array
    exponent: Array
    y: Array

    @property
    def rank(self) -> int:
        """How many directions are left."""
        return len(self.mantissa)

    @classmethod
    def identity(cls, m: int) -> Graded:
        """The empty product."""
        return cls(np.eye(m), np.ones(m), np.zeros(m, np.int64), np.eye(m))

    @classmethod
    def nothing(cls, x: Array, m: int) -> Graded:
        """A product that is exactly zero, of m columns."""
        return cls(x[:0], np.zeros(0), np.zeros(0, np.int64), np.zeros((0, m)))


@dataclass
class Factors:
    """rows[order].T = L U, with the d that belongs to the rows.

    weight : (r,) log2 of the sizes of d_i rows_i, not increasing; permutation : of the states, by the
    pivots; worst : the smallest pivot relative to its column.
    """

    lu: Array
    permutation: Array
    order: Array
    kept: int
    mantissa: Array
    exponent: Array
    weight: Array
    worst: float

    @property
    def pivots(self) -> Array:
        """(kept,) diagonal of U."""
        return self.lu.diagonal()[: self.kept]

    def graded(self, x: Array, y: Array) -> Graded:
        """The graded form with these sides and the pivots taken into d."""
        mantissa, carried = np.frexp(self.mantissa[: self.kept] * self.pivots)
        return Graded(x, mantissa, self.exponent[: self.kept] + carried, y)

    def lower(self) -> Array:
        """L^T, (kept, m), its columns in the order of the states."""
        columns = self.lu.shape[0]
        back = np.empty(columns, np.intp)
        back[self.permutation] = np.arange(columns)
        lower = self.lu.T[: self.kept] * _strictly_upper(columns)[: self.kept]
        lower.flat[:: columns + 1] = 1
        return lower.take(back, axis=1)

    def times(self, other: Array) -> Array:
        """N other, N = D_new^-1 U D (kept, r) unit upper triangular, without what is negligible of it.

        With graded d little more than the diagonal is left of N: the product costs what is left.
        """
        out = other[self.order]
        lowest = np.log2(np.abs(self.mantissa[: self.kept] * self.pivots)) + self.exponent[: self.kept]
        for i in range(0, self.kept, BLOCK):
            j = min(i + BLOCK, self.kept)
            end = int(np.searchsorted(-self.weight, NEGLIGIBLE_BITS - lowest[i:j].min()))
            end = max(j, end)
            out[i:j] += self._upper(i, j, end) @ out[i:end]  # rows from i on are still the old ones
        return out[: self.kept]

    def _upper(self, i: int, j: int, end: int) -> Array:
        """Rows i to j of N above the diagonal, up to a column."""
        exponent = self.exponent[i:end] - self.exponent[i]
        if np.abs(exponent).max() < MAX_RANGE:
            d = np.ldexp(self.mantissa[i:end], exponent)
            n = self.lu[i:j, i:end] * d
            n /= (self.pivots[i:j] * d[: j - i])[:, None]
        else:
            n = self.lu[i:j, i:end] / self.pivots[i:j, None]
            n *= self.mantissa[i:end] / self.mantissa[i:j, None]
            n *= powers_of_two(exponent - exponent[: j - i, None])
            n[:, : j - i] = np.triu(n[:, : j - i])  # what does not belong to U may be infinite
        n[:, : j - i] *= _strictly_upper(j - i)
        return np.asarray(n)


def factor(
    graded: Graded,
    rows: Array,
    size: Array,
    after: Array,
    rank: Callable[[Array], int],
    forced: int | None = None,
    least: float = 0.0,
) -> Factors | None:
    """LU of the sorted columns, with columns that depend on others moved to the end."""
    weight = np.log2(size) + np.log2(np.abs(graded.mantissa)) + graded.exponent
    # Pre-pivoting (Tomas, Chang, Scalettar, Bai 2012): largest first, or N overflows.
    order = np.argsort(-weight, kind="stable")
    live = int(np.count_nonzero(size))  # zeros are last in the order
    while True:
        # rows are the columns of what is factored: the transpose is Fortran-ordered for free.
        lu, swaps, _ = dgetrf(rows[order].T, overwrite_a=1)
        permutation = _permutation(swaps, lu.shape[0])
        kept = min(live, lu.shape[0])
        pivots = np.abs(lu.diagonal()[:kept])
        ratio = pivots / size[order[:kept]]
        if ratio.min(initial=1.0) <= SUSPECT and np.ptp(after):
            # Columns scaled apart have pivots apart: noise is small beside what there is with and without.
            scale = np.ldexp(1.0, after - after.max())
            unscaled = pivots / scale[permutation[:kept]] / np.abs(rows / scale).max(axis=1)[order[:kept]]
            ratio = np.maximum(ratio, unscaled)
        worst = float(ratio.min(initial=1.0))
        if worst < least:
            return None
        if kept == 0 or (forced is None and worst > SUSPECT):
            break
        survivors = rank(ratio) if forced is None else forced
        if worst == 0:  # nothing to divide by, whatever its value should have been
            survivors = min(survivors, kept - 1)
        if kept <= survivors or live <= survivors:
            kept = min(kept, survivors)
            break
        bad = _first_bad(ratio)
        order = np.concatenate([np.delete(order[:live], bad), order[[bad]], order[live:]])
        live -= 1
    # Where columns were moved the weights are not sorted: the larger of those to come counts.
    weight = np.maximum.accumulate(weight[order][::-1])[::-1]
    return Factors(
        lu, permutation, order, kept, graded.mantissa[order], graded.exponent[order], weight, worst
    )


def _permutation(swaps: Array, size: int) -> Array:
    return np.asarray(dlaswp(np.arange(size, dtype=float)[:, None], swaps)[:, 0].astype(np.intp))


def _first_bad(ratio: Array) -> int:
    """The first pivot that is noise: those after it were eliminated with it."""
    return int(np.argmax(ratio <= max(NOISE, float(ratio.min()))))


@cache
def _strictly_upper(size: int) -> Array:
    return np.triu(np.ones((size, size)), 1)


# ldexp of a whole matrix takes as long as its product with another.
_POWERS = np.ldexp(1.0, np.arange(-1075, 1001))


def powers_of_two(exponent: Array) -> Array:
    """2 ** exponent for integers; 0 and 2^1000 where float64 ends."""
    return _POWERS.take(exponent + 1075, mode="clip")
