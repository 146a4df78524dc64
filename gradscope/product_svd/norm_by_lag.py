"""The norm of every partial product: Lanczos on the graded factors, started from the last lag."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd import log_scale
from gradscope.product_svd.graded_chain import SAFE
from gradscope.product_svd.graded_lu import Graded
from gradscope.product_svd.lapack import dgesdd
from gradscope.product_svd.log_scale import LOG10_2

MAX_STEPS = 40
TOLERANCE = 1e-13
TINY = 1e-300
# Even a good start takes this many; looking earlier costs as much as the step.
FEWEST_STEPS = 2
# After so many steps in which the norm does not grow it is found.
STILL = 2
# How much of the start is random: it finds a new top vector that is orthogonal to the old one.
RANDOM = 0.1
# Matrices that are so small are decomposed.
_DECOMPOSED = 6
# A new direction that is so much smaller than the norm is the rounding of the others: there is none left.
_EXHAUSTED = 1e-15
# Lags whose norms are looked for in runs on changed entries too.
COMPARED = 12
# Rows of d this far below the largest do not change the norm.
BELOW = 1e-19
# Decades by which norms may differ that are the same: of a chain that keeps lengths rounding orders them.
TIED = 1e-10


class LagNorm:
    """log10 sigma_1 of one graded product after the other.

    floor : where the norm is certainly below it, and below the largest so far, an upper bound will do;
    columns : those states of the first step that count, where not all do; at : the lags that are wanted, of
    others NaN is returned; lag : how many were gone through.
    """

    def __init__(
        self, floor: float = -np.inf, columns: slice = slice(None), at: Collection[int] | None = None
    ) -> None:
        self.columns, self.at, self.lag = columns, at, 0
        self.rng = np.random.default_rng(0)
        self.vector: Array | None = None
        self.floor, self.peak = floor, -np.inf

    def anew(self) -> LagNorm:
        """The same before its first lag."""
        return LagNorm(self.floor, self.columns, self.at)

    def of_some(self, steps: int) -> LagNorm | None:
        """For runs that are compared with this: some lags, spread evenly in the logarithm; None of bounds."""
        if self.floor > -np.inf:
            return None
        spread = frozenset(np.geomspace(1, steps, min(steps, COMPARED)).round().astype(int).tolist())
        return LagNorm(columns=self.columns, at=spread if self.at is None else spread & frozenset(self.at))

    def __call__(self, graded: Graded, after: Array) -> float:
        """after : (m_0,) exponents by which the columns of graded.y are scaled."""
        self.lag += 1
        if self.at is not None and self.lag not in self.at:
            return float("nan")
        if graded.rank == 0:
            return -np.inf
        after = after[self.columns]
        reference, y = int(after.max(initial=0)), graded.y[:, self.columns]
        if after.any():
            y = y * np.ldexp(1.0, reference - after)
        # Largest entries, not norms: rows may be so small or large that squares do not fit.
        height = np.abs(y).max(axis=1)
        with np.errstate(divide="ignore"):
            parts = np.abs([graded.largest_in_x, height, graded.mantissa])
            log_size = np.log2(parts).sum(axis=0) + graded.exponent
        largest = float(log_size.max())
        if largest == -math.inf:
            return -np.inf
        shift = int(largest)
        entries = math.sqrt(graded.x.shape[1] * y.shape[1])  # the norm is at most so many of the largest
        bound = math.log2(np.exp2(log_size - shift).sum() * entries) + shift - reference
        if bound * LOG10_2 < min(self.floor, self.peak) - TIED:
            return float(bound * LOG10_2)
        keep = log_size > largest + math.log2(BELOW)
        y, height = y[keep], height[keep]
        d, exponent = graded.mantissa[keep], graded.exponent[keep] - shift
        if not (height.min() >= SAFE[0] and height.max() < SAFE[1]):
            height, carried = np.frexp(height)
            y = np.ldexp(y, -carried[:, None]) / height[:, None]
            d, exponent = d * height, exponent + carried
        sigma = self._norm(graded.x[keep] * np.ldexp(d, exponent)[:, None], y)
        norm = float(log_scale.log10(sigma, shift - reference))
        self.peak = max(self.peak, norm)
        return norm

    def _norm(self, x: Array, y: Array) -> float:
        """Largest singular value of x.T @ y; the left vector is where the next lag starts."""
        if len(x) == 1:
            self.vector = x[0] / np.linalg.norm(x[0])
            return float(np.linalg.norm(x) * np.linalg.norm(y))
        found = None
        if min(x.shape) > _DECOMPOSED:
            start = np.asarray(self.rng.normal(size=x.shape[1]))
            if self.vector is not None and len(self.vector) == len(start):
                start = self.vector + RANDOM * start / np.linalg.norm(start)
            found = _golub_kahan(x, y, start)
        self.vector, sigma = found or _direct(x, y)
        return sigma


def _direct(x: Array, y: Array) -> tuple[Array, float]:
    u, s, _ = np.linalg.svd(x.T @ y)
    return u[:, 0], float(s[0])


def _golub_kahan(x: Array, y: Array, start: Array) -> tuple[Array, float] | None:
    """Top left vector and value of x.T @ y by Golub-Kahan-Lanczos; None if it takes too long.

    Without reorthogonalisation: what is lost with it are copies of values that have converged
    (Paige 1971), and the largest is all that is wanted.
    """
    us, vs = np.empty((MAX_STEPS + 1, x.shape[1])), np.empty((MAX_STEPS, y.shape[1]))
    bidiagonal = np.zeros((MAX_STEPS + 1, MAX_STEPS))
    us[0] = start / math.sqrt(start @ start)
    last, still, beta = 0.0, 0, 0.0
    for j in range(MAX_STEPS):
        v = (x @ us[j]) @ y
        if j:
            v -= beta * vs[j - 1]
        alpha = math.sqrt(v @ v)
        if alpha <= TINY:
            return None
        vs[j] = v / alpha
        u = (y @ vs[j]) @ x - alpha * us[j]
        beta = math.sqrt(u @ u)
        us[j + 1] = u / max(beta, TINY)
        bidiagonal[j, j], bidiagonal[j + 1, j] = alpha, beta
        if j < FEWEST_STEPS and beta > TINY:
            continue
        left, sigmas, _, _ = dgesdd(bidiagonal[: j + 2, : j + 1], full_matrices=0)
        sigma = float(sigmas[0])
        still = still + 1 if sigma - last <= TOLERANCE * sigma else 0
        last = sigma
        if still == STILL or beta <= _EXHAUSTED * sigma:
            return left[:, 0] @ us[: j + 2], sigma
    return None
