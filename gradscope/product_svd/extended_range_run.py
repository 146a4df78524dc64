"""Runs over a chain whose entries no float64 holds side by side: values, and how many are lost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.error_estimate import EPS, LOST, compare, compare_known, take_exactly
from gradscope.product_svd.exact_rank import ExactRank, rank_bound
from gradscope.product_svd.extended_range_array import Wide
from gradscope.product_svd.extended_range_chain import StepMatrices, plain_prefixes, wide_prefixes
from gradscope.product_svd.graded_lu import Graded
from gradscope.product_svd.norm_by_lag import LagNorm
from gradscope.product_svd.outcome import Outcome
from gradscope.product_svd.perturbed import Perturbed
from gradscope.product_svd.steps import Steps

# Runs on changed entries to compare with. One takes long enough for a large chain, and one end.
DRAWS = 3
LARGE = 48
# Estimated error (log10) from which on an exact product is worth its time.
POOR = 1e-10


class Reversed:
    """A chain from its other end: A_1^T ... A_T^T."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps)

    def wide(self, t: int) -> Wide:
        """Step t of it."""
        return self.steps.wide(len(self) - 1 - t).transposed


class WideRun(Outcome):
    """One pass over the chain with an exponent for every entry, and its finish.

    lost : how many values there are beyond those found, of which rounding leaves nothing; left_out : how many
    of them nobody looked for.
    """

    def __init__(self, steps: StepMatrices, rounding: float, lag_norm: LagNorm | None = None) -> None:
        super().__init__()
        lags = []
        for graded, self.left_out in wide_prefixes(steps, rounding):
            if lag_norm is not None:
                lags.append(_norm(lag_norm, graded))
        self.lags = np.array(lags)
        self.finish(graded)
        self.found = graded.rank + self.left_out  # what the finish does not hold is no zero


def wide_run(steps: Steps, entry_error: float, lag_norm: LagNorm | None) -> Outcome:
    """Values with their error, from runs on entries changed by +-entry_error; those that differ are lost.

    Neither end loses fewer values on every chain: where one lost any, the other is tried too.
    """
    run = _compared(steps, entry_error, lambda chain: chain, lag_norm)
    if run.lost and not (large(steps) and len(run.log10)):
        other = _compared(steps, entry_error, Reversed, None)
        if len(other.log10) > len(run.log10):
            other.left, other.right = other.right, other.left
            other.lags, other.lag_errors = run.lags, run.lag_errors
            run = other
    if entry_error <= EPS:  # as in error_estimate.best_run
        _settle(run, steps)
    elif run.lost:
        known = len(run.log10)
        run.lost = max(0, min(run.lost, rank_bound(steps, known) - known))
    return run


class FirstRun(Outcome):
    """The largest value alone, and lags, by plain products."""

    def __init__(self, steps: StepMatrices, lag_norm: LagNorm) -> None:
        super().__init__()
        lags = []
        for graded in plain_prefixes(steps):
            lags.append(_norm(lag_norm, graded))
        self.lags = np.array(lags)
        self.finish(graded)
        self.log10 = self.log10[:1]


def wide_first(steps: Steps, entry_error: float, lag_norm: LagNorm) -> Outcome:
    """The largest value with every lag, its error from runs on entries changed by +-entry_error.

    A product whose size is rounding, by cancellation, differs in these by as much.
    """
    run = FirstRun(steps, lag_norm)
    rounding = max(entry_error, EPS)
    draws = 1 if large(steps) else DRAWS
    others = [FirstRun(Perturbed(steps, rounding, draw), _again(lag_norm, steps)) for draw in range(draws)]
    compare(run, others, entry_error)
    _forget_bounds(run, lag_norm)
    run.lost = int(run.error > LOST)
    run.log10 = run.log10[: 1 - run.lost]
    return run


def _compared(
    steps: Steps, entry_error: float, turned: Callable[[Steps], StepMatrices], lag_norm: LagNorm | None
) -> WideRun:
    """A run, its values that others agree on, and how many there are besides."""
    rounding = max(entry_error, EPS)
    run = WideRun(turned(steps), rounding, lag_norm)
    draws = 1 if large(steps) else DRAWS
    # These keep what rounding left: a value that depends on whether it is nothing differs, and is lost.
    changed = [turned(Perturbed(steps, rounding, draw)) for draw in range(draws)]
    others = [WideRun(chain, 0.0, lag_norm and _again(lag_norm, steps)) for chain in changed]
    compare_known(run, others, entry_error, max(other.found for other in (run, *others)))
    if lag_norm is not None:
        _forget_bounds(run, lag_norm)
    return run


def _again(lag_norm: LagNorm, steps: Steps) -> LagNorm:
    """For runs that are compared with this: every lag, of a large chain some."""
    if large(steps):
        return lag_norm.of_some(len(steps)) or LagNorm(at=())
    return LagNorm(columns=lag_norm.columns)


def _forget_bounds(run: Outcome, lag_norm: LagNorm) -> None:
    """Leave lags without an error that are upper bounds only."""
    if len(run.lag_errors):
        run.lag_errors[run.lags < lag_norm.floor] = np.nan


def large(steps: Steps) -> bool:
    """Whether a chain is run once for each thing, as that takes long."""
    return max(map(len, steps.weights)) >= LARGE


def _settle(run: Outcome, steps: Steps) -> None:
    """Count exact zeros by exact rank; small chains are taken exactly where that is worth the wait."""
    rank, known = ExactRank(steps).total(), len(run.log10)
    if (known != rank or run.error > POOR) and take_exactly(run, steps, rank, hopeless=known != rank):
        known = rank
    run.log10 = run.log10[:rank]
    run.lost = max(0, rank - known)


def wide_lags(steps: Steps, lag_norm: LagNorm) -> Array:
    """(T,) log10 sigma_1 of A_T ... A_(T-k+1), k = 1 ... T, without the other values."""
    return np.array([_norm(lag_norm, graded) for graded, _ in wide_prefixes(steps, EPS)])


def _norm(lag_norm: LagNorm, graded: Graded) -> float:
    return lag_norm(graded, np.zeros(graded.y.shape[1], int))
