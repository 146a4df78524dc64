"""LU of graded rows: pivots in order of size, what cancels set apart, and the bounded factors of D."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.lapack import dgetrf, dlaswp

# A pivot this far below its column may be the rounding noise of an exact cancellation; this far, it is
# noise if any is.
SUSPECT = 1e-10
NOISE = 1e-13
# d whose exponents differ by less can be multiplied with as they are, taken from the middle.
MAX_RANGE = 900
# Entries of N this many bits below those of x change nothing, with room for pivot growth.
NEGLIGIBLE_BITS = 64
# Rows of N that are cut off at the same column.
BLOCK = 64


class ApartError(Exception):
    """Products side by side of which one leaves a direction out: each has to be factored by itself."""


@dataclass
class Graded:
    """P = x.T @ diag(mantissa * 2**exponent) @ y, with x and y well conditioned, d graded.

    x : (r, m_T) array, y : (r, m_0) array, mantissa, exponent : (r,) arrays; of P products of one rank
    side by side (P, ...) arrays.
    """

    x: Array
    mantissa: Array
    exponent: Array
    y: Array

    @property
    def rank(self) -> int:
        """How many directions are left."""
        return int(self.mantissa.shape[-1])

    @cached_property
    def largest_in_x(self) -> Array:
        """(r,) the largest entry of every row of x."""
        return np.asarray(np.abs(self.x).max(axis=-1, initial=0))

    @property
    def apart(self) -> list[Graded]:
        """Each of the products that are side by side."""
        each = zip(self.x, self.mantissa, self.exponent, self.y, strict=True)
        return [Graded(*one) for one in each]

    @classmethod
    def identity(cls, m: int, beside: tuple[int, ...] = ()) -> Graded:
        """The empty product; beside : (P,) how many of it."""
        eye, ones, zeros = np.eye(m), np.ones(m), np.zeros(m, np.int64)
        return cls(*(np.broadcast_to(one, (*beside, *one.shape)) for one in (eye, ones, zeros, eye)))

    @classmethod
    def nothing(cls, x: Array, m: int) -> Graded:
        """A product that is exactly zero, of m columns."""
        beside = x.shape[:-2]
        none = np.zeros((*beside, 0))
        return cls(x[..., :0, :], none, none.astype(np.int64), np.zeros((*beside, 0, m)))


@dataclass
class Factors:
    """rows[order].T = L U, with the d that belongs to the rows; of products side by side one for each.

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

    @cached_property
    def pivots(self) -> Array:
        """(kept,) diagonal of U."""
        return self.lu.diagonal(0, -2, -1)[..., : self.kept]

    def graded(self, x: Array, y: Array) -> Graded:
        """The graded form with these sides and the pivots taken into d."""
        mantissa, carried = np.frexp(self.mantissa[..., : self.kept] * self.pivots)
        return Graded(x, mantissa, self.exponent[..., : self.kept] + carried, y)

    def lower(self) -> Array:
        """L^T, (kept, m), its columns in the order of the states."""
        columns = self.lu.shape[-2]
        lower = self.lu.swapaxes(-1, -2)[..., : self.kept, :] * _strictly_upper(columns)[: self.kept]
        lower.reshape(*lower.shape[:-2], -1)[..., :: columns + 1] = 1  # the diagonal, in place
        back = self.permutation.argsort(axis=-1)
        if back.ndim == 1:
            return lower.take(back, axis=1)
        return np.stack([one.take(own, axis=1) for one, own in zip(lower, back, strict=True)])

    def times(self, other: Array) -> Array:
        """N other, N = D_new^-1 U D (kept, r) unit upper triangular, without what is negligible of it.

        With graded d little more than the diagonal is left of N: the product costs what is left.
        """
        out = _in_order(other, self.order)
        lowest = np.log2(np.abs(self.mantissa[..., : self.kept] * self.pivots))
        lowest += self.exponent[..., : self.kept]
        weight = self.weight if self.weight.ndim == 1 else self.weight.max(axis=0)
        for i in range(0, self.kept, BLOCK):
            j = min(i + BLOCK, self.kept)
            end = int(np.searchsorted(-weight, NEGLIGIBLE_BITS - lowest[..., i:j].min()))
            end = max(j, end)
            # Rows from i on are still the old ones.
            out[..., i:j, :] += self._upper(i, j, end) @ out[..., i:end, :]
        return out[..., : self.kept, :]

    def _upper(self, i: int, j: int, end: int) -> Array:
        """Rows i to j of N above the diagonal, up to a column."""
        size, pivots = j - i, self.pivots[..., i:j]
        lu = self.lu[..., i:j, i:end].swapaxes(-1, -2)  # transposed, as it lies in memory
        mantissa, exponent = self.mantissa[..., i:end], self.exponent[..., i:end]
        high, low = exponent.max(axis=-1, keepdims=True), exponent.min(axis=-1, keepdims=True)
        if (high - low).max() < MAX_RANGE:
            d = np.ldexp(mantissa, exponent - (high + low) // 2)
            n = lu * d[..., None]
            n[..., :size, :] *= _strictly_lower(size)  # the rest is L
            n /= (pivots * d[..., :size])[..., None, :]
        else:
            n = lu / pivots[..., None, :]
            n *= mantissa[..., None] / mantissa[..., None, :size]
            n *= powers_of_two(exponent[..., None] - exponent[..., None, :size])
            np.copyto(n[..., :size, :], 0.0, where=_strictly_lower(size) == 0)  # of L, which may be infinite
        return np.asarray(n.swapaxes(-1, -2))


def factor(
    graded: Graded,
    rows: Array,
    size: Array,
    after: Array,
    rank: Callable[[Array], int],
    forced: int | None = None,
    least: float = 0.0,
) -> Factors | None:
    """LU of the sorted columns, with columns that depend on others moved to the end.

    Raises ApartError where that is so of one of several products, or where a row of it is zero.
    """
    weight = np.log2(size) + np.log2(np.abs(graded.mantissa)) + graded.exponent
    # Pre-pivoting (Tomas, Chang, Scalettar, Bai 2012): largest first, or N overflows.
    order = np.argsort(-weight, axis=-1, kind="stable")
    live = _live(size)  # zeros are last in the order
    moved = False
    while True:
        lu, permutation = _lu(_in_order(rows, order))
        kept = min(live, lu.shape[-2])
        pivots = np.abs(lu.diagonal(0, -2, -1)[..., :kept])
        ratio = pivots / _in_order(size, order)[..., :kept]
        worst = float(ratio.min(initial=1.0))
        if worst <= SUSPECT and np.ptp(after):
            ratio = np.maximum(ratio, _unscaled(pivots, permutation, rows, order, after))
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
        if rows.ndim > 2:
            raise ApartError
        bad = _first_bad(ratio)
        order = np.concatenate([np.delete(order[:live], bad), order[[bad]], order[live:]])
        live, moved = live - 1, True
    weight = _in_order(weight, order)
    if moved:  # they are not sorted then: the larger of those to come counts
        weight = np.maximum.accumulate(weight[::-1])[::-1]
    mantissa, exponent = _in_order(graded.mantissa, order), _in_order(graded.exponent, order)
    return Factors(lu, permutation, order, kept, mantissa, exponent, weight, worst)


def _unscaled(pivots: Array, permutation: Array, rows: Array, order: Array, after: Array) -> Array:
    """Pivots relative to their columns, both without the scale ``after``.

    Columns scaled apart have pivots apart: noise is small beside what there is with and without.
    """
    scale, kept = np.ldexp(1.0, after - after.max()), pivots.shape[-1]
    largest = _in_order(np.abs(rows / scale).max(axis=-1), order)[..., :kept]
    return np.asarray(pivots / scale[permutation[..., :kept]] / largest)


def _live(size: Array) -> int:
    """How many rows are not zero; of products side by side all."""
    if size.ndim == 1:
        return int(np.count_nonzero(size))
    if not size.all():
        raise ApartError
    return int(size.shape[-1])


def _in_order(rows: Array, order: Array) -> Array:
    """The rows, or numbers, of each product in its order; a copy."""
    return np.asarray(rows[order] if order.ndim == 1 else rows[np.arange(len(order))[:, None], order])


def _lu(rows: Array) -> tuple[Array, Array]:
    """The factors of the transpose of ``rows`` (r, m), or of each, in one matrix, and what they permute.

    rows are the columns of what is factored: the transpose is Fortran-ordered for free.
    """
    if rows.ndim == 2:
        lu, swaps, _ = dgetrf(rows.T, overwrite_a=1)
        return lu, _permutation(swaps, lu.shape[0])
    each = [_lu(one) for one in rows]
    lu = np.stack([one.T for one, _ in each]).swapaxes(1, 2)
    return lu, np.stack([permutation for _, permutation in each])


def _permutation(swaps: Array, size: int) -> Array:
    return np.asarray(dlaswp(np.arange(size, dtype=float)[:, None], swaps)[:, 0].astype(np.intp))


def _first_bad(ratio: Array) -> int:
    """The first pivot that is noise: those after it were eliminated with it."""
    return int(np.argmax(ratio <= max(NOISE, float(ratio.min()))))


@cache
def _strictly_upper(size: int) -> Array:
    return np.triu(np.ones((size, size)), 1)


@cache
def _strictly_lower(size: int) -> Array:
    return np.tril(np.ones((size, size)), -1)


# ldexp of a whole matrix takes as long as its product with another.
_POWERS = np.ldexp(1.0, np.arange(-1075, 1001))


def powers_of_two(exponent: Array) -> Array:
    """2 ** exponent for integers; 0 and 2^1000 where float64 ends."""
    return _POWERS.take(exponent + 1075, mode="clip")
