"""Two runs over the chain, the second on slightly changed entries: values with an error estimate."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from gradscope.errors import InputError
from gradscope.exact import affordable, exact_product
from gradscope.finish import decomposed, orthonormal
from gradscope.graded import OUT_OF_RANGE, Graded, prefixes
from gradscope.lags import LOG10_2, LagNorm
from gradscope.structure import Array, ExactRank, Steps

EPS = float(np.finfo(np.float64).eps)
# The difference of two runs is one draw of the error: this covers most of its spread.
SAFETY = 8.0
# Error estimates (log10) good enough not to try another way; the same for large chains, which cost
# more and gain less from it; and bad enough to wait for an exact product.
GOOD = 2e-11
GOOD_IF_LARGE = 1e-4
POOR = 1e-6
# An error of the log10 values that only noise in place of a zero explains.
NOISE = 0.1
# Two threads take 0.7 times as long as one at m = 128 and 1.2 times at m = 64, where they wait for
# the interpreter's lock.
WORTH_A_THREAD = 96
# From this size on x loses its condition on the way.
RESET_SIZE = 48


def best_run(steps: Steps, entry_error: float, lag_norm: LagNorm | None) -> Run:
    """The first way of running the chain whose two runs agree, or else the better one.

    Resets cure the loss that grows with the size; without them the structure of sparse chains
    (Jordan blocks) is kept, which is worth more there.
    """
    large = max(len(w) for w in steps.weights) >= RESET_SIZE
    enough = (GOOD_IF_LARGE if large else GOOD) + 2 * SAFETY * len(steps) * (entry_error - EPS)
    runs: list[Run] = []
    for reset in (large, not large):
        runs.append(_pair(steps, entry_error, reset=reset, lag_norm=None if runs else lag_norm))
        if runs[-1].error <= enough:
            break
    best = min(runs, key=lambda run: run.error)
    if best.error > NOISE and (rank := ExactRank(steps).total()) < len(best.log10):
        # Values that should be zero and were not seen to be: noise, different in every run.
        best = _pair(steps, entry_error, reset=best.reset, plan={**best.plan, 0: rank})
    best.lags = runs[0].lags
    if len(best.log10) < steps.narrowest() and ExactRank(steps).total() > len(best.log10):
        raise InputError(OUT_OF_RANGE)  # a value that is not zero has underflowed
    # Rounded entries do not deserve an exact product.
    if best.error > min(enough, POOR) and entry_error <= EPS and affordable(steps, hopeless=best.error > POOR):
        _make_exact(best, steps)
    return best


def _pair(
    steps: Steps,
    entry_error: float,
    *,
    reset: bool,
    lag_norm: LagNorm | None = None,
    plan: dict[int, int] | None = None,
) -> Run:
    """A run with its error estimate."""
    repeat = partial(Run, steps, reset=reset, perturb=entry_error)
    if plan is None and max(map(len, steps.weights)) >= WORTH_A_THREAD:
        pool = ThreadPoolExecutor(1)
        try:
            other = pool.submit(repeat, plan={})
            run = Run(steps, reset=reset, lag_norm=lag_norm)
            again = repeat(plan=run.plan) if run.plan else other.result()
        finally:
            pool.shutdown(wait=False)  # an interrupt does not wait for the rest
    else:
        run = Run(steps, reset=reset, lag_norm=lag_norm, plan=plan)
        again = repeat(plan=run.plan)
    _compare(run, again, entry_error)
    return run


def _make_exact(run: Run, steps: Steps) -> None:
    """Replace the values of the run by those of the exact product."""
    rank = len(run.log10)
    run.finish(exact_product(steps, rank))
    run.error = run.norm_error = _floor(run, EPS) * np.sqrt(rank)


class Run:
    """One pass over the chain and its finish. plan[t]: rank forced after step t.

    error, norm_error : estimates for all log10 values and for the first, once compared.
    """

    def __init__(
        self,
        steps: Steps,
        *,
        plan: dict[int, int] | None = None,
        perturb: float = 0.0,
        reset: bool = False,
        lag_norm: LagNorm | None = None,
    ) -> None:
        self.error = self.norm_error = 0.0
        self.reset = reset
        self.plan: dict[int, int] = {} if plan is None else plan
        exact = ExactRank(steps) if plan is None else None

        def rank_at(t: int, r: int) -> int:
            if exact is None or exact.total() >= r:
                return r
            known = min(r, exact.down_to(t))
            if known < r:
                self.plan[t] = known
            return known

        lags = []
        graded = start = Graded.identity(len(steps.weights[-1]))
        for graded, after in prefixes(
            (Perturbed(steps, perturb) if perturb else steps).__getitem__,
            steps.weights,
            start,
            rank_at,
            plan or {},
            orthonormal if reset else None,
        ):
            if lag_norm is not None:
                lags.append(lag_norm(graded, after))
        self.lags = np.array(lags)
        self.finish(graded)

    def finish(self, graded: Graded) -> None:
        """Values and top vectors of the whole product."""
        graded = decomposed(graded)
        self.log10 = np.log10(graded.mantissa.astype(np.longdouble)) + graded.exponent * LOG10_2
        nothing = graded.rank == 0
        self.left = np.zeros(graded.x.shape[1]) if nothing else graded.x[0]
        self.right = np.zeros(graded.y.shape[1]) if nothing else graded.y[0]


class Perturbed(Steps):
    """Steps with every entry multiplied by 1 + size or 1 - size, at random but always the same."""

    def __init__(self, steps: Steps, size: float) -> None:
        super().__init__(steps.source, steps.live)
        self.weights = steps.weights
        rng = np.random.default_rng(20240229)
        largest = max(len(w) for w in steps.weights) ** 2 + steps[0].size
        self.starts = rng.integers(4096, size=len(steps))
        self.pool = 1 + size * rng.choice([-1.0, 1.0], size=largest + 4096)

    def __getitem__(self, t: int) -> Array:
        a = super().__getitem__(t)
        at = self.starts[t]
        return np.asarray(a * self.pool[at : at + a.size].reshape(a.shape))


def _compare(run: Run, again: Run, entry_error: float) -> None:
    """Set the run's estimated errors from a second one on slightly different entries.

    The floor is for results so exact that two runs agree by chance.
    """
    count = min(len(run.log10), len(again.log10))
    if count:
        spread = SAFETY * np.abs(run.log10[:count] - again.log10[:count]).astype(np.float64)
        floor = _floor(run, entry_error)
        run.error, run.norm_error = float(spread.max()) + floor, float(spread[0]) + floor


def _floor(run: Run, entry_error: float) -> float:
    rounding = float(np.spacing(np.abs(run.log10).max().astype(np.float64))) / 2
    return (2 * EPS + entry_error) / float(np.log(10)) + rounding


def lags_alone(steps: Steps, lag_norm: LagNorm) -> Array:
    """(T,) log10 sigma_1 of A_T ... A_(T-k+1), k = 1 ... T, without the other values."""
    graded = Graded.identity(len(steps.weights[-1]))
    chain = prefixes(steps.__getitem__, steps.weights, graded, lambda t, r: r, {})
    return np.array([lag_norm(graded, after) for graded, after in chain])
