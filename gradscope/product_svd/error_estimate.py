"""Runs over the chain, all but the first on slightly changed entries: values with an error estimate."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.ball_product import exact_values
from gradscope.product_svd.exact_rank import ExactRank, rank_bound
from gradscope.product_svd.graded_chain import RangeError, RankAt, Way, all_of, prefixes
from gradscope.product_svd.graded_lu import NOISE, ApartError, Graded
from gradscope.product_svd.norm_by_lag import LagNorm
from gradscope.product_svd.outcome import Outcome
from gradscope.product_svd.perturbed import Perturbed, PerturbedBeside
from gradscope.product_svd.steps import Steps

EPS = float(np.finfo(np.float64).eps)
# The difference of two runs, or two passes, is one draw of the error: this covers most of its spread.
SAFETY = 8.0
# Error estimates (log10) good enough not to try another way; the same for large chains, which cost
# more and gain less from it; and bad enough to wait for an exact product.
GOOD = 2e-11
GOOD_IF_LARGE = 1e-4
POOR = 1e-6
# The difference of two runs on few numbers may be small by chance: small chains are run more often.
DRAWS = 4
# A pivot that the rounding of the entries explains, in units of that rounding.
UNRESOLVED = 32
# Decades: a value known no better is lost.
LOST = 1.0
# Decades: the error of values of which nothing is known.
HOPELESS = 16.0
# From so many states on threads of Python pay. Those of smaller chains wait for the interpreter's lock, and
# take CPU time for that: `python benchmarks/speed.py --only threads` has both sides. More threads, on slices
# of the steps that are merged, took .8 (m = 256) and .9 times (512) as long as one, and more CPU time.
WORTH_A_THREAD = 256
# Rounding units (of entry_error, which is four of eps) that a slope carries per bit that it is below 1: its
# logarithm is a pre-activation a, once or twice, that is rounded to eps a.
SATURATION = np.log(2) / 8
# The smallest pivot of several steps multiplied before they are factored: 2e-13 may be lost each time.
GROUPED = 1e-3
# The same for fast accuracy: 1e-6 at worst.
GROUPED_FAST = 1e-7
# From this size on x loses its condition on the way.
RESET_SIZE = 48


def rounding_of(entry_error: float, span: float) -> float:
    """Of entries that span so many bits: slopes of saturated units carry that of their pre-activations."""
    return entry_error * max(1.0, span * SATURATION) if entry_error > EPS else entry_error


def best_run(
    steps: Steps, entry_error: float, lag_norm: LagNorm | None, accuracy: str = "full", workers: int = 1
) -> Run:
    """The first way of running the chain whose runs agree, or else the better one.

    Resets cure the loss that grows with the size; without them the structure of sparse chains
    (Jordan blocks) is kept, which is worth more there.
    """
    size = max(len(w) for w in steps.weights)
    large, enough = size >= RESET_SIZE, good_enough(size, len(steps), entry_error)
    grouped = grouped_for(accuracy)
    runs: list[Run] = []
    for regularly in (large, not large):
        way = Way(regularly, grouped if regularly else np.inf)
        runs.append(_compared(steps, entry_error, way, None if runs else lag_norm, workers))
        if runs[-1].error <= enough and not runs[-1].lost:
            break
    best = min(runs, key=lambda run: (run.lost, run.error))
    best.lags, best.lag_errors = runs[0].lags, runs[0].lag_errors
    if entry_error <= EPS:  # rounded entries have no exact rank, and do not deserve an exact product
        _settle(best, steps, min(enough, POOR))
    if np.isinf(best.error):
        best.error = HOPELESS + (float(np.ptp(best.log10)) if len(best.log10) else 0.0)
        best.norm_error = min(best.norm_error, best.error)
    return best


def good_enough(size: int, steps: int, entry_error: float) -> float:
    """The estimated error that is not worth another way of running a chain."""
    good = GOOD_IF_LARGE if size >= RESET_SIZE else GOOD
    return good + 2 * SAFETY * steps * (entry_error - EPS)


def draws(size: int) -> int:
    """How many runs on changed entries the first is compared with: none of no states."""
    return 0 if size == 0 else DRAWS if size < RESET_SIZE else 1


def grouped_for(accuracy: str) -> float:
    """The smallest pivot of several steps that are factored at once."""
    return {"full": GROUPED, "fast": GROUPED_FAST}[accuracy]


def _settle(run: Run, steps: Steps, enough: float) -> None:
    """Make a run on exact entries agree with their rank, and exact where that is worth the wait."""
    rank = ExactRank(steps).total() if run.suspect else len(run.log10)
    if rank != len(run.log10):
        run.error = np.inf  # more or fewer values than there are
    if run.error <= enough:
        return
    if not take_exactly(run, steps, ExactRank(steps).total(), hopeless=run.error > POOR):
        run.log10 = run.log10[:rank]


def take_exactly(run: Outcome, steps: Steps, rank: int, *, hopeless: bool) -> bool:
    """Put the values of the product of exact entries in place of a run's, where that is worth the wait."""
    found = exact_values(steps, rank, hopeless=hopeless)
    if found is not None:
        run.log10, run.left, run.right = found.log10, found.left, found.right
        run.error = run.norm_error = floor_of(run, EPS) * float(np.sqrt(rank))
    return found is not None


def _compared(steps: Steps, entry_error: float, way: Way, lag_norm: LagNorm | None, workers: int) -> Run:
    """A run with its error estimate from others on entries changed by +-entry_error.

    What the rounding of entries explains is kept in these, as long as that goes: a value that hangs on
    whether it is nothing differs.
    """
    size = max(map(len, steps.weights))
    some = lag_norm and lag_norm.of_some(len(steps))
    again = partial(_again, steps, entry_error, way, some)
    rounded = entry_error if entry_error > EPS else 0.0
    others: Sequence[Outcome | None]
    if size >= WORTH_A_THREAD and workers > 1:
        pool = ThreadPoolExecutor(1)
        try:
            other = pool.submit(again, {})
            run = Run(steps, way, lag_norm, rounded=rounded)
            known = rounded and other.result() is not None
            others = [again(run.plan) if run.plan and not known else other.result()]
        finally:
            pool.shutdown(wait=False)  # an interrupt does not wait for the rest
    else:
        run = Run(steps, way, lag_norm, rounded=rounded)
        count, free = draws(size), rounded or not run.plan
        beside = draws_side_by_side(steps, entry_error, way, some, count) if free and count > 1 else None
        others = beside or [
            (again({}, draw) if rounded and run.plan else None) or again(run.plan, draw)
            for draw in range(count)
        ]
    if rounded:
        compare_known(run, others, entry_error, rank_bound(steps, len(run.log10)))
    else:
        compare(run, others, entry_error)
    return run


def _again(
    steps: Steps,
    entry_error: float,
    way: Way,
    norm: LagNorm | None,
    plan: dict[int, int],
    draw: int = 0,
) -> Run | None:
    """A run that may fail: where noise is all that is left of a pivot, the next one may overflow."""
    try:
        return Run(Perturbed(steps, entry_error, draw), way, norm and norm.anew(), plan=plan, vectors=False)
    except RangeError:
        return None


def draws_side_by_side(
    steps: Steps, entry_error: float, way: Way, norm: LagNorm | None, count: int
) -> list[Outcome] | None:
    """Such runs all at once: of matrices this small calls take the time, whatever is in them.

    None where one leaves a direction out or fails.
    """
    chain, norms = PerturbedBeside(steps, entry_error, count), [norm.anew() for _ in range(count) if norm]
    start, lags = Graded.identity(len(steps.weights[-1]), (count,)), list[list[float]]()
    try:
        for graded, after in prefixes(chain, start, all_of, {}, way):
            if norms:
                pairs = zip(norms, graded.apart, strict=True)
                lags.append([of_lag(one, after) for of_lag, one in pairs])
    except (ApartError, RangeError):
        return None
    found = [Outcome() for _ in range(count)]
    for place, (outcome, one) in enumerate(zip(found, graded.apart, strict=True)):
        outcome.lags = np.array([of_lag[place] for of_lag in lags])
        outcome.finish(one, vectors=False)
    return found


class Run(Outcome):
    """One pass over the chain and its finish.

    plan : {t: rank forced after step t}, found on the way where it is not given; rounded : rounding unit of
    the entries, 0 where they are exact.
    """

    def __init__(
        self,
        steps: Steps,
        way: Way,
        lag_norm: LagNorm | None = None,
        *,
        plan: dict[int, int] | None = None,
        rounded: float = 0.0,
        vectors: bool = True,
    ) -> None:
        super().__init__()
        self.plan: dict[int, int] = {} if plan is None else plan
        exact = ExactRank(steps)

        def rank_at(t: int, ratio: Array) -> int:
            """How many directions survive step t: by exact rank, or by what the rounding leaves."""
            self.suspect = True
            r = len(ratio)
            if plan is not None:
                return r
            if rounded:
                known = r - int(ratio.min() <= UNRESOLVED * rounded)
            else:
                known = r if exact.total() >= r else min(r, exact.down_to(t))
            if known < r:
                self.plan[t] = known
            self.noisy |= known == r and float(ratio.min()) <= NOISE
            return known

        graded, lags = _product(steps, rank_at, lag_norm, plan or {}, way)
        self.lags = np.array(lags)
        self.finish(graded, vectors=vectors)


def compare(run: Outcome, again: Sequence[Outcome | None], entry_error: float) -> None:
    """Set the run's estimated errors from others on slightly different entries.

    The floor is for results so exact that runs agree by chance. Infinite where values are lost.
    """
    if run.noisy or any(other is None or len(other.log10) != len(run.log10) for other in again):
        run.error = np.inf
    found = [other.log10 for other in again if other is not None]
    rank = min(len(run.log10), *map(len, found)) if found else 0
    if rank:
        differences = [np.abs(run.log10[:rank] - other[:rank]) for other in found]
        spread = SAFETY * np.max(differences, axis=0).astype(np.float64)
        floor = floor_of(run, entry_error)
        run.error = max(run.error, float(spread.max()) + floor)
        run.norm_error = float(spread[0]) + floor
    elif len(run.log10):
        run.norm_error = np.inf
    run.lag_errors = lag_errors(run.lags, [other.lags for other in again if other is not None], entry_error)


def compare_known(run: Outcome, again: Sequence[Outcome | None], entry_error: float, rank: int) -> None:
    """The same where values are lost: those after the first that others do not agree on are, of ``rank``."""
    found = [other for other in again if other is not None]
    count = min(rank, *(len(other.log10) for other in (run, *found))) if found else 0
    differences = [np.abs(run.log10[:count] - other.log10[:count]) for other in found]
    spread = SAFETY * np.max(differences, axis=0, initial=0).astype(np.float64)
    known = int(np.argmax(spread > LOST)) if (spread > LOST).any() else count
    run.lost, run.log10 = rank - known, run.log10[:known]
    run.error = run.norm_error = HOPELESS if rank else 0.0
    if known:
        floor = floor_of(run, entry_error)
        run.error, run.norm_error = float(spread[:known].max()) + floor, float(spread[0]) + floor
    run.lag_errors = lag_errors(run.lags, [other.lags for other in found], entry_error)


def lag_errors(lags: Array, again: Sequence[Array], entry_error: float) -> Array:
    """As norm_error, at the lags that all have; () where none has any."""
    others = np.array([other for other in again if len(other) == len(lags)])
    if not others.size:
        return np.zeros(0)
    with np.errstate(invalid="ignore"):  # of a product that is zero
        spread = np.abs(lags - others).max(axis=0)
    return np.asarray(
        SAFETY * spread + [rounding_floor(lag, entry_error) for lag in np.nan_to_num(lags, neginf=0.0)]
    )


def lost_lags(errors: Array) -> Array:
    """(T,) which lags are lost: those known to no digit, and those up to the next that is."""
    at = np.flatnonzero(~np.isnan(errors))
    if not len(at):
        return np.zeros(len(errors), bool)
    lost, lags = errors[at] > LOST, np.arange(len(errors))
    before = np.maximum(np.searchsorted(at, lags, side="right") - 1, 0)
    after = np.minimum(np.searchsorted(at, lags), len(at) - 1)
    return np.asarray(lost[before] | lost[after])


def floor_of(run: Outcome, entry_error: float) -> float:
    """What rounding does to any log10 value, at least."""
    if not len(run.log10):
        return 0.0
    return rounding_floor(float(np.abs(run.log10).max()), entry_error)


def rounding_floor(log10: float, entry_error: float) -> float:
    """What rounding does to this log10 value, at least."""
    return (2 * EPS + entry_error) / float(np.log(10)) + float(np.spacing(abs(log10))) / 2


def lags_alone(steps: Steps, lag_norm: LagNorm) -> Array:
    """(T,) log10 sigma_1 of A_T ... A_(T-k+1), k = 1 ... T, without the other values."""
    return np.array(_product(steps, all_of, lag_norm, {}, Way())[1])


def _product(
    steps: Steps,
    rank_at: RankAt,
    lag_norm: LagNorm | None,
    plan: dict[int, int],
    way: Way,
) -> tuple[Graded, list[float]]:
    """Graded form of A_T ... A_1, and log10 of its norm at every lag where ``lag_norm`` is given."""
    start, lags = Graded.identity(len(steps.weights[-1])), list[float]()
    for graded, after in prefixes(steps, start, rank_at, plan, way):
        if lag_norm is not None:
            lags.append(lag_norm(graded, after))
    return graded, lags
