"""The chain as a graded product P = X^T diag(d) Y: LU at every step, d as mantissa and exponent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
from scipy.linalg.blas import dtrmm
from scipy.linalg.lapack import dgetrf, dlaswp

from gradscope.errors import InputError
from gradscope.structure import Array

RankAt = Callable[[int, Array], int]

# A pivot this far below its column may be the rounding noise of an exact cancellation; this far, it is
# noise if any is.
SUSPECT = 1e-10
NOISE = 1e-13
# Powers of two up to here can be divided by each other without leaving float64.
SAFE_EXPONENT = 450
# Steps between resets, times m: 64 steps at m = 128, 16 at m = 512, where 64 cost a digit.
RESET_WORK = 8192
# The entries of x are about 1 unless a step holds numbers that do not fit side by side.
LARGEST = 1e140
# Pivots near the noise make x grow by as much, step after step.
GROWN = 1e8

OUT_OF_RANGE = (
    "the steps mix entries more than 1e150 apart, expected fewer decades within one step: "
    "rescale the states or set the smallest entries to zero"
)


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
        return cls(np.eye(m, order="F"), np.ones(m), np.zeros(m, np.int64), np.eye(m))


def prefixes(
    steps: Callable[[int], Array],
    weights: list[Array],
    start: Graded,
    rank_at: RankAt,
    forced: dict[int, int],
    reset: Callable[[Graded], Graded],
    regularly: bool = False,
) -> Iterator[tuple[Graded, Array]]:
    """Graded form of A_T, A_T A_(T-1), ..., A_T ... A_1 with the exponents of the columns of y.

    steps(t) is A_(t+1); rank_at and forced as rank and forced of advance, at every t.
    reset : makes x and y orthonormal again, where x has grown; ``regularly`` also at lags 1, 2, 4, ...
    and every so many, because the condition of x grows with m (1e10 for a GRU of 128 units) before the
    grading sets in.

    From the output end, because LU pivoting then chooses among the states the step comes from:
    measured to be accurate on saturated LSTMs and Jordan blocks, where the other order is not.
    """
    count = len(weights)
    graded = replace(start, exponent=start.exponent + weights[-1])
    for t in reversed(range(count)):
        a = steps(t) * np.ldexp(1.0, -weights[t])[:, None]
        after = weights[t - 1] if t else np.zeros(a.shape[1], int)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            graded = advance(graded, a, after, partial(rank_at, t), forced.get(t))
        growth = np.abs(graded.x).max(initial=0)
        if not growth < LARGEST:  # not >=, or NaN passes
            raise InputError(OUT_OF_RANGE)
        due = regularly and _reset_due(count - t, max(1, RESET_WORK // max(1, len(after))))
        if t and (due or growth > GROWN):
            graded = reset(graded)
        yield graded, after


def _reset_due(lag: int, every: int) -> bool:
    return lag % every == 0 or (lag < every and lag & (lag - 1) == 0)


def advance(
    graded: Graded,
    a: Array,
    after: Array,
    rank: Callable[[Array], int],
    forced: int | None = None,
) -> Graded:
    """Multiply by one more step from the right: P -> P a, times 2^after by columns.

    `after` is the size of the rows of the next step: pivots are chosen by what they will be
    multiplied with, or rows of very different size make the next columns parallel.
    rank(ratio) is asked only where a pivot is zero or may be noise, with the sizes of all pivots
    relative to their columns; it returns how many directions truly survive (all of them, or as
    many as are known to, or one less than there are). forced: that number, known before.
    """
    if graded.rank == 0 or a.shape[1] == 0:
        return Graded(graded.x[:0], np.zeros(0), np.zeros(0, np.int64), np.zeros((0, a.shape[1])))
    shift = int(after.max())
    rows = (graded.y @ a) * np.ldexp(1.0, after - shift)
    size = np.abs(rows).max(axis=1, initial=0)
    weight = np.log2(size) + np.log2(np.abs(graded.mantissa)) + graded.exponent
    # Pre-pivoting (Tomas, Chang, Scalettar, Bai 2012): largest first, or N below overflows.
    order = np.argsort(-weight, kind="stable")
    order, lu, pivot_rows, kept = _factor(rows, size, order, rank, forced)
    mantissa, exponent = graded.mantissa[order], graded.exponent[order]

    pivots = lu.diagonal()[:kept]
    n = _upper(lu, pivots, mantissa, exponent)
    x = graded.x[order]
    x = dtrmm(1.0, n, x, diag=1, overwrite_b=1) if kept == len(order) else np.triu(n) @ x
    y = np.empty((kept, a.shape[1]))
    y[:, pivot_rows] = lu.T[:kept] * _strictly_upper(lu.shape[0])[:kept]
    y[np.arange(kept), pivot_rows[:kept]] = 1
    mantissa, carried = np.frexp(mantissa[:kept] * pivots)
    return Graded(np.asfortranarray(x), mantissa, exponent[:kept] + carried + shift, y)


def _factor(
    rows: Array, size: Array, order: Array, rank: Callable[[Array], int], forced: int | None
) -> tuple[Array, Array, Array, int]:
    """LU of the sorted columns, with columns that depend on others moved to the end.

    Returns (order, lu, row permutation, number of directions kept).
    """
    live = int(np.count_nonzero(size))  # zeros are last in the order
    while True:
        # rows are the columns of what is factored: the transpose is Fortran-ordered for free.
        lu, swaps, _ = dgetrf(rows[order].T, overwrite_a=1)
        kept = min(live, lu.shape[0])
        ratio = np.abs(lu.diagonal()[:kept]) / size[order[:kept]]
        if kept == 0 or (forced is None and ratio.min() > SUSPECT):
            break
        survivors = rank(ratio) if forced is None else forced
        if ratio.min() == 0:  # nothing to divide by, whatever its value should have been
            survivors = min(survivors, kept - 1)
        if kept <= survivors or live <= survivors:
            kept = min(kept, survivors)
            break
        bad = _first_bad(ratio)
        order = np.concatenate([np.delete(order[:live], bad), order[[bad]], order[live:]])
        live -= 1
    return order, lu, _permutation(swaps, lu.shape[0]), kept


def _first_bad(ratio: Array) -> int:
    """The first pivot that is noise: those after it were eliminated with it."""
    return int(np.argmax(ratio <= max(NOISE, float(ratio.min()))))


def _permutation(swaps: Array, size: int) -> Array:
    return np.asarray(dlaswp(np.arange(size, dtype=float)[:, None], swaps)[:, 0].astype(np.intp))


@cache
def _strictly_upper(size: int) -> Array:
    return np.triu(np.ones((size, size)), 1)


def _upper(lu: Array, pivots: Array, mantissa: Array, exponent: Array) -> Array:
    """N = D_new^-1 U D: unit upper triangular (what is below the diagonal is never read)."""
    n = lu[: len(pivots)] / pivots[:, None]
    kept = len(n)
    low, high = int(exponent.min(initial=0)), int(exponent.max(initial=0))
    if high - low < 2 * SAFE_EXPONENT:
        d = np.ldexp(mantissa, exponent - (low + high) // 2)
        n /= d[:kept, None]
        n *= d
    else:
        n /= mantissa[:kept, None]
        n *= mantissa
        n *= powers_of_two(exponent - exponent[:kept, None])
    return n


# ldexp of a whole matrix takes as long as its product with another.
_POWERS = np.ldexp(1.0, np.arange(-1075, 1001))


def powers_of_two(exponent: Array) -> Array:
    """2 ** exponent for integers; 0 and 2^1000 where float64 ends."""
    return _POWERS.take(exponent + 1075, mode="clip")
