"""Top singular values of a product known by what it does to blocks of vectors: block Krylov."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.block_pass import Image, Passes
from gradscope.product_svd.error_estimate import SAFETY
from gradscope.product_svd.operator import Operator
from gradscope.product_svd.tail_norms import tail_norms

# Columns beyond the values asked for, at least, and what their number is a multiple of: 20 columns took
# as long as 32 (m = 512).
SPARE = 8
MULTIPLE = 16
# Passes at most.
PASSES = 30
# The block grows up to here, by doubling: every new width is compiled anew.
WIDEST = 64
# Spacings of a log10 value by which it is rounded on its way, where two passes agree by chance.
ROUNDINGS = 2
# What a space may leave out of a value, relative.
TOLERANCE = 1e-11


# Every lag up to here, then two for every doubling, and one where a lag takes long.
SMALL = 8
LONG = 1024
# Lags between two that a fall lies between, which are looked at together.
BETWEEN = 8


@dataclass(frozen=True)
class TopTriplets:
    """The largest singular values of P with their vectors, as columns: P right = sigma left.

    log10 : (r,) descending, r <= b; the others are zero to the rounding of a step.
    error : (k,) estimated |error| of the first k of log10.
    left, right : (m, b) orthonormal, the first r columns are the vectors.
    largest : log10 of the largest gain over any stretch of steps that was met, a lower bound.
    behind : log10 of what a vector near the first of left had gained after each of equal parts of its way.
    """

    log10: Array
    error: Array
    left: Array
    right: Array
    largest: float
    behind: Array


def top_values(
    operator: Operator,
    count: int,
    width: int | None = None,
    entry_error: float = 0.0,
) -> list[TopTriplets]:
    """The ``count`` largest singular values of P, for every sequence.

    width : columns b of the first block; entry_error : relative rounding unit of the entries of the
    steps, which the estimate then covers. Raises InputError if a step overflows.

    Passes through P and P^T by turns, until two of them agree; where three more would not be enough,
    the next gets the space of the last two (block Krylov: Musco, Musco 2015, arXiv 1504.05477).
    """
    passes, enough = Passes(operator), tolerance(operator)
    width = width or columns(operator, count)
    after = passes(_random(operator, width))
    block = _stacked(image.output for image in after)
    while True:
        before, after = after, passes(block)
        of = (count, (count + width) // 2, operator.size)
        missing = [_missing(*pair, *of) for pair in zip(before, after, strict=True)]
        found = _worst(m.now for m in missing) <= enough
        if passes.done >= PASSES or (found and not any(m.veiled(100 * enough) for m in missing)):
            break
        slow = passes.done > 2 and _worst(m.soon for m in missing) > enough
        block = _stacked(_next(*pair, operator.size, slow) for pair in zip(before, after, strict=True))
    return [
        TopTriplets(
            values := b.log10.astype(np.float64),
            m.error(values, operator, entry_error),
            *passes.sides(b),
            float(largest),
            behind,
        )
        for b, m, largest, behind in zip(after, missing, passes.largest, passes.behind, strict=True)
    ]


def columns(operator: Operator, count: int) -> int:
    """How many columns to look for ``count`` values with."""
    return min(operator.size, -(-(count + SPARE) // MULTIPLE) * MULTIPLE)


def tolerance(operator: Operator) -> float:
    """What a space may leave out of a value, relative."""
    return max(TOLERANCE, operator.eps * math.sqrt(operator.steps))


def _random(operator: Operator, width: int) -> Array:
    block = np.random.default_rng(0).normal(size=(operator.sequences, operator.columns, width))
    return np.linalg.qr(block)[0]


def _next(before: Image, after: Image, size: int, slow: bool) -> Array:
    """The block of the next pass: where it is slow, with what the last two passes know."""
    width = after.output.shape[1]
    if not slow or before.input.shape[1] < width:
        return after.output
    most = min(size, max(width, WIDEST))
    kept = after.output[:, : max(most - width, most * 3 // 4)]
    return np.linalg.qr(np.concatenate([kept, before.input[:, : most - kept.shape[1]]], axis=1))[0]


def _stacked(blocks: Iterable[Array]) -> Array:
    return np.stack(list(blocks))


def _worst(bounds: Iterable[Array]) -> float:
    return float(max(bound.max(initial=0) for bound in bounds))


@dataclass(frozen=True)
class _Missing:
    """How far (k,) values are below the true ones, at most and relative, and how two passes differ.

    residual : of the pass before; now, soon : what this pass and three more lack; spread : difference of
    the two in log10.
    """

    residual: Array
    now: Array
    soon: Array
    spread: Array

    def veiled(self, enough: float) -> bool:
        """Whether the pass before lacked so much that the difference says little of the rounding."""
        open_ = SAFETY * self.spread > enough
        return bool((open_ & (self.spread <= 4 * self.residual)).any())

    def error(self, log10: Array, operator: Operator, entry_error: float) -> Array:
        """(k,) estimated |error| of log10: what is missing, and what rounding does to two passes."""
        # Roundings add up like a random walk; those of log10 itself are more, where it is large.
        floor = 2 * np.sqrt(operator.steps) * (operator.eps + entry_error)
        rounding = ROUNDINGS * np.spacing(np.abs(log10[: len(self.now)]))
        return np.asarray((self.now + floor) / np.log(10) + SAFETY * self.spread + rounding)


def _missing(before: Image, after: Image, count: int, middle: int, size: int) -> _Missing:
    """What the space of a block leaves out of each value.

    The residual is seen between one pass and the next, and every pass shrinks it by the ratio of the
    values left out to its own. The value number ``middle``, of the spare columns of the first block,
    stands for those: a block that has grown holds directions that no pass has improved yet.
    """
    width = before.input.shape[1]
    rank = len(after.log10)
    count = min(count, rank, len(before.log10))
    spread = np.abs(before.log10[:count] - after.log10[:count]).astype(np.float64)
    residual = np.array([_residual(before, after, i) for i in range(count)])
    ratio = np.zeros(count)
    if width < size and middle < rank:  # or there is nothing left out
        ratio = 10 ** np.minimum(0, after.log10[middle] - after.log10[:count]).astype(np.float64)
    return _Missing(residual, _lacking(residual * ratio, ratio), _lacking(residual * ratio**4, ratio), spread)


def _lacking(residual: Array, ratio: Array) -> Array:
    """The square of the residual over the gap to what is left out.

    Where the residual is not small beside the gap, a Ritz value may be near another value than its own,
    which is then as far away as what is left out, or as the residual.
    """
    gap = 1 - ratio
    with np.errstate(divide="ignore", invalid="ignore"):
        quadratic = residual**2 / (gap * (1 + ratio))
    return np.asarray(np.where(residual > 0.01 * gap, np.maximum(residual, 2 * gap), quadratic))


def _residual(before: Image, after: Image, i: int) -> float:
    """|P^T u - sigma v| / sigma of the i-th pair of the pass before, P^T being the one that followed.

    Without its part in much larger directions: a Ritz value does not depend on them, and what rounding
    leaves of them is large beside a small sigma.
    """
    relative = (after.log10 - before.log10[i]).astype(np.float64)
    far, rank = int(np.count_nonzero(relative > 1)), len(relative)
    coordinates = after.input[:, far:rank].T @ before.output[:, i]
    image = after.output[:, far:rank] @ (10 ** relative[far:] * coordinates)
    larger, v = after.output[:, :far], before.input[:, i]
    return float(np.linalg.norm(image - v + larger @ (larger.T @ v)))


def norm_by_lag(operator: Operator, whole: list[TopTriplets], log10_threshold: float) -> tuple[Array, Array]:
    """Lags (L,), ascending, and log10 sigma_1(A_T ... A_(T-k+1)) at them, (B, L).

    whole : what was found for T. A lag is left out where its norm is not known to about ten digits
    (four in float32). Where it falls below ``log10_threshold`` between two lags, more are looked at between
    them: the lag of a fall is exact, and the first where there is only one.
    """
    norms = {operator.steps: _norms(whole)}
    near = _stacked(top.left for top in whole)
    likely = (_likely(top.behind, operator.steps, log10_threshold) for top in whole)
    wanted = sorted(set(_spread(operator.steps)).union(*likely) - norms.keys())
    while wanted:
        found = tail_norms(operator, np.array(wanted), near, tolerance(operator))
        norms |= dict(zip(wanted, found.T, strict=True))
        wanted = sorted(
            {
                lag
                for sequence in range(operator.sequences)
                for lag in _around_fall({lag: norms[lag][sequence] for lag in norms}, log10_threshold)
            }
        )
    known = [lag for lag in sorted(norms) if not np.isnan(norms[lag]).any()]
    return np.array(known, np.int64), np.array([norms[lag] for lag in known]).T


def _likely(behind: Array, steps: int, threshold: float) -> set[int]:
    """Lags where the norm may fall below the threshold, known from one vector of the whole product.

    Its gain is a lower bound: the norm falls as soon, or a little later.
    """
    below = np.flatnonzero(behind < threshold)[:1]
    if not below.size or not np.isfinite(threshold):
        return set()
    high, low = behind[below[0] - 1 : below[0] + 1]
    part = (high - threshold) / (high - low) if np.isfinite(low) else 0.0
    near = round(float(below[0] - 1 + part) * steps / (len(behind) - 1))
    return {lag for lag in range(near - 2, near + BETWEEN - 3) if 0 < lag < steps}


def _around_fall(norms: dict[int, float], threshold: float) -> list[int]:
    """Lags to look at between the first that is below and the one before it."""
    below = min((lag for lag, norm in norms.items() if norm < threshold), default=0)
    above = max((lag for lag in norms if lag < below), default=0)
    between = np.linspace(above, below, BETWEEN + 2)[1:-1]
    return sorted({round(lag) for lag in between} - {above, below}) if below else []


def _norms(found: list[TopTriplets]) -> Array:
    return np.array([top.log10[0] if len(top.log10) else -np.inf for top in found])


def _spread(steps: int) -> list[int]:
    """Small lags, then log-spaced ones up to T."""
    spaced = [SMALL * 2**k for k in range(steps.bit_length())]
    between = [round(lag * 2**0.5) for lag in spaced if lag < LONG]
    return sorted({lag for lag in (*range(1, SMALL), *spaced, *between, steps) if lag <= steps})
