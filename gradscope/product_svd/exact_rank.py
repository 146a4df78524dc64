"""The exact rank of a product of float64 matrices, modulo primes; and what the structure says of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.steps import Steps

# Below 2^28: with 14-bit halves every sum of 1024 products stays below 2^53.
PRIMES = (268435399, 268435367)
HALF = 14


class ExactRank:
    """Rank of A_T ... A_t for the float64 entries as exact rationals.

    Every float64 is a dyadic rational, so it has an exact image in GF(p). The rank there never
    exceeds the true one, and falls short of it with a chance of about T m / p: two primes.
    Steps that are sums are added up there: where a term is below the rounding of another, rows of the rounded
    sum are alike that are not.
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
                products = _times(products, self.steps.terms(t))
            self.total_rank = max(map(_rank, products, PRIMES))
        return self.total_rank

    def down_to(self, t: int) -> int:
        """Rank of A_T ... A_t (0-based t), for t falling from call to call."""
        if not self._products:
            self._products = _start(self.steps)
        while self._at > t:
            self._at -= 1
            self._products = _times(self._products, self.steps.terms(self._at))
        return max(map(_rank, self._products, PRIMES))


def rank_bound(steps: Steps, known: int) -> int:
    """How many values a product of rounded entries has at most, by its structure.

    By the states that matter and how the steps are made, and where that leaves more than are ``known`` by the
    exact rank of the entries as they are: a lower one of rounded entries is no accident.
    """
    states = len(steps.width(0, len(steps.weights[0]))), *map(len, steps.weights)
    rank = min(*states, steps.source.rank)
    if rank > known and not steps.source.beyond:
        rank = min(rank, ExactRank(steps).total())
    return rank


def _start(steps: Steps) -> list[Array]:
    return [np.eye(steps[len(steps) - 1].shape[0]) for _ in PRIMES]


def _times(products: list[Array], terms: Sequence[Array]) -> list[Array]:
    return [_product(y, terms, p) for y, p in zip(products, PRIMES, strict=True)]


def _product(y: Array, terms: Sequence[Array], p: int) -> Array:
    whole = np.sum([_residues(term, p) for term in terms], axis=0) % p
    high, low = np.divmod(whole, 1 << HALF)
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
