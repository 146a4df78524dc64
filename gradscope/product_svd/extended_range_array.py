"""Arrays of numbers that no float64 holds side by side: every entry has its own exponent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd import log_scale
from gradscope.product_svd.graded_lu import powers_of_two

# Exponent of a zero: below every other, and no sum of a few of them overflows.
NOTHING = -(2**58)
# Bits of a band: products of two numbers of one are far from the ends of float64.
BAND = 400
# Pairs of bands from which on a product is made term by term, and terms at once.
MANY = 16
TERMS = 2**18


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

    def __getitem__(self, index: Any) -> Wide:
        return Wide(self.mantissa[index], self.exponent[index])

    @property
    def transposed(self) -> Wide:
        """The transpose."""
        return Wide(self.mantissa.T, self.exponent.T)

    def float64(self) -> Array:
        """As it is, with what is too small as 0."""
        return self.mantissa * powers_of_two(self.exponent)

    def times(self, other: Wide) -> Wide:
        """The product, entry by entry."""
        return Wide.of(self.mantissa * other.mantissa, self.exponent + other.exponent)

    def over(self, other: Wide) -> float:
        """The quotient of two numbers as a float64, infinity or NaN where it has none."""
        if not other.mantissa:
            return math.nan
        quotient = float(self.mantissa / other.mantissa)
        with np.errstate(over="ignore"):
            return float(np.ldexp(quotient, int(np.clip(self.exponent - other.exponent, -2000, 2000))))

    def plus(self, other: Wide) -> Wide:
        """The sum, entry by entry."""
        return self.minus(Wide(-other.mantissa, other.exponent))

    def minus(self, other: Wide) -> Wide:
        """The difference, entry by entry."""
        top = np.maximum(self.exponent, other.exponent)
        difference = self.mantissa * powers_of_two(self.exponent - top)
        difference -= other.mantissa * powers_of_two(other.exponent - top)
        return Wide.of(difference, top)

    def reshape(self, *shape: int) -> Wide:
        """As arrays are."""
        return Wide(self.mantissa.reshape(shape), self.exponent.reshape(shape))

    def put(self, index: Any, part: Wide) -> None:
        """Set what stands there."""
        self.mantissa[index], self.exponent[index] = part.mantissa, part.exponent

    @classmethod
    def zeros(cls, *shape: int) -> Wide:
        """Of that shape."""
        return cls(np.zeros(shape), np.full(shape, NOTHING))

    @property
    def log10(self) -> Array:
        """Of the absolute values, -inf of zeros."""
        return np.where(self.mantissa == 0, -np.inf, log_scale.decades(np.abs(self.mantissa), self.exponent))

    @property
    def bits_below_one(self) -> float:
        """From the smallest that is not zero to the largest, or to 1."""
        seen = self.exponent[self.mantissa != 0]
        return float(max(0, seen.max()) - seen.min()) if seen.size else 0.0


def wide_product(left: Wide, right: Wide) -> tuple[Wide, Array]:
    """The matrix product, and exponents of the largest sums of terms, by absolute value.

    Band by band: each pair of bands is one product of float64 matrices. Where there are many it is term by
    term.
    """
    rows, columns = _largest(left.exponent, 1), _largest(right.exponent, 0)
    if _count(left.exponent - rows) * _count(right.exponent - columns) > MANY:
        return _by_terms(left, right)
    found, terms = Wide.of(np.zeros((len(rows), columns.size))), np.full((len(rows), columns.size), NOTHING)
    for level, (signed, absolute) in _levels(left, rows, right, columns).items():
        exponent = rows + columns - BAND * level
        found = found.minus(Wide.of(-signed, exponent))
        terms = np.maximum(terms, Wide.of(absolute, exponent).exponent)
    return found, terms


def _count(exponent: Array) -> int:
    """How many bands there are, zeros included."""
    band = exponent // BAND
    return len(np.unique(band)) if band.min(initial=0) < -3 else 4


def _by_terms(left: Wide, right: Wide) -> tuple[Wide, Array]:
    """``wide_product`` term by term, some rows at a time."""
    shape = (len(left.mantissa), right.mantissa.shape[1])
    found, terms = Wide.zeros(*shape), np.full(shape, NOTHING)
    at_once = max(1, TERMS // max(1, right.mantissa.size))
    for low in range(0, shape[0], at_once):
        some = slice(low, low + at_once)
        exponent = left.exponent[some, :, None] + right.exponent
        top = np.maximum(exponent.max(axis=1, initial=NOTHING), NOTHING)
        each = left.mantissa[some, :, None] * right.mantissa * powers_of_two(exponent - top[:, None])
        found.put(some, Wide.of(each.sum(axis=1), top))
        terms[some] = top + 1
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
    for i in np.unique(band[band >= 0]).tolist():
        yield i, np.where(band == i, mantissa, 0.0) * powers_of_two(exponent + BAND * i)
