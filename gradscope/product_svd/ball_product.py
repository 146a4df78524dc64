"""The last resort for small chains: the product itself, in balls of as many digits as it takes.

For chains like Jordan blocks, whose small values are well determined by every entry's relative size but not
by the norm of a step, and for products of saturated gates whose terms cancel: no factorisation in the digits
of float64 finds these, whatever its exponents. A ball (python-flint's ``arb``) holds the number that it
stands for, so that what is found is right, or known not to be found.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.extended_range_array import NOTHING, Wide
from gradscope.product_svd.extended_range_chain import by_rows
from gradscope.product_svd.graded_lu import Graded
from gradscope.product_svd.norm_by_lag import LagNorm
from gradscope.product_svd.outcome import Outcome
from gradscope.product_svd.steps import Steps, UnknownDigitsError

# Bits to begin with, times so many where they are not enough, and at most.
FEWEST, MORE, MOST = 512, 4, 2**15
# Of pivots and norms that must be right: more than a float64 has.
SURE = 64
# Multiplications that are worth the wait for the last digits, and where values are wrong in the sixth: of
# m = 48 and T = 200, a second.
BUDGET, LARGE_BUDGET = 1_000_000, 25_000_000
# Of the digits that are taken of an entry; exponents that products of many of them leave in 64 bits.
_KEPT, _FARTHEST = 60, 2**48
_one_at_a_time = threading.RLock()

# (step, bits) -> its matrix, of balls or of ``scales.Number``.
StepBalls = Callable[[int, int], Array]


@contextlib.contextmanager
def precision(bits: int) -> Iterator[None]:
    """Within, balls have so many bits, which is so for all threads: of one at a time."""
    import flint

    with _one_at_a_time:
        before, flint.ctx.prec = flint.ctx.prec, bits
        try:
            yield
        finally:
            flint.ctx.prec = before


class BallRun(Outcome):
    """One pass over T steps in balls of so many bits, and its finish.

    rank : how many values there are at most; None is the largest alone; apart : whether the product is of
    ``scales.Number`` as the steps are. lost : of how many values the bits leave nothing; unsure : (T,) of
    which lags.
    """

    def __init__(
        self,
        steps: int,
        balls: StepBalls,
        bits: int,
        lag_norm: LagNorm | None,
        rank: int | None,
        *,
        apart: bool = False,
    ) -> None:
        super().__init__()
        lags, unsure = [], []
        with precision(bits):
            for so_far in (_products_apart if apart else _products)(steps, balls, bits):
                if lag_norm is not None:
                    lags.append(lag_norm(by_rows(to_wide(so_far)), np.zeros(so_far.shape[1], int)))
                    unsure.append(not np.isnan(lags[-1]) and not _known(so_far[:, lag_norm.columns]))
            graded, missed = _first(so_far) if rank is None else _factored(so_far, rank)
        self.lags, self.unsure = np.array(lags), np.array(unsure, bool)
        self.finish(graded)
        self.log10 = self.log10[: 1 if rank is None else rank]
        self.lost = missed

    @property
    def sure(self) -> bool:
        """Whether the bits were enough for everything."""
        return not (self.lost or self.unsure.any())


def exact_values(steps: Steps, rank: int, *, hopeless: bool) -> BallRun | None:
    """The values of entries as they are, ``rank`` of them; None where they take longer than they are worth.

    hopeless : the values are wrong without.
    """
    if multiplications(steps) > (LARGE_BUDGET if hopeless else BUDGET):
        return None

    def balls(t: int, _: int) -> Array:
        return exact_balls(steps[t])

    run = with_enough_bits(len(steps), balls, None, rank, scales=False)
    return run if run.sure and len(run.log10) == rank else None


def with_enough_bits(
    steps: int,
    balls: StepBalls,
    lag_norm: LagNorm | None,
    rank: int | None,
    most: float = MOST,
    *,
    scales: bool = True,
) -> BallRun:
    """With as many as it takes, or the most. Raises UnknownDigitsError.

    scales : whether the steps are of ``scales.Number``, of which the product is made too where the gain or
    a lag takes that.
    """
    bits, most = FEWEST, min(most, MOST)
    while True:
        try:
            for apart in (False, True) if scales else (False,):
                fresh = lag_norm and LagNorm(columns=lag_norm.columns, at=lag_norm.at)
                run = BallRun(steps, balls, bits, fresh, rank, apart=apart)
                if run.sure or not (run.unsure.any() or not len(run.log10)):
                    break
            if run.sure or MORE * bits > most:
                return run
        except UnknownDigitsError:
            if MORE * bits > most:
                raise
        bits *= MORE


def multiplications(steps: Steps) -> int:
    """How many a product takes."""
    return sum(len(w) ** 3 for w in steps.weights)


def _products(steps: int, balls: StepBalls, bits: int) -> Iterator[Array]:
    """A_T ... A_t of every t, the last first."""
    import flint

    so_far: Any = None
    for t in reversed(range(steps)):
        step = _as_balls(balls(t, bits))
        matrix = flint.arb_mat(step.tolist()) if step.size else flint.arb_mat(*step.shape)
        so_far = matrix if so_far is None else so_far * matrix
        yield np.array(so_far.entries(), object).reshape(so_far.nrows(), so_far.ncols())


def _products_apart(steps: int, balls: StepBalls, bits: int) -> Iterator[Array]:
    """The same of ``scales.Number``, which knows what cancels."""
    from gradscope.product_svd.scales import row_through

    rows: list[Any] = []
    for t in reversed(range(steps)):
        step = balls(t, bits)
        rows = [row_through(row, step) for row in rows] if rows else step.tolist()
        yield np.array([[one.ball for one in row] for row in rows], object).reshape(-1, step.shape[1])


def _as_balls(matrix: Array) -> Array:
    """Of numbers."""
    return np.asarray(np.frompyfunc(lambda one: getattr(one, "ball", one), 1, 1)(matrix))


def exact_balls(entries: Array) -> Array:
    """Floats as they are."""
    import flint

    found: Array = np.frompyfunc(lambda entry: flint.arb(float(entry)), 1, 1)(entries)
    return found


def exact_numbers(entries: Array) -> Array:
    """The same as ``scales.Number``."""
    from gradscope.product_svd.scales import numbers  # python-flint takes its time

    return numbers(entries)


def to_wide(matrix: Array) -> Wide:
    """To float64's digits; 0 of what may be that. Raises UnknownDigitsError beyond its exponents."""
    each = [_parts(ball) for ball in matrix.ravel()]
    mantissa, exponent = (np.array(part) for part in zip(*each, strict=True)) if each else ((), ())
    return Wide(
        np.reshape(mantissa, matrix.shape).astype(np.float64),
        np.reshape(exponent, matrix.shape).astype(np.int64),
    )


def _parts(ball: Any) -> tuple[float, int]:
    digits, exponent = map(int, ball.mid().man_exp()) if ball.is_finite() else (0, 0)
    if not digits:
        return 0.0, NOTHING
    if abs(exponent) > _FARTHEST:  # of exp(-1e30), say
        raise UnknownDigitsError
    spare = max(0, digits.bit_length() - _KEPT)
    mantissa, more = np.frexp(float(digits >> spare))
    return float(mantissa), exponent + spare + int(more)


def _known(matrix: Array) -> bool:
    """Whether the norm is right to float64's digits; that of zeros is, where they are exact."""
    sizes, offs = _log2(matrix)
    return bool(offs.max(initial=-np.inf) < sizes.max(initial=-np.inf) - SURE) or not _any(offs)


def _log2(matrix: Array) -> tuple[Array, Array]:
    """Of the sizes of balls, and of what they are off by at most; -inf of 0."""
    each = matrix.ravel()
    return np.array([_bits(ball.mid()) for ball in each]), np.array([_bits(ball.rad()) for ball in each])


def _bits(ball: Any) -> float:
    if not ball.is_finite():
        return np.inf
    digits, exponent = ball.man_exp()
    return float(int(digits).bit_length() + int(exponent)) if digits else -np.inf


def _any(offs: Array) -> bool:
    return bool((offs > -np.inf).any())


def _first(matrix: Array) -> tuple[Graded, int]:
    """A product by its own rows, and whether its norm is lost."""
    if _known(matrix):
        return by_rows(to_wide(matrix)), 0
    return Graded.nothing(np.zeros((0, len(matrix))), matrix.shape[1]), 1


def _factored(matrix: Array, rank: int) -> tuple[Graded, int]:
    """P = X^T D Y by elimination with the largest entry as pivot, and how many of ``rank`` pivots are lost.

    Of fewer where nothing is left of the matrix.
    """
    import flint

    rows, columns = matrix.shape
    x, y, d = np.zeros((rank, rows)), np.zeros((rank, columns)), Wide.zeros(rank)
    found = 0
    while found < rank:
        sizes, offs = _log2(matrix)
        if not (_any(sizes) or _any(offs)):
            rank = found
            break
        i, j = divmod(int(np.argmax(sizes)), columns)
        pivot, column, row = matrix[i, j], matrix[:, j], matrix[i]
        beside = max(_log2(column)[1].max(), _log2(row)[1].max())
        if not beside < _bits(pivot.mid()) - SURE:
            break
        x[found], y[found] = to_wide(column / pivot).float64(), to_wide(row / pivot).float64()
        d.mantissa[found], d.exponent[found] = _parts(pivot)
        matrix = matrix - np.multiply.outer(column / pivot, row)
        matrix[i], matrix[:, j] = flint.arb(0), flint.arb(0)
        found += 1
    some = slice(found)
    return Graded(np.asfortranarray(x[some]), d.mantissa[some], d.exponent[some], y[some]), rank - found
