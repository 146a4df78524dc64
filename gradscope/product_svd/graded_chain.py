"""The chain as a graded product P = X^T diag(d) Y: LU at every step, d as mantissa and exponent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.graded_lu import Graded, factor

RankAt = Callable[[int, Array], int]

# Rows whose sizes are in here are factored as they are.
SAFE = (2.0**-200, 2.0**200)
# Steps multiplied before they are factored, at most; after too many at once, how many go singly.
LONGEST = 8
ALONE = 32
# Steps between resets where x is made well conditioned again: the condition grows as 2^steps at worst.
RESET_EVERY = 32
# The entries of x are about 1 unless a step holds numbers that do not fit side by side.
LARGEST = 1e140
# Pivots near the noise make x grow by as much, step after step.
GROWN = 1e8


class RangeError(Exception):
    """The steps hold numbers that do not fit side by side: see extended_range_chain."""


class Way(NamedTuple):
    """How a chain is gone through.

    regularly : x is reset at lags 1, 2, 4, ... and every so many, not only where it has grown, because its
    condition grows with m (1e10 for a GRU of 128 units) before the grading sets in.
    grouped : steps are multiplied into y without being factored as long as no pivot gets smaller than this
    relative to its column; what is lost of a value is eps over that. Infinite: none are.
    """

    regularly: bool = False
    grouped: float = np.inf


class ScaledSteps(Protocol):
    """What ``prefixes`` multiplies: steps scaled by rows to about 1, as steps.Steps has them."""

    weights: list[Array]

    def times(self, y: Array, t: int) -> Array:
        """y @ A_(t+1), the rows of A scaled by 2**-weights[t]."""


def prefixes(
    steps: ScaledSteps,
    start: Graded,
    rank_at: RankAt,
    forced: dict[int, int],
    way: Way,
) -> Iterator[tuple[Graded, Array]]:
    """Graded form of A_T, A_T A_(T-1), ..., A_T ... A_1 with the exponents of the columns of y.

    rank_at and forced : as rank and forced of factored, at every t.

    From the output end, because LU pivoting then chooses among the states the step comes from:
    measured to be accurate on saturated LSTMs and Jordan blocks, where the other order is not.

    Of chains of one shape side by side what one of them needs is done to all. Raises ApartError where one
    leaves a direction out.
    """
    graded = scaled(start, start.y, steps.weights[-1])
    t = len(steps.weights)
    group, alone = 1, 0
    while t:
        count = min(group, t) if t - group not in forced else 1
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            products = list(_products(steps, graded, t, count))
            rank = partial(rank_at, t - count)
            found = factored(*products[-1], rank, forced.get(t - count), way.grouped if count > 1 else 0.0)
        if found is None:  # too much at once
            group, alone = count // 2, ALONE
            continue
        graded, worst = found
        growth = graded.largest_in_x.max(initial=0)
        if not growth < LARGEST:  # not >=, or NaN passes
            raise RangeError
        yield from products[:-1]
        lag, t = len(steps.weights) - t + count, t - count
        if t and (growth > GROWN or (way.regularly and _reset_due(lag, count))):
            graded = reset(graded)
        whole, after = products[-1]
        # What the steps to come reduce to noise counts in the norm of this lag.
        cut = graded.rank < whole.rank and t and len(after)
        yield whole if cut else graded, after
        alone -= count
        group = min(2 * count, LONGEST) if worst**2 > way.grouped and alone <= 0 else count


def all_of(_: int, ratio: Array) -> int:
    """A rank for ``prefixes``: all directions survive every step."""
    return int(ratio.shape[-1])


def _reset_due(lag: int, count: int) -> bool:
    """Whether one of the ``count`` lags up to ``lag`` is 1, 2, 4, ... or a multiple of RESET_EVERY."""
    return lag % RESET_EVERY < count or (lag < RESET_EVERY and (lag & (lag - 1)) == 0)


def _products(steps: ScaledSteps, graded: Graded, t: int, count: int) -> Iterator[tuple[Graded, Array]]:
    """The graded form with 1, 2, ... ``count`` more steps multiplied into y, and the scale of its columns."""
    for k in range(t - 1, t - 1 - count, -1):
        rows = steps.times(graded.y, k)
        after = steps.weights[k - 1] if k else np.zeros(rows.shape[-1], int)
        graded = scaled(graded, rows, after)
        yield graded, after


def scaled(graded: Graded, rows: Array, after: Array) -> Graded:
    """The graded form with ``rows`` times 2^after by columns in place of y.

    `after` is the size of the rows of what comes next: pivots are chosen by what they will be
    multiplied with, or rows of very different size make the next columns parallel.
    """
    if not after.any():
        return Graded(graded.x, graded.mantissa, graded.exponent, rows)
    shift = int(after.max())
    if shift != after.min():
        rows = rows * np.ldexp(1.0, after - shift)
    return Graded(graded.x, graded.mantissa, graded.exponent + shift, rows)


def factored(
    graded: Graded,
    after: Array,
    rank: Callable[[Array], int],
    forced: int | None = None,
    least: float = 0.0,
) -> tuple[Graded, float] | None:
    """The same product with a well conditioned y, and its smallest pivot; None if that is below ``least``.

    after : exponents by which the columns of y are scaled.
    rank(ratio) is asked only where a pivot is zero or may be noise, with the sizes of all pivots
    relative to their columns; it returns how many directions truly survive (all of them, or as
    many as are known to, or one less than there are). forced: that number, known before.
    """
    rows = graded.y
    if graded.rank == 0 or rows.shape[-1] == 0:
        return Graded.nothing(graded.x, rows.shape[-1]), 1.0
    size = np.abs(rows).max(axis=-1, initial=0)
    if not (size.min() >= SAFE[0] and size.max() < SAFE[1]):
        carried = np.frexp(size)[1]
        rows, size = np.ldexp(rows, -carried[..., None]), np.ldexp(size, -carried)
        graded = replace(graded, exponent=graded.exponent + carried)
    factors = factor(graded, rows, size, after, rank, forced, least)
    if factors is None:
        return None
    return factors.graded(factors.times(graded.x), factors.lower()), factors.worst


def reset(graded: Graded) -> Graded:
    """The same product with x well conditioned: X^T = L U, and D^-1 U D goes to y, where it is bounded.

    What x has lost of its condition is then in y, from where the next step takes it into d.
    """
    size = graded.largest_in_x
    if graded.rank == 0 or not size.all():
        return graded
    factors = factor(graded, graded.x, size, np.zeros(graded.x.shape[-1], int), partial(all_of, 0))
    if factors is None or factors.kept < graded.rank:
        return graded
    return factors.graded(factors.lower(), factors.times(graded.y))
