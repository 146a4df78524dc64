"""What small chains lose in float64's digits, looked for in steps of as many digits as it takes."""

from __future__ import annotations

import logging

import numpy as np

from gradscope.errors import duration
from gradscope.product_svd.ball_product import FEWEST, MOST, BallRun, multiplications, with_enough_bits
from gradscope.product_svd.error_estimate import EPS, floor_of, lost_lags, rounding_floor
from gradscope.product_svd.exact_rank import rank_bound
from gradscope.product_svd.norm_by_lag import LagNorm
from gradscope.product_svd.outcome import Outcome
from gradscope.product_svd.steps import Steps, UnknownDigitsError

# What the gain and lags are worth the wait, and what other values are, of numbers of so many bits and fewer:
# one takes some microseconds where units saturate, and of more bits as many times longer.
MOST_OPERATIONS, MOST_FOR_VALUES, BITS_AT_ONCE = 10_000_000, 1_000_000, 1000
# Seconds that one takes with the fewest bits that are tried, where gates saturate; how many are worth a word.
_SECONDS, _LONG = 1e-5, 2.0
_log = logging.getLogger(__name__)


def with_more_digits(
    run: Outcome, steps: Steps, entry_error: float, lag_norm: LagNorm | None, *, only_first: bool
) -> Outcome:
    """The same, or what is lost in it less often where the steps are known to more digits.

    only_first : the largest value alone is asked for.
    """
    first_lost = bool(run.lost) and not len(run.log10)
    worth = MOST_OPERATIONS if first_lost or lost_lags(run.lag_errors).any() else MOST_FOR_VALUES
    if entry_error <= EPS or not (worth == MOST_OPERATIONS or (run.lost and not only_first)):
        return run
    operations = multiplications(steps) + steps.source.operations
    bits = _most_bits(operations, worth)
    if bits < FEWEST:
        return run
    if operations * _SECONDS > _LONG:
        what = "the gain or of some lags" if worth == MOST_OPERATIONS else "some values"
        _log.info(
            f"float64 leaves nothing of {what}: all {len(steps)} steps are run in hundreds of digits, about "
            f"{duration(operations * _SECONDS)} a run, until these are enough"
        )
    rank = None if only_first else rank_bound(steps, len(run.log10))
    try:
        found = with_enough_bits(len(steps), steps.balls, lag_norm, rank, bits)
    except UnknownDigitsError:
        return run
    return _told(found, run)


def _most_bits(operations: float, worth: float) -> float:
    """How many bits these may have, of so many operations that are worth the wait."""
    return BITS_AT_ONCE * (worth / operations - 1) if operations else MOST


def _told(found: BallRun, run: Outcome) -> Outcome:
    """With what is known of it; of what is not the run before may know something."""
    found.error = floor_of(found, EPS)
    found.norm_error = rounding_floor(float(found.log10[0]), EPS) if len(found.log10) else 0.0
    errors = [rounding_floor(lag, EPS) for lag in np.where(np.isinf(found.lags), 0.0, found.lags)]
    lags, before = np.full(len(errors), np.nan), np.full(len(errors), np.inf)
    if len(run.lag_errors) == len(errors):
        lags, before = run.lags, np.where(lost_lags(run.lag_errors), np.inf, run.lag_errors)
    found.lags = np.where(found.unsure, lags, found.lags)
    found.lag_errors = np.where(found.unsure, before, errors)
    if len(found.log10) >= len(run.log10):
        return found
    run.lags, run.lag_errors = found.lags, found.lag_errors
    return run
