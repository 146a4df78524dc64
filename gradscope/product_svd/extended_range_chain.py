"""The graded product of steps whose entries no float64 holds side by side: every entry has its own exponent.

Saturated gates put 1e-174 beside 1, and what such an entry does is as far below: a few steps of it, or the
elimination between two of them, leave the range of float64 long before the values do. It takes tens of times
as long as ``graded_chain``, and is for chains where that one cannot go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.extended_range_array import NOTHING, Wide, wide_product
from gradscope.product_svd.extended_range_lu import eliminated
from gradscope.product_svd.graded_lu import Graded

# x is made orthonormal again where its entries have grown by this, and every so many steps.
GROWN = 1e3
EVERY = 16
# Values that are followed at least, and the bits by which as many rows exceed what is left out, everywhere.
FOLLOWED = 48
FAR_BELOW = 128
# Bits by which columns that meet a row of zeros count less than others: they are in one lag alone.
LAST = 4096


class StepMatrices(Protocol):
    """What is multiplied: steps.Steps."""

    def __len__(self) -> int: ...

    def wide(self, t: int) -> Wide:
        """Step t."""


def wide_prefixes(steps: StepMatrices, rounding: float) -> Iterator[tuple[Graded, int]]:
    """Graded forms of A_T, A_T A_(T-1), ..., A_T ... A_1, and how many directions they leave out.

    Left out of a large chain are those that the larger ones exceed in whatever they read.
    rounding : relative, of the entries. What is left of a sum of larger terms counts as nothing where that
    rounding explains it, and never at 0.
    """
    last = len(steps) - 1
    step, sizes = _rows_of_one(steps.wide(last))
    x = np.eye(len(sizes))
    so_far = _times_columns(Wide.of(x), sizes)  # diag(d) Y in one, for steps with rows of size 1
    left_out = 0
    for lag, t in enumerate(range(last, -1, -1), 1):
        turned, terms = wide_product(so_far, step)
        # Columns count by what comes next (see graded_chain.scaled), or its larger rows hide what others add.
        step, sizes = _rows_of_one(steps.wide(t - 1)) if t else (step, np.zeros(step.exponent.shape[1], int))
        lower, so_far = eliminated(_times_columns(turned, sizes), terms + sizes, rounding)
        x = lower.T @ x
        if np.abs(x).max(initial=0) > GROWN or lag % EVERY == 0 or lag & (lag - 1) == 0:
            x, so_far = _turned(x, so_far, rounding)
        followed = _followed(so_far.exponent)
        # Steps of so low a rank leave no more of the others.
        left_out = left_out + len(x) - int(followed.sum()) if len(x) >= FOLLOWED else 0
        x, so_far = x[followed], Wide(so_far.mantissa[followed], so_far.exponent[followed])
        yield _graded(x, _times_columns(so_far, -sizes)), left_out


def plain_prefixes(steps: StepMatrices) -> Iterator[Graded]:
    """The same of the plain products: of these the largest value is as good as the entries allow."""
    so_far: Wide | None = None
    for t in reversed(range(len(steps))):
        step = steps.wide(t)
        so_far = step if so_far is None else wide_product(so_far, step)[0]
        yield by_rows(so_far)


def by_rows(matrix: Wide) -> Graded:
    """A matrix as a graded product of its own rows."""
    alive = np.asarray(matrix.mantissa.any(axis=1))
    return _graded(np.eye(len(alive))[alive], matrix[alive])


def _followed(exponent: Array) -> Array:
    """(r,) which rows are, in any entry, not far below the largest rows."""
    if len(exponent) <= FOLLOWED:
        return np.ones(len(exponent), bool)
    bar = np.partition(exponent, -FOLLOWED, axis=0)[-FOLLOWED]
    return np.asarray(((exponent > NOTHING) & (exponent > bar - FAR_BELOW)).any(axis=1))


def _rows_of_one(step: Wide) -> tuple[Wide, Array]:
    """A step with rows of size about 1, and the exponents (m,) of their sizes.

    Rows of zeros stay, as the smallest: as pivots the columns that meet them would hide what is left.
    """
    sizes = step.exponent.max(axis=1, initial=NOTHING)
    live = sizes > NOTHING
    sizes = np.where(live, sizes, sizes.min(where=live, initial=0) - LAST)
    return _times_columns(step.transposed, -sizes).transposed, sizes


def _times_columns(matrix: Wide, exponent: Array) -> Wide:
    """The matrix times diag(2**exponent)."""
    return Wide(matrix.mantissa, np.where(matrix.mantissa == 0, NOTHING, matrix.exponent + exponent))


def _turned(x: Array, so_far: Wide, rounding: float) -> tuple[Array, Wide]:
    """The same with x made of an orthonormal one again, so that its condition does not pile up."""
    q, r = np.linalg.qr(x.T)
    lower, upper = eliminated(*wide_product(Wide.of(r), so_far), rounding)
    return lower.T @ q.T, upper


def _graded(x: Array, so_far: Wide) -> Graded:
    """X^T diag(d) Y with 1 as the largest entry of every row of Y: what is too small beside it is 0."""
    exponent = so_far.exponent.max(axis=1, initial=NOTHING)
    y = Wide(so_far.mantissa, so_far.exponent - exponent[:, None]).float64()
    return Graded(x, np.ones(len(x)), exponent, y)
