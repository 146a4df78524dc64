"""Parallel in time: the chain cut into slices that run side by side and are merged in graded form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.graded_chain import RankAt, factored, prefixes, scaled
from gradscope.product_svd.graded_lu import Graded
from gradscope.product_svd.jacobi_svd import orthonormal
from gradscope.product_svd.log_scale import LOG10_2
from gradscope.product_svd.norm_by_lag import LagNorm
from gradscope.product_svd.steps import MAX_SPREAD, Steps

# Directions this many bits below the first are left out when the norm of longer products is sought.
HEAD_BITS = 120
# What that may add to a norm, relative to it.
LEFT_OUT = -40.0


@dataclass(frozen=True)
class Pivoting:
    """How a chain is gone through: the arguments of ``prefixes`` that every slice shares.

    plan : ranks forced after a step (by its index), or after a merge with the slice that begins there
    (by -1 - index).
    """

    rank_at: RankAt
    plan: Mapping[int, int]
    regularly: bool
    grouped: float


class TimeSlice:
    """The steps from ``start`` up to ``stop`` of a chain, numbered from 0."""

    def __init__(self, steps: Steps, start: int, stop: int) -> None:
        self.steps, self.start = steps, start
        self.weights = steps.weights[start:stop]

    def times(self, y: Array, t: int) -> Array:
        """As of the whole chain."""
        return self.steps.times(y, self.start + t)


def product(
    steps: Steps, pivoting: Pivoting, lag_norm: LagNorm | None, slices: int
) -> tuple[Graded, list[float]]:
    """Graded form of A_T ... A_1, and log10 of its norm at every lag where ``lag_norm`` is given.

    slices : how many; each but the one of the last steps has a thread of its own.
    """
    cuts = np.linspace(0, len(steps), slices + 1).astype(int).tolist()
    parts = [TimeSlice(steps, a, b) for a, b in pairwise(cuts)][::-1]
    lags: list[float] = []
    pool = ThreadPoolExecutor(slices)  # starts no thread before it has work
    try:
        futures = [pool.submit(_graded, part, pivoting) for part in parts[1:]]
        for graded, after in _prefixes(parts[0], pivoting):
            if lag_norm is not None:
                lags.append(lag_norm(graded, after))
        lower = [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False)  # a failure does not wait for the rest
    if lag_norm is not None and lower:
        lags += _further_lags(graded, parts[1:], [bounds for _, bounds in lower], pivoting, lag_norm)
    for part, (low, _) in zip(parts[1:], lower, strict=True):
        rank = partial(pivoting.rank_at, -1 - part.start)
        graded = merged(graded, low, rank, pivoting.plan.get(-1 - part.start))
    return graded, lags


def _prefixes(
    part: TimeSlice, pivoting: Pivoting, start: Graded | None = None
) -> Iterator[tuple[Graded, Array]]:
    """Graded forms of ``start`` times more and more of the part."""
    start = start or Graded.identity(len(part.weights[-1]))
    plan = {t - part.start: rank for t, rank in pivoting.plan.items()}
    return prefixes(
        part,
        start,
        lambda t, ratio: pivoting.rank_at(part.start + t, ratio),
        plan,
        pivoting.regularly,
        pivoting.grouped,
    )


def _graded(part: TimeSlice, pivoting: Pivoting) -> tuple[Graded, list[float]]:
    """A slice's product, and log2 bounds on its norm at every lag."""
    bounds = []
    for graded, after in _prefixes(part, pivoting):
        bounds.append(_log2_bound(graded, after))
    return graded, bounds


def merged(high: Graded, low: Graded, rank: Callable[[Array], int], forced: int | None = None) -> Graded:
    """The graded form of the product ``high`` times ``low``.

    To ``high`` the other is two more steps, X^T D and Y; where D spans more than floats do it is
    taken in several.
    """
    if not high.rank or not low.rank:
        return Graded.nothing(high.x, low.y.shape[1])
    # Orthonormal where they meet: what either has lost of its condition there would be squared.
    turned = orthonormal(replace(high, x=high.y, y=high.x))
    high, low = replace(turned, x=turned.y, y=turned.x), orthonormal(low)
    rows = (high.y @ low.x.T) * low.mantissa
    top = int(low.exponent.max())
    left = low.exponent - top
    graded = replace(high, exponent=high.exponent + top)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        while True:
            step = np.maximum(left, -MAX_SPREAD)
            graded = _factored(scaled(graded, rows, step), step, rank, forced)
            left, rows = left - step, graded.y
            if not left.any():
                return _factored(replace(graded, y=rows @ low.y), np.zeros(low.y.shape[1], int), rank, forced)


def _factored(graded: Graded, after: Array, rank: Callable[[Array], int], forced: int | None) -> Graded:
    found = factored(graded, after, rank, forced)
    assert found is not None
    return found[0]


def _further_lags(
    high: Graded, parts: list[TimeSlice], bounds: list[list[float]], pivoting: Pivoting, lag_norm: LagNorm
) -> list[float]:
    """Norms at the lags beyond the first slice, from the directions of ``high`` that can matter.

    What is left out of high adds at most its norm times that of the steps since, which is bounded: if
    that is too much at any lag, nothing is left out.
    """
    size = _log2_sizes(high)
    keep = size > size.max(initial=-np.inf) - HEAD_BITS
    left_out = float(np.logaddexp2.reduce(size[~keep])) if not keep.all() else -np.inf
    head = replace(
        high, x=high.x[keep], mantissa=high.mantissa[keep], exponent=high.exponent[keep], y=high.y[keep]
    )
    found, so_far = [], 0.0
    for part, bound in zip(parts, bounds, strict=True):
        for (graded, after), rest in zip(_prefixes(part, pivoting, head), bound, strict=True):
            found.append(lag_norm(graded, after))
            if left_out + so_far + rest > found[-1] / LOG10_2 + LEFT_OUT:
                lag_norm.go_back(len(found))
                return _all_lags(high, parts, pivoting, lag_norm)
        head, so_far = graded, so_far + bound[-1]
    return found


def _all_lags(high: Graded, parts: list[TimeSlice], pivoting: Pivoting, lag_norm: LagNorm) -> list[float]:
    found = []
    for part in parts:
        for graded, after in _prefixes(part, pivoting, high):
            found.append(lag_norm(graded, after))
        high = graded
    return found


def _log2_sizes(graded: Graded) -> Array:
    """Bounds on log2 of the norms of d_i x_i^T y_i, (r,)."""
    x, y = (np.abs(a).max(axis=1, initial=0) * np.sqrt(a.shape[1]) for a in (graded.x, graded.y))
    with np.errstate(divide="ignore"):
        return np.asarray(np.log2(np.abs(graded.mantissa) * x * y) + graded.exponent)


def _log2_bound(graded: Graded, after: Array) -> float:
    """A bound on log2 of the norm, columns scaled back."""
    if not graded.rank:
        return -np.inf
    return float(np.logaddexp2.reduce(_log2_sizes(graded))) - int(after.min(initial=0))
