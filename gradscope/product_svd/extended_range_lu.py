"""Elimination with complete pivoting of matrices whose entries have exponents of their own."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.extended_range_array import NOTHING, Wide
from gradscope.product_svd.graded_lu import powers_of_two

# A sum this many roundings of its largest term small is what rounding left of it.
ROUNDINGS = 128
# Entries this many bits below others do not change them.
UNSEEN = 64
# Of two equal terms rounding may have hidden a difference this many bits below them.
LAST_BIT = 52
# Bits that the entries span at most, once rows and columns are scaled, to be eliminated in float64; and where
# the largest of them are put: what the elimination makes of them has as much room at both ends.
FITS = 1200
CENTRE = 500


def eliminated(matrix: Wide, terms: Array, rounding: float) -> tuple[Array, Wide]:
    """L (r, k) with 1 as its largest entries, and U (k, n), by elimination with complete pivoting.

    Of D C D' with a well conditioned C and any diagonal D and D', both are right to the condition of C
    (Demmel et al., Computing the singular value decomposition with high relative accuracy, 1999).
    terms : (r, n) exponents of the largest terms that an entry is a sum of.
    """
    lost = int(np.log2(ROUNDINGS * rounding)) if rounding else NOTHING
    rows, columns, least = _scales(matrix.exponent)
    if least > -FITS:
        narrow = _Float64(matrix, terms, lost, rows, columns)
        found = _factors(narrow, matrix.mantissa.shape)
        if narrow.held:
            return found
    return _factors(_OfEachEntry(matrix, terms, lost), matrix.mantissa.shape)


def _scales(exponent: Array) -> tuple[Array, Array, int]:
    """Exponents of rows (r,) and columns (n,), that bring the largest entries to 1, and that of the least."""
    rows = exponent.max(axis=1, initial=NOTHING)
    rows = np.where(rows > NOTHING, rows, 0)
    scaled = np.where(exponent > NOTHING, exponent - rows[:, None], NOTHING)
    columns = scaled.max(axis=0, initial=NOTHING)
    columns = np.where(columns > NOTHING, columns, 0)
    return rows, columns, int(np.min(scaled - columns, where=scaled > NOTHING, initial=0))


class _Rest(Protocol):
    """What pivots have left of a matrix: rows and columns k, k + 1, ..., which are these of the matrix."""

    rows: Array
    columns: Array

    def largest(self, k: int) -> tuple[int, int] | None:
        """Row and column of the largest entry; None where all are zero."""

    def swap(self, k: int, i: int, j: int) -> None:
        """Bring row i and column j to row and column k."""

    def take(self, k: int) -> tuple[Array, Wide]:
        """Take away the product of column and row k; return column / pivot, and row."""


def _factors(rest: _Rest, shape: tuple[int, ...]) -> tuple[Array, Wide]:
    """L and U of the matrix of that shape."""
    count = min(shape)
    lower, upper = np.zeros((count, shape[0])), Wide.of(np.zeros((count, shape[1])))
    for k in range(count):
        place = rest.largest(k)
        if place is None:
            count = k
            break
        rest.swap(k, *place)
        lower[k, rest.rows[k:]], row = rest.take(k)
        upper.mantissa[k, rest.columns[k:]], upper.exponent[k, rest.columns[k:]] = row.mantissa, row.exponent
    return lower[:count].T, Wide(upper.mantissa[:count], upper.exponent[:count])


def _swap(k: int, i: int, *arrays: Array) -> None:
    if k != i:
        for array in arrays:
            array[[k, i]] = array[[i, k]]


class _Float64:
    """Rows and columns of a matrix scaled so that float64 holds them, and what elimination makes of them.

    held : whether it did so far. Elimination does not see the scales, only the choice of pivots does.
    """

    def __init__(self, matrix: Wide, terms: Array, lost: int, rows: Array, columns: Array) -> None:
        down = CENTRE - rows[:, None] - columns
        self.entries = matrix.mantissa * powers_of_two(matrix.exponent + down)
        self.noise = powers_of_two(terms + down + lost)
        self.relative = powers_of_two(np.asarray(lost))
        self.row_scales, self.column_scales = rows, columns
        self.weights = powers_of_two(columns)
        self.rows, self.columns = (np.arange(count) for count in matrix.mantissa.shape)
        self.work = np.empty_like(self.entries)
        self.held = True

    def largest(self, k: int) -> tuple[int, int] | None:
        """As of any rest; noise is cleared where it would be a pivot."""
        size = np.abs(self.entries[k:, k:], out=self.work[k:, k:])
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # found out below
            size *= self.weights[k:]
            height = np.log2(size.max(axis=1, initial=0)) + self.row_scales[k:]
        while True:
            i = int(np.argmax(height))
            if not np.isfinite(height[i]):
                # All is zero, unless numbers have left the range: NaN, infinity, or too small beside others.
                self.held &= not self.entries[k:, k:].any()
                return None
            row = self.entries[k + i, k:]
            row[np.abs(row) < self.noise[k + i, k:]] = 0.0
            size = np.abs(row) * self.weights[k:]
            j = int(np.argmax(size))
            with np.errstate(divide="ignore"):
                found = np.log2(size[j]) + self.row_scales[k + i]
            if found == height[i]:
                return k + i, k + j
            height[i] = found

    def swap(self, k: int, i: int, j: int) -> None:
        """As of any rest."""
        _swap(k, i, self.entries, self.noise, self.row_scales, self.rows)
        _swap(k, j, self.entries.T, self.noise.T, self.column_scales, self.weights, self.columns)

    def take(self, k: int) -> tuple[Array, Wide]:
        """As of any rest."""
        column, row = self.entries[k:, k], self.entries[k, k:]
        column[np.abs(column) < self.noise[k:, k]] = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            column = column / row[0]
            lower = column * powers_of_two(self.row_scales[k:] - self.row_scales[k])
            taken = np.multiply(column[1:, None], row[1:], out=self.work[k + 1 :, k + 1 :])
            rest = self.entries[k + 1 :, k + 1 :]
            rest -= taken
            if not self.relative:  # where nothing is cleared, equal terms leave their last bit
                np.copyto(rest, taken * 2.0**-LAST_BIT, where=(rest == 0) & (taken != 0))
            np.abs(taken, out=taken)
            taken *= self.relative
            np.maximum(self.noise[k + 1 :, k + 1 :], taken, out=self.noise[k + 1 :, k + 1 :])
        self.held &= bool(np.isfinite(column).all() and np.isfinite(row).all())
        scale = self.row_scales[k] + self.column_scales[k:] - CENTRE
        return lower, Wide.of(row, scale) if self.held else Wide.of(np.zeros_like(row))


class _OfEachEntry:
    """A matrix whose entries are too far apart for that.

    size : of its entries as exponent plus mantissa, which are in the order of their absolute values.
    terms : exponents of the largest terms of each; lost : bits below them where rounding leaves nothing.
    """

    def __init__(self, matrix: Wide, terms: Array, lost: int) -> None:
        self.lost = lost
        self.mantissa, self.exponent = self._cleared(matrix, terms)
        self.terms, self.size = terms.copy(), self.exponent + np.abs(self.mantissa)
        self.rows, self.columns = (np.arange(count) for count in self.mantissa.shape)

    def largest(self, k: int) -> tuple[int, int] | None:
        """As of any rest."""
        size = self.size[k:, k:]
        i, j = divmod(int(np.argmax(size)), size.shape[1])
        return None if self.mantissa[k + i, k + j] == 0 else (k + i, k + j)

    def swap(self, k: int, i: int, j: int) -> None:
        """As of any rest."""
        arrays = self.mantissa, self.exponent, self.terms, self.size
        _swap(k, i, self.rows, *arrays)
        _swap(k, j, self.columns, *(array.T for array in arrays))

    def take(self, k: int) -> tuple[Array, Wide]:
        """As of any rest.

        ``terms`` grow to those of the difference. (What column and row have lost themselves is not followed:
        the bounds would grow with every pivot, and take ordinary values for noise.)
        """
        row = Wide(self.mantissa[k, k:], self.exponent[k, k:])
        column = Wide.of(self.mantissa[k:, k] / row.mantissa[0], self.exponent[k:, k] - row.exponent[0])
        reach = (column.exponent[1:, None] + UNSEEN) + row.exponent[1:]
        seen = (reach > self.size[k + 1 :, k + 1 :]).any(axis=1) & (column.mantissa[1:] != 0)
        self._subtract(k, np.flatnonzero(seen) + 1, column, row)
        return column.float64(), row

    def _subtract(self, k: int, seen: Array, column: Wide, row: Wide) -> None:
        """Subtract the product of column and row k in some of the rows after."""
        exponent = column.exponent[seen, None] + row.exponent[1:]
        taken = Wide.of(column.mantissa[seen, None] * row.mantissa[1:], exponent)
        here = (seen + k, slice(k + 1, None))
        terms = np.maximum(self.terms[here], taken.exponent)
        left = Wide(self.mantissa[here], self.exponent[here]).minus(taken)
        if self.lost == NOTHING:  # as in float64
            equal = (left.mantissa == 0) & (taken.mantissa != 0)
            left = Wide(
                np.where(equal, taken.mantissa, left.mantissa),
                np.where(equal, taken.exponent - LAST_BIT, left.exponent),
            )
        mantissa, exponent = self._cleared(left, terms)
        self.mantissa[here], self.exponent[here], self.terms[here] = mantissa, exponent, terms
        self.size[here] = exponent + np.abs(mantissa)

    def _cleared(self, matrix: Wide, terms: Array) -> tuple[Array, Array]:
        """Without what rounding left of larger terms."""
        noise = matrix.exponent < terms + self.lost
        return np.where(noise, 0.0, matrix.mantissa), np.where(noise, NOTHING, matrix.exponent)
