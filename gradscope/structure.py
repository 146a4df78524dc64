"""What is exactly zero in a chain: live states by reachability, and rank over prime fields."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from gradscope.errors import InputError
from gradscope.parts import multiplied
from gradscope.path import span

Array = np.ndarray[Any, np.dtype[Any]]

# Below 2^28: with 14-bit halves every sum of 1024 products stays below 2^53.
PRIMES = (268435399, 268435367)
HALF = 14

# Powers of two by which a step is scaled stay inside float64.
MAX_EXPONENT = 1000
MAX_SPREAD = 900
# Bits that the entries of a step span from which on float64 does not hold all that becomes of them: what is
# left of such an entry after a step and an elimination is its cube.
WILD = 200.0
# Steps whose rows all have sizes in here are not scaled.
NEAR_ONE = (2.0**-6, 2.0**6)


@cache
def _no_weights(size: int) -> Array:
    return np.zeros(size, int)


def row_exponents(a: Array) -> Array:
    """(m,) integers: powers of two by which the rows of a are brought to about 1."""
    size = np.abs(a).max(axis=1, initial=0)
    if NEAR_ONE[0] < size.min(initial=1) and size.max(initial=1) < NEAR_ONE[1]:
        return _no_weights(len(size))
    exponents = np.clip(np.frexp(size)[1], -MAX_EXPONENT, MAX_EXPONENT)
    live = exponents[size > 0]
    # What meets a zero row is lost at the next step, but counts in the norm of this lag.
    exponents = np.where(size > 0, exponents, live.min(initial=MAX_EXPONENT))
    return np.asarray(np.maximum(exponents, max(live.max(initial=-MAX_EXPONENT) - MAX_SPREAD, -MAX_EXPONENT)))


class Steps:
    """The steps A_1 ... A_T of a chain, checked, each restricted to the states that matter.

    live[t] : indices of the states kept at time t = 0 ... T, of ``size``, or live is None where all are.
    weights[t] : (len(live[t + 1]),) exponents of the row sizes of step t; span : bits that the entries of a
    step span, at most.
    """

    def __init__(
        self, source: Sequence[Array] | Array, live: list[Array] | None = None, size: int = 0
    ) -> None:
        self.source = source
        self.live = live
        self.size = size
        self.weights: list[Array] = []
        self.span = 0.0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, t: int) -> Array:
        a = np.asarray(self.source[t], dtype=np.float64)
        return a if self.live is None else a[np.ix_(self.live[t + 1], self.live[t])]

    def times(self, y: Array, t: int) -> Array:
        """y @ A_(t+1), the rows of A scaled by 2**-weights[t]; in parts where the chain knows them."""
        if self.weights[t].any():
            y = y * np.ldexp(1.0, -self.weights[t])
        return self._through(y, t)

    def dense(self, t: int) -> Array:
        """Step t as one matrix."""
        return self._through(np.eye(len(self.weights[t])), t)

    def _through(self, y: Array, t: int) -> Array:
        return multiplied(y, self.parts(t), getattr(self.source, "layout", None) if self._known(t) else None)

    def parts(self, t: int) -> list[Array]:
        """The step as the parts of which ``multiplied`` makes it up, where the chain knows them."""
        if self._known(t):
            parts: list[Array] = self.source.parts(t)  # type: ignore[union-attr]
            return parts
        return [self[t]]

    def _known(self, t: int) -> bool:
        """Whether the chain has parts of step t, of which all states matter."""
        whole = self.live is None or len(self.live[t]) == len(self.live[t + 1]) == self.size
        return whole and hasattr(self.source, "parts")

    def width(self, t: int, size: int) -> Array:
        """Indices of the live states at time t of a chain of `size` states."""
        return np.arange(size) if self.live is None else self.live[t]


def surveyed(steps: Steps) -> bool:
    """Set the weights without a look at every entry, if the chain says that no row or column is zero."""
    source: Any = steps.source
    if not hasattr(source, "survey"):
        return False
    sizes, certain = source.survey()
    # Bounds this far from the ends of float64 are of finite entries.
    if not (certain and sizes.min() > 2.0**-MAX_EXPONENT and sizes.max() < 2.0**MAX_EXPONENT):
        return False
    steps.weights = [row_exponents(row[:, None]) for row in sizes]
    steps.span = float(source.span)
    return True


def checked(source: Sequence[Array] | Array) -> tuple[Steps, bool]:
    """All steps looked at once: sizes, finite, weights; and whether any row or column is zero."""
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        source = np.atleast_1d(source)
    if len(source) == 0:
        raise InputError("got a chain of 0 steps, expected at least one Jacobian: shape (T, m, m)")
    steps = Steps(source)
    if surveyed(steps):
        return steps, False
    size = None
    gaps = False
    for t in range(len(source)):
        a = np.asarray(source[t])
        _check(a, t, size)
        size = a.shape[0]
        magnitude = np.abs(a.astype(np.float64, copy=False))
        gaps = gaps or not (magnitude.max(axis=1).all() and magnitude.max(axis=0).all())
        steps.weights.append(row_exponents(magnitude))
        steps.span = max(steps.span, span(magnitude))
    return steps, gaps


def _check(a: Array, t: int, size: int | None) -> None:
    if a.ndim != 2 or a.shape[0] != a.shape[1] or a.shape[0] == 0:
        raise InputError(f"step {t} has shape {a.shape}, expected (m, m): give one square Jacobian per step")
    if size is not None and a.shape[0] != size:
        raise InputError(f"step {t} has shape {a.shape}, expected {(size, size)}: give steps of one size")
    if a.dtype.kind not in "fiub":
        raise InputError(f"step {t} has dtype {a.dtype}, expected real numbers: convert it to float64")
    if not np.isfinite(a).all():
        raise InputError(f"step {t} holds NaN or infinity, expected finite entries: look for an overflow")


def reachable(steps: Steps, size: int, rows: slice, columns: slice) -> tuple[list[Array], list[Array]]:
    """Masks (T + 1 of them) of the states that ``columns`` at time 0 reach, and that reach ``rows`` at T."""
    states = np.arange(size)
    forward, backward = [np.isin(states, states[columns])], [np.isin(states, states[rows])]
    for t in range(len(steps)):
        forward.append((steps[t][:, forward[-1]] != 0).any(axis=1))
    for t in reversed(range(len(steps))):
        backward.append((steps[t][backward[-1]] != 0).any(axis=0))
    return forward, backward[::-1]


def restricted(steps: Steps, masks: list[Array]) -> Steps:
    """The same chain on the masked states only."""
    part = Steps(steps.source, [np.flatnonzero(mask) for mask in masks], len(masks[0]))
    part.weights = [row_exponents(part[t]) for t in range(len(part))]
    part.span = steps.span
    return part


class ExactRank:
    """Rank of A_T ... A_t for the float64 entries as exact rationals.

    Every float64 is a dyadic rational, so it has an exact image in GF(p). The rank there never
    exceeds the true one, and falls short of it with a chance of about T m / p: two primes.
    """

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.total_rank: int | None = None
        self._at = len(steps)
        self._products: list[Array] = []

    def total(self) -> int:
        """Rank of the whole product."""
        if self.total_rank is None:
            products = _start(self.steps)
            for t in reversed(range(len(self.steps))):
                products = _times(products, self.steps[t])
            self.total_rank = max(map(_rank, products, PRIMES))
        return self.total_rank

    def down_to(self, t: int) -> int:
        """Rank of A_T ... A_t (0-based t), for t falling from call to call."""
        if not self._products:
            self._products = _start(self.steps)
        while self._at > t:
            self._at -= 1
            self._products = _times(self._products, self.steps[self._at])
        return max(map(_rank, self._products, PRIMES))


def _start(steps: Steps) -> list[Array]:
    return [np.eye(steps[len(steps) - 1].shape[0]) for _ in PRIMES]


def _times(products: list[Array], a: Array) -> list[Array]:
    return [_product(y, a, p) for y, p in zip(products, PRIMES, strict=True)]


def _product(y: Array, a: Array, p: int) -> Array:
    high, low = np.divmod(_residues(a, p), 1 << HALF)
    return np.asarray(((y @ high % p) * (1 << HALF) + y @ low) % p)


def _residues(a: Array, p: int) -> Array:
    """a mod p, for a = integer times a power of two."""
    mantissa, exponent = np.frexp(a)
    whole = (mantissa * 2.0**53).astype(np.int64) % p
    low = int(exponent.min(initial=0))
    powers = np.array([pow(2, e, p) for e in range(low - 53, int(exponent.max(initial=0)) - 52)], np.int64)
    return np.asarray(whole * powers[exponent - low] % p, np.float64)


def _rank(a: Array, p: int) -> int:
    a = a.astype(np.int64)
    rank = 0
    for column in range(a.shape[1]):
        pivots = np.flatnonzero(a[rank:, column])
        if not len(pivots):
            continue
        row = rank + int(pivots[0])
        a[[rank, row]] = a[[row, rank]]
        a[rank] = a[rank] * pow(int(a[rank, column]), -1, p) % p
        a[rank + 1 :] = (a[rank + 1 :] - a[rank + 1 :, column, None] * a[rank]) % p
        rank += 1
        if rank == a.shape[0]:
            break
    return rank
