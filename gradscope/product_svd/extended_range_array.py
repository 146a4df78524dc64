"""Arrays of numbers that no float64 holds side by side: every entry has its own exponent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.graded_lu import powers_of_two

# Exponent of a zero: below every other, and no sum of a few of them overflows.
NOTHING = -(2**40)
# Bits of a band: products of two numbers of one are far from the ends of float64.
BAND = 400


@dataclass(frozen=True)
class Wide:
    """An array mantissa * 2**exponent, with 1/2 <= |mantissa| < 1, or 0 and NOTHING."""

    mantissa: Array
    exponent: Array

    @classmethod
    def of(cls, array: Array, exponent: Array | int = 0) -> Wide:
        """array * 2**exponent, of finite numbers."""
        mantissa, carried = np.frexp(array)
        return cls(mantissa, np.where(mantissa == 0, NOTHING, carried + np.int64(0) + exponent))

    @property
    def transposed(self) -> Wide:
        """The transpose."""
        return Wide(self.mantissa.T, self.exponent.T)

    def float64(self) -> Array:
        """As it is, with what is too small as 0."""
        return self.mantissa * powers_of_two(self.exponent)

    def minus(self, other: Wide) -> Wide:
        """The difference, entry by entry."""
        top = np.maximum(self.exponent, other.exponent)
        difference = self.mantissa * powers_of_two(self.exponent - top)
        difference -= other.mantissa * powers_of_two(other.exponent - top)
        return Wide.of(difference, top)


def wide_product(left: Wide, right: Wide) -> tuple[Wide, Array]:
    """The matrix product, and exponents of the largest sums of terms, by absolute value.

    Band by band: each pair of bands is one product of float64 matrices.
    """
    rows, columns = _largest(left.exponent, 1), _largest(right.exponent, 0)
    found, terms = Wide.of(np.zeros((len(rows), columns.size))), np.full((len(rows), columns.size), NOTHING)
    for level, (signed, absolute) in _levels(left, rows, right, columns).items():
        exponent = rows + columns - BAND * level
        found = found.minus(Wide.of(-signed, exponent))
        terms = np.maximum(terms, Wide.of(absolute, exponent).exponent)
    return found, terms


def _levels(left: Wide, rows: Array, right: Wide, columns: Array) -> dict[int, tuple[Array, Array]]:
    """Sums of products of bands that are of one size, and of their absolute values."""
    levels: dict[int, tuple[Array, Array]] = {}
    theirs = list(_bands(right.mantissa, right.exponent - columns))
    for i, a in _bands(left.mantissa, left.exponent - rows):
        for j, b in theirs:
            signed, absolute = levels.get(i + j, (0.0, 0.0))
            levels[i + j] = signed + a @ b, absolute + np.abs(a) @ np.abs(b)
    return levels


def _largest(exponent: Array, axis: int) -> Array:
    largest = exponent.max(axis=axis, keepdims=True, initial=NOTHING)
    return np.asarray(np.maximum(largest, NOTHING // 2))


def _bands(mantissa: Array, exponent: Array) -> Iterator[tuple[int, Array]]:
    """(i, entries from 2**-BAND to 1) of which 2**(-BAND i) times each add up to the matrix."""
    band = np.where(mantissa == 0, -1, -exponent // BAND)
    for i in range(int(band.max(initial=-1)) + 1):
        here = band == i
        if here.any():
            yield i, np.where(here, mantissa, 0.0) * powers_of_two(exponent + BAND * i)
