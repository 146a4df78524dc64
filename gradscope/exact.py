"""The last resort for small chains: the product in integers, without any rounding."""

from __future__ import annotations

import numpy as np

from gradscope.factors import Graded
from gradscope.structure import Array, Steps

# Multiplications of long integers that are worth the wait: half a second for the last digits, ten
# (m = 48, T = 200) where the values are otherwise wrong in the sixth.
BUDGET = 1_000_000
LARGE_BUDGET = 25_000_000
# Bits of the product that may pile up before they are too slow.
MAX_BITS = 40_000
GUARD = 128


def affordable(steps: Steps, *, hopeless: bool) -> bool:
    """Whether exact_product takes no longer than it is worth; hopeless : the values are wrong without."""
    work = sum(len(w) ** 3 for w in steps.weights)
    return work <= (LARGE_BUDGET if hopeless else BUDGET) and (64 + steps.span) * len(steps) <= MAX_BITS


def exact_product(steps: Steps, rank: int) -> Graded:
    """Graded form of the exact product, by elimination with complete pivoting.

    For chains like Jordan blocks, whose small values are well determined by every entry's
    relative size but not by the norm of a step: no backward stable factorisation finds them.
    """
    last = len(steps) - 1
    product, exponent = _integers(steps[last])
    for t in reversed(range(last)):
        step, low = _integers(steps[t])
        product, exponent = product @ step, exponent + low
    bits = 256
    while True:
        found = _eliminate(product << bits, exponent - bits, rank)
        if found is not None:
            return found
        # The quotients need more digits after the point; the entries have all of theirs.
        bits *= 2


def _integers(a: Array) -> tuple[Array, int]:
    """(object array of int, e) with a = integers * 2^e."""
    mantissa, exponent = np.frexp(a)
    whole = (mantissa * 2.0**53).astype(np.int64).astype(object)
    exponent = exponent.astype(np.int64) - 53
    low = int(exponent[a != 0].min())
    return whole << np.where(a != 0, exponent - low, 0).astype(object), low


def _eliminate(p: Array, exponent: int, rank: int) -> Graded | None:
    """P = X^T D Y with the largest entry as pivot; None if a pivot has lost its digits."""
    rows, columns = p.shape
    x, y = np.zeros((rank, rows)), np.zeros((rank, columns))
    mantissa, exponents = np.zeros(rank), np.zeros(rank, np.int64)
    for k in range(rank):
        i, j = np.unravel_index(np.argmax(abs(p)), p.shape)
        pivot = p[i, j]
        size = abs(pivot).bit_length()
        if size < GUARD:
            return None
        x[k] = _ratios(p[:, j], pivot)
        y[k] = _ratios(p[i], pivot)
        mantissa[k], exponents[k] = float(pivot >> (size - 64)) * 2.0**-64, exponent + size
        p = p - p[:, [j]] * p[[i]] // pivot
        p[i], p[:, j] = 0, 0
    return Graded(np.asfortranarray(x), mantissa, exponents, y)


def _ratios(numbers: Array, pivot: int) -> Array:
    return np.array([float((n << 80) // pivot) * 2.0**-80 for n in numbers])
