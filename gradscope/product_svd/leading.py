"""The largest singular value at every lag, without the others: small directions are shed on the way."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd import log_scale
from gradscope.product_svd.error_estimate import DRAWS, GROUPED, RESET_SIZE, SAFETY, rounding_floor
from gradscope.product_svd.graded_chain import RangeError, prefixes, scaled
from gradscope.product_svd.graded_lu import Graded
from gradscope.product_svd.jacobi_svd import decomposed
from gradscope.product_svd.log_scale import LOG10_2
from gradscope.product_svd.norm_by_lag import LagNorm
from gradscope.product_svd.steps import Perturbed, Steps

# Directions this many bits below the first are shed: rounding leaves 2^-53 of the first in every direction.
SHED_BITS = 80
# Random combinations of what was shed, which are followed to the end; by how much one may miss its size.
SKETCHES = 4
MISSED_BITS = 10
# What was shed may become this much of a norm, in bits.
ENOUGH_BITS = -50.0
# Estimated errors (log10) from which on all values are asked.
GOOD = 1e-9


class Leading:
    """What ``leading`` found. log10 : of sigma_1; left, right : (m,) its vectors; lags : (T,) log10 norms."""

    def __init__(self, graded: Graded, lags: list[float]) -> None:
        found = decomposed(graded)
        self.log10 = float(log_scale.log10(found.mantissa[:1], found.exponent[:1])[0])
        self.left, self.right = found.x[0], found.y[0]
        self.lags = np.array([*lags[:-1], self.log10])
        self.error = 0.0


def leading(steps: Steps, entry_error: float, floor: float = -np.inf, draws: int = DRAWS) -> Leading | None:
    """The largest singular value of the chain at every lag; None where this way of finding it is not sure.

    floor : as for ``spectrum``; draws : runs on changed entries, at most.

    The graded chain, of which directions below 2^-80 of the first are left out. Whether they stay as small
    is seen from a few random sums of them that are followed: where a large direction dies later on and shares
    nothing with a small one, they do not. The error is that against runs on entries changed by +-entry_error.
    """
    large = max(map(len, steps.weights)) >= RESET_SIZE
    try:
        found = _run(steps, large, LagNorm(floor))
        others = [_run(Perturbed(steps, entry_error, draw), large) for draw in range(1 if large else draws)]
    except RangeError:
        return None
    if found is None or any(other is None for other in others):
        return None
    spread = max(abs(found.log10 - other.log10) for other in others if other is not None)
    found.error = SAFETY * spread + rounding_floor(found.log10, entry_error)
    return found if found.error <= GOOD else None


def _run(steps: Steps, large: bool, norm: LagNorm | None = None) -> Leading | None:
    """One run over the chain; with ``norm`` what was shed is followed, and may not become too large."""
    shed, lags, graded = _Shed(), [0.0], None
    start, grouped = Graded.identity(len(steps.weights[-1])), GROUPED if large else np.inf
    chain = prefixes(steps, start, lambda _, ratio: len(ratio), {}, large, grouped, shed)
    for lag, (graded, after) in enumerate(chain, 1):
        if not graded.rank:
            return None
        if norm is not None:
            shed.follow(steps, len(steps) - lag, after)
            lags.append(norm(graded, after))
            if not shed.log2_size(after) < lags[-1] / LOG10_2 + ENOUGH_BITS:
                return None
    if graded is None:
        return None
    found = Leading(graded, lags[1:])
    return found if shed.log2_size(after) < found.log10 / LOG10_2 + ENOUGH_BITS else None


class _Shed:
    """Leaves small directions out of a graded product, and follows a few combinations of them."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._sketch: Graded | None = None
        self._new: Graded | None = None

    def __call__(self, graded: Graded) -> Graded:
        """The product without what is small; of nothing that is left, nothing."""
        if not graded.rank:
            return graded
        size = np.frexp(graded.mantissa)[1] + graded.exponent
        keep = size > size.max() - SHED_BITS
        if keep.all():
            return graded
        kept, self._new = _part(graded, keep), _part(graded, ~keep)
        return kept

    def follow(self, steps: Steps, t: int, after: Array) -> None:
        """Take the sketch through step t, to the columns scaled by 2^after; what was shed there joins it."""
        if self._sketch is not None:
            self._sketch = scaled(self._sketch, steps.times(self._sketch.y, t), after)
        if self._new is not None:
            self._sketch = _sum(self._sketch, self._combined(self._new))
            self._new = None
        if self._sketch is not None:
            self._sketch = _of_size_one(self._sketch)

    def log2_size(self, after: Array) -> float:
        """log2 of the norm of all that was shed, taken up to here: a bound but for a tiny probability."""
        if self._sketch is None:
            return -np.inf
        with np.errstate(divide="ignore"):
            sizes = np.log2(np.abs(self._sketch.y).max(axis=0)) - after
        largest = float(sizes.max() + self._sketch.exponent[0])
        return largest + math.log2(len(after)) + MISSED_BITS

    def _combined(self, shed: Graded) -> Graded:
        """Random combinations of its rows (of x^T d y: x is bounded by its own size)."""
        top = int(shed.exponent.max())
        size = np.linalg.norm(shed.x, axis=1) * np.ldexp(
            shed.mantissa, np.maximum(shed.exponent - top, -1000)
        )
        rows = (self._rng.normal(size=(SKETCHES, shed.rank)) * size) @ shed.y
        return Graded(np.zeros((SKETCHES, 0)), np.ones(SKETCHES), np.full(SKETCHES, top), rows)


def _part(graded: Graded, rows: Array) -> Graded:
    return Graded(graded.x[rows], graded.mantissa[rows], graded.exponent[rows], graded.y[rows])


def _sum(one: Graded | None, other: Graded) -> Graded:
    """The sum of two sketches."""
    if one is None:
        return other
    top = max(int(one.exponent[0]), int(other.exponent[0]))
    parts = (np.ldexp(each.y, max(int(each.exponent[0]) - top, -2000)) for each in (one, other))
    return replace(other, y=np.add(*parts), exponent=np.full(SKETCHES, top))


def _of_size_one(sketch: Graded) -> Graded:
    carried = int(np.frexp(np.abs(sketch.y).max())[1])
    return replace(sketch, y=np.ldexp(sketch.y, -carried), exponent=sketch.exponent + carried)
