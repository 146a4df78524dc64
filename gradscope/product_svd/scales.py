"""Numbers that are sums of terms of very different sizes: 1 + exp(-1e6), of which no ball has both.

Every term is a ball (python-flint's ``arb``) and a fingerprint: what its formula makes, modulo a prime,
of numbers that are drawn for its exponentials. Where terms cancel, what is left of their balls may be 0 or
not; if its fingerprint is 0, so is the formula, and terms that are smaller by exp(-1e6) come to light (to
decide an identity by random values: Schwartz 1980, doi:10.1145/322217.322225).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from bisect import bisect
from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

import flint
import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.steps import UnknownDigitsError

# Fingerprints are residues modulo this prime; two formulas share one by chance once in 1e35 or so.
PRIME = 2**127 - 1
# Terms that are kept of a number, more from so many bits on: products take as many times as long as they have
# terms. Powers of what is beside its largest term that an exponential is developed in.
_TERMS, _FROM, _POWERS = (2, 4, 8), (512, 2048), 4
_size_of = itemgetter(0)
# Exponentials of one step that are known again: its values and slopes have the same.
_KNOWN = 512
_exponentials: dict[tuple[int, int], Number] = {}
# log2(size), the ball and its fingerprint.
Term = tuple[float, Any, int]


class Number:
    """The sum of its terms, the largest first; the last may be a ball about 0, of what was left out."""

    __slots__ = ("terms",)

    def __init__(self, terms: tuple[Term, ...] = ()) -> None:
        self.terms = terms

    @property
    def ball(self) -> Any:
        """All of it."""
        if len(self.terms) == 1:
            return self.terms[0][1]
        return sum((ball for _, ball, _ in reversed(self.terms)), flint.arb(0))

    @property
    def fingerprint(self) -> int:
        """Of all of it."""
        return sum(one for *_, one in self.terms) % PRIME

    @property
    def size(self) -> float:
        """log2 of it, about; -inf of 0."""
        return self.terms[0][0] if self.terms else -math.inf

    @property
    def told(self) -> bool:
        """Whether it is certainly not 0."""
        return bool(self.terms) and not self.terms[0][1].contains(0)

    def __float__(self) -> float:
        return float(self.ball.mid())

    def __neg__(self) -> Number:
        return Number(tuple((size, -ball, (PRIME - one) % PRIME) for size, ball, one in self.terms))

    def __add__(self, other: Number) -> Number:
        if not (self.terms and other.terms):
            return self if self.terms else other
        if len(self.terms) == len(other.terms) == 1:  # what most are
            one, more = self.terms[0], other.terms[0]
            if abs(one[0] - more[0]) <= flint.ctx.prec / 2:
                both = _together((one, more))
                return ZERO if both is None else Number((both,))
        return _in_order([*self.terms, *other.terms])

    def __sub__(self, other: Number) -> Number:
        return self + -other

    def __mul__(self, other: Number) -> Number:
        if not (self.terms and other.terms):
            return ZERO
        if len(self.terms) == len(other.terms) == 1:
            (size, ball, one), (more, by, factor) = self.terms[0], other.terms[0]
            return Number(((size + more, ball * by, one * factor % PRIME),))
        return _in_order(_products(self, other))

    def __truediv__(self, other: Number) -> Number:
        """Term by term, so that factors of both cancel.

        Raises UnknownDigitsError where ``other`` may be 0.
        """
        whole = other.ball
        if whole.contains(0):
            raise UnknownDigitsError
        if not self.terms:
            return self
        size, by, one = other.terms[0]
        inverse = pow(one, -1, PRIME)
        if len(other.terms) == 1:
            return Number(tuple((own - size, a / by, b * inverse % PRIME) for own, a, b in self.terms))
        found: list[Term] = []
        left = self
        while left.terms and len(found) < _most_terms() and not left.terms[0][1].contains(0):
            first = left.terms[0]
            found.append((first[0] - size, first[1] / by, first[2] * inverse % PRIME))
            left = left - Number((found[-1],)) * other
        if left.terms:
            ball, own = left.ball / whole, left.fingerprint * pow(other.fingerprint, -1, PRIME)
            found.append((_size(ball), ball, own % PRIME))
        return _in_order(found)

    def exp(self) -> Number:
        """Of it; exponentials of a, 2 a and -a have fingerprints that know of each other."""
        if not self.terms:
            return ONE
        if not math.isfinite(self.size):  # these have no formula to be known by
            return self._exponential()
        key = flint.ctx.prec, self.fingerprint
        if key not in _exponentials:
            if len(_exponentials) >= _KNOWN:
                _exponentials.clear()
            _exponentials[key] = self._exponential()
        return _exponentials[key]

    def _exponential(self) -> Number:
        own = _of_exponential(self.fingerprint)
        if len(self.terms) == 1:
            ball = self.terms[0][1]
            small = abs(ball) < 0.5
            return ONE + of_ball(ball.expm1(), own - 1) if small else of_ball(ball.exp(), own)
        first, beside = self.terms[0], Number(self.terms[1:])
        by = of_ball(first[1].exp(), _of_exponential(first[2]))
        found = by * _powers(beside)
        left = abs(beside.ball)
        return with_rest(found, by.ball * left**_POWERS * left.exp(), own)


ZERO = Number()


def of_ball(ball: Any, fingerprint: int) -> Number:
    """One term."""
    return Number(((_size(ball), ball, fingerprint),)) if fingerprint or not ball.is_zero() else ZERO


@lru_cache(maxsize=64)
def _inverse(of: int) -> int:
    return pow(of, -1, PRIME)


def rational(above: int, below: int = 1) -> Number:
    """above / below."""
    return of_ball(flint.arb(above) / below, above * _inverse(below) % PRIME)


def exactly(value: float) -> Number:
    """A float, exactly; infinite ones have no digits."""
    if not math.isfinite(value):
        return Number(((math.inf, flint.arb(value), 1),))
    above, below = value.as_integer_ratio()
    return of_ball(flint.arb(value), above * _inverse(below) % PRIME)


def with_rest(found: Number, bound: Any, fingerprint: int) -> Number:
    """A number that is off by no more than ``bound``, which is part of it then."""
    rest = flint.arb(0, bound.abs_upper())
    return found + Number(((_size(rest), rest, (fingerprint - found.fingerprint) % PRIME),))


def numbers(values: Any) -> Array:
    """Those of an array of floats, exactly."""
    values = np.asarray(values, np.float64)
    out = np.empty(values.size, object)
    out[:] = [*map(exactly, values.ravel().tolist())]
    return out.reshape(values.shape)


def balls(values: Array) -> Array:
    """Those of an array of numbers."""
    return np.asarray(np.frompyfunc(lambda one: one.ball, 1, 1)(values))


def total(values: Iterable[Number]) -> Number:
    """The sum of all, whose terms are put in order once."""
    return _in_order([term for one in values for term in one.terms])


def dot(left: Iterable[Number], right: Iterable[Number]) -> Number:
    """The sum of their products."""
    terms = [term for a, b in zip(left, right, strict=True) for term in _products(a, b)]
    return _in_order(terms)


def row_through(row: Sequence[Number], matrix: Array) -> list[Number]:
    """The vector row @ matrix."""
    return [dot(row, column) for column in matrix.T.tolist()]


@lru_cache(maxsize=2**14)
def stand_in(name: str, *of: int) -> int:
    """A fingerprint of what a function makes of numbers with these: one that is drawn for it."""
    digest = hashlib.blake2b(f"{name} {of}".encode(), digest_size=32).digest()
    return int.from_bytes(digest, "big") % PRIME


@lru_cache(maxsize=2**14)
def _of_exponential(of: int) -> int:
    """The same of exp; that of exp(2 a) is the square of exp(a)'s, that of exp(-a) its inverse.

    Modulo this prime multiplication by 2 turns the bits round, so that a, 2 a, 4 a, ... share their least
    rotation; squares have an odd order, so that they have one root that is a square itself.
    """
    if not of:
        return 1
    bits = PRIME.bit_length()
    # Its rotations, and its complement's, which are those of -a: the largest of the one are the least of the
    # other.
    both = of << bits | of
    every = [both >> turns & PRIME for turns in range(bits)]
    least, most = min(every), max(every)
    if PRIME - most < least:
        return pow(_of_exponential(PRIME - of), -1, PRIME)
    turns = every.index(least)
    turns = turns if turns <= bits // 2 else turns - bits
    return pow(stand_in("exp", least) ** 2, pow(2, turns, (PRIME - 1) // 2), PRIME)


def _powers(small: Number) -> Number:
    """The exponential's series, of so many powers from 0 on."""
    found, power = [ONE], ONE
    for k in range(1, _POWERS):
        power = small if k == 1 else power * small * rational(1, k)
        found.append(power)
    return total(found)


def _products(a: Number, b: Number) -> list[Term]:
    return [
        (size + other, ball * by, one * factor % PRIME)
        for size, ball, one in a.terms
        for other, by, factor in b.terms
    ]


def _in_order(terms: list[Term]) -> Number:
    """Terms of about one size as one, the largest first; the last is all that its digits say nothing of."""
    count = len(terms)
    if count < 2:
        return Number(tuple(terms))
    terms.sort(key=_size_of, reverse=True)
    near, last = flint.ctx.prec / 2, _most_terms() - 1
    found: list[Term] = []
    at, alike = 0, True
    while at < count:
        first, least = at, terms[at][0] - near
        at += 1
        while at < count and terms[at][0] >= least:
            at += 1
        if len(found) == last:
            at = count
        one: Term | None = terms[first]
        if at - first > 1:
            one, alike = _together(terms[first:at]), False
        if one is None:
            continue
        if at < count and one[1].contains(0):
            one, alike, at = _together([one, *terms[at:]]), False, count
        if one is not None:
            found.append(one)
    if not alike and any(after[0] > before[0] for before, after in itertools.pairwise(found)):
        found.sort(key=_size_of, reverse=True)
    return Number(tuple(found))


def _together(terms: Sequence[Term]) -> Term | None:
    """The sum of two and more, None where that is 0 as a formula."""
    ball, own = terms[-1][1], terms[-1][2]
    for _, more, another in terms[-2::-1]:
        ball += more
        own += another
    own %= PRIME
    return (_size(ball), ball, own) if own or not ball.contains(0) else None


def _most_terms() -> int:
    """Of a number of so many bits."""
    return _TERMS[bisect(_FROM, flint.ctx.prec)]


def _size(ball: Any) -> float:
    """log2 of it, about."""
    if not ball.is_finite():
        return math.inf
    if ball.rel_accuracy_bits() < 1:
        ball = ball.abs_upper()
    digits, exponent = ball.mid().man_exp()
    length = digits.bit_length()
    return float(int(exponent)) + length if length else -math.inf


ONE = exactly(1.0)
