"""The graded product of steps whose entries no float64 holds side by side: every entry has its own exponent.

Saturated gates put 1e-174 beside 1, and what such an entry does is as far below: a few steps of it, or the
elimination between two of them, leave the range of float64 long before the values do. It takes tens of times
as long as ``graded_chain``, and is for chains where that one cannot go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.graded_lu import Graded, powers_of_two

# Exponent of a zero: below every other, and no sum of a few of them overflows.
NOTHING = -(2**40)
# Bits of a band: products of two numbers of one are far from the ends of float64.
BAND = 400
# A sum this many roundings of its largest term small is what rounding left of it.
ROUNDINGS = 128
# Entries this many bits below others do not change them.
UNSEEN = 64
# x is made orthonormal again where its entries have grown by this, and every so many steps.
GROWN = 1e3
EVERY = 16
_ALL = slice(None)


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

    @property
    def absolute(self) -> Wide:
        """Of absolute values."""
        return Wide(np.abs(self.mantissa), self.exponent)

    def float64(self) -> Array:
        """As it is, with what is too small as 0."""
        return self.mantissa * powers_of_two(self.exponent)

    def minus(self, other: Wide) -> Wide:
        """The difference, entry by entry."""
        top = np.maximum(self.exponent, other.exponent)
        difference = self.mantissa * powers_of_two(self.exponent - top)
        difference -= other.mantissa * powers_of_two(other.exponent - top)
        return Wide.of(difference, top)

    def __matmul__(self, other: Wide) -> Wide:
        """The matrix product, band by band: each pair of bands is one product of float64 matrices."""
        rows, columns = _largest(self.exponent, 1), _largest(other.exponent, 0)
        left = list(_bands(self.mantissa, self.exponent - rows))
        right = list(_bands(other.mantissa, other.exponent - columns))
        levels: dict[int, Array] = {}
        for i, a in left:
            for j, b in right:
                levels[i + j] = levels.get(i + j, 0.0) + a @ b
        found = Wide.of(np.zeros((len(self.mantissa), other.mantissa.shape[1])))
        for level, product in levels.items():
            found = found.minus(Wide.of(-product, rows + columns - BAND * level))
        return found


def _largest(exponent: Array, axis: int) -> Array:
    largest = exponent.max(axis=axis, keepdims=True, initial=NOTHING)
    return np.asarray(np.maximum(largest, NOTHING // 2))


def _bands(mantissa: Array, exponent: Array) -> Iterator[tuple[int, Array]]:
    """(i, entries from 2**-BAND to 1) of which 2**(-BAND i) times each add up to the matrix."""
    band = np.where(mantissa == 0, -1, -exponent // BAND)
    for i in np.unique(band[band >= 0]).tolist():
        yield i, np.where(band == i, mantissa, 0.0) * powers_of_two(exponent + BAND * i)


class StepMatrices(Protocol):
    """What is multiplied: steps.Steps."""

    def __len__(self) -> int: ...

    def dense(self, t: int) -> Array:
        """Step t."""


def wide_prefixes(steps: StepMatrices, rounding: float) -> Iterator[Graded]:
    """Graded forms of A_T, A_T A_(T-1), ..., A_T ... A_1.

    rounding : relative, of the entries. What is left of a sum of larger terms counts as nothing where that
    rounding explains it, and never at 0.
    """
    last = len(steps) - 1
    step, sizes = _rows_of_one(steps.dense(last))
    x = np.eye(len(sizes))
    product = _times_columns(Wide.of(x), sizes)  # diag(d) Y in one, for steps with rows of size 1
    for lag, t in enumerate(range(last, -1, -1), 1):
        turned, terms = product @ step, (product.absolute @ step.absolute).exponent
        # Columns count by what comes next (see graded_chain.scaled), or its larger rows hide what others add.
        step, sizes = _rows_of_one(steps.dense(t - 1)) if t else (step, np.zeros(step.exponent.shape[1], int))
        lower, product = eliminated(_times_columns(turned, sizes), terms + sizes, rounding)
        x = lower.T @ x
        if np.abs(x).max(initial=0) > GROWN or lag % EVERY == 0 or lag & (lag - 1) == 0:
            x, product = _turned(x, product, rounding)
        yield _graded(x, _times_columns(product, -sizes))


def _rows_of_one(a: Array) -> tuple[Wide, Array]:
    """A step with rows of size about 1, and the exponents (m,) of their sizes; rows of zeros stay."""
    step = Wide.of(a)
    sizes = step.exponent.max(axis=1, initial=NOTHING)
    sizes = np.where(sizes > NOTHING, sizes, 0)
    return _times_columns(step.transposed, -sizes).transposed, sizes


def _times_columns(matrix: Wide, exponent: Array) -> Wide:
    """The matrix times diag(2**exponent)."""
    return Wide(matrix.mantissa, np.where(matrix.mantissa == 0, NOTHING, matrix.exponent + exponent))


def _turned(x: Array, product: Wide, rounding: float) -> tuple[Array, Wide]:
    """The same with x made of an orthonormal one again, so that its condition does not pile up."""
    q, r = np.linalg.qr(x.T)
    turn = Wide.of(r)
    terms = (turn.absolute @ product.absolute).exponent
    lower, product = eliminated(turn @ product, terms, rounding)
    return lower.T @ q.T, product


def eliminated(matrix: Wide, terms: Array, rounding: float) -> tuple[Array, Wide]:
    """L (r, k) with 1 as its largest entries, and U (k, n), by elimination with complete pivoting.

    Of D C D' with a well conditioned C and any diagonal D and D', both are right to the condition of C
    (Demmel et al., Computing the singular value decomposition with high relative accuracy, 1999).
    terms : (r, n) exponents of the largest terms that an entry is a sum of.
    """
    lost = int(np.log2(ROUNDINGS * rounding)) if rounding else NOTHING
    rest, terms = _cleared(matrix, terms, lost), terms.copy()
    lowers, uppers = [], []
    for _ in range(min(rest.mantissa.shape)):
        best = int(np.argmax(rest.exponent + np.abs(rest.mantissa)))
        i, j = divmod(best, rest.mantissa.shape[1])
        if rest.mantissa[i, j] == 0:
            break
        column, row = _without(rest, terms, (i, j), lost)
        lowers.append(column.float64())
        uppers.append(row)
    if not uppers:
        return np.zeros((len(matrix.mantissa), 0)), Wide.of(matrix.mantissa[:0])
    stacked = Wide(np.array([u.mantissa for u in uppers]), np.array([u.exponent for u in uppers]))
    return np.array(lowers).T, stacked


def _without(rest: Wide, terms: Array, place: tuple[int, int], lost: int) -> tuple[Wide, Wide]:
    """Take from ``rest`` the product of its column and its row at a pivot; return column / pivot, and row.

    ``terms`` grow to those of the difference. (What column and row have lost themselves is not followed: the
    bounds would grow with every pivot, and take ordinary values for noise.)
    """
    i, j = place
    pivot, row = rest.mantissa[i, j], Wide(rest.mantissa[i].copy(), rest.exponent[i].copy())
    column = Wide.of(rest.mantissa[:, j] / pivot, rest.exponent[:, j] - rest.exponent[i, j])
    change = column.exponent[:, None] + row.exponent
    seen = np.flatnonzero((change > rest.exponent - UNSEEN).any(axis=1) & (column.mantissa != 0))
    taken = Wide.of(column.mantissa[seen, None] * row.mantissa, change[seen])
    terms[seen] = np.maximum(terms[seen], taken.exponent)
    part = _cleared(Wide(rest.mantissa[seen], rest.exponent[seen]).minus(taken), terms[seen], lost)
    rest.mantissa[seen], rest.exponent[seen] = part.mantissa, part.exponent
    for here in (i, _ALL), (_ALL, j):
        rest.mantissa[here], rest.exponent[here] = 0.0, NOTHING
    return column, row


def _cleared(matrix: Wide, terms: Array, lost: int) -> Wide:
    """Without what rounding left of larger terms."""
    noise = matrix.exponent < terms + lost
    return Wide(np.where(noise, 0.0, matrix.mantissa), np.where(noise, NOTHING, matrix.exponent))


def _graded(x: Array, product: Wide) -> Graded:
    """X^T diag(d) Y with 1 as the largest entry of every row of Y: what is too small beside it is 0."""
    exponent = product.exponent.max(axis=1, initial=NOTHING)
    y = Wide(product.mantissa, product.exponent - exponent[:, None]).float64()
    return Graded(x, np.ones(len(x)), exponent, y)
