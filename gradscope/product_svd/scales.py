"""Numbers that know what they are made of: 1 + exp(-1e6), of which no ball has both.

A number has a ball (python-flint's ``arb``); a fingerprint, which is what its formula makes, modulo a prime,
of numbers that are drawn for its exponentials; and the numbers that it is the sum, product, ... of. Where
terms cancel, what is left of their balls may be 0 or not; if its fingerprint is 0, so is the formula (to
decide an identity by random values: Schwartz 1980, doi:10.1145/322217.322225). If not, a term is split by a
detail, as (1 + exp(-1e6)) x is into x and exp(-1e6) x, until terms cancel as formulas and details come to
light. Nothing is cut off, and nothing is multiplied out but where it takes that.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache, reduce
from operator import attrgetter
from typing import Any

import flint
import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.steps import UnknownDigitsError

# Fingerprints are residues modulo this prime; two formulas share one by chance once in 1e35 or so.
PRIME = 2**127 - 1
# How often terms of one sum are split until it is called unknown.
_MOST_TURNS = 1000
_size_of, _gap_of = attrgetter("size"), attrgetter("gap")


class Number:
    """One that has no detail.

    ball : all of it; size : log2 of it, or of what it is at most; gap : how many bits below it the finest
    detail is that it can be split by, 0 where there is none.
    """

    __slots__ = ("ball", "fingerprint", "gap", "size")

    def __init__(self, ball: Any, fingerprint: int, size: float, gap: float = 0.0) -> None:
        self.ball, self.fingerprint, self.size, self.gap = ball, fingerprint, size, gap

    def __bool__(self) -> bool:
        """Whether it is anything but 0, as a formula."""
        return bool(self.fingerprint)

    def split(self) -> tuple[Number, ...]:
        """Parts that it is the sum of, each with fewer details or far below the first."""
        return (self,)

    def __float__(self) -> float:
        return float(self.ball.mid())

    def __neg__(self) -> Number:
        return self * _MINUS

    def __add__(self, other: Number) -> Number:
        return total((self, other))

    def __sub__(self, other: Number) -> Number:
        return total((self, -other))

    def __mul__(self, other: Number) -> Number:
        if not (self and other):
            return ZERO
        if other is ONE or self is ONE:
            return self if other is ONE else other
        ball, own = self.ball * other.ball, self.fingerprint * other.fingerprint % PRIME
        size, gap = self.size + other.size, max(self.gap, other.gap)
        return _Product(ball, own, size, gap, *_together(self, other)) if gap else Number(ball, own, size)

    def __truediv__(self, other: Number) -> Number:
        """Raises UnknownDigitsError where ``other`` may be 0."""
        if other.ball.contains(0):
            raise UnknownDigitsError
        if not self:
            return self
        ball, own = self.ball / other.ball, self.fingerprint * _inverse(other.fingerprint) % PRIME
        size, gap = self.size - other.size, max(self.gap, other.gap)
        return _Quotient(ball, own, size, gap, self, other) if gap else Number(ball, own, size)

    def exp(self) -> Number:
        """Of it; exponentials of a, 2 a and -a have fingerprints that know of each other."""
        if not self:
            return ONE
        own = _of_exponential(self.fingerprint)
        if self.size < -_near():
            return ONE + _series(self, 1, own - 1)
        ball = self.ball.exp()
        found, gap = Number(ball, own, _size(ball)), self.gap - self.size
        return _Exponential(ball, own, found.size, gap, self) if self.gap and gap > _near() else found


class _Made(Number):
    """One of others."""

    __slots__ = ("_apart", "of")

    def __init__(self, ball: Any, fingerprint: int, size: float, gap: float, *of: Any) -> None:
        super().__init__(ball, fingerprint, size, gap)
        self.of = of
        self._apart: tuple[Number, ...] | None = None

    @property
    def inner(self) -> Number | None:
        """What it is split by."""
        one: Number = max(self.of, key=_gap_of)
        return one

    def split(self) -> tuple[Number, ...]:
        """The innermost first: states are nested as deep as there are steps, deeper than Python calls."""
        nested: list[_Made] = []
        one: Number | None = self
        while isinstance(one, _Made) and one._apart is None:
            nested.append(one)
            one = one.inner
        for one in reversed(nested):
            one._apart = one._split()
        assert self._apart is not None
        return self._apart

    def _split(self) -> tuple[Number, ...]:
        raise NotImplementedError


class _Product(_Made):
    """Of factors with details, one for every step of a chain or more, and one without at most."""

    __slots__ = ()

    def _split(self) -> tuple[Number, ...]:
        return tuple(_without(self, max(self.of, key=_gap_of)))


class _Quotient(_Made):
    """a / b."""

    __slots__ = ()

    def _split(self) -> tuple[Number, ...]:
        a, b = self.of
        if a.gap >= b.gap:
            return tuple(part / b for part in a.split())
        lead, rest = _apart(b, b.size - _near())
        return a / lead, -(self * rest / lead)


class _Exponential(_Made):
    """exp(a)."""

    __slots__ = ()

    def _split(self) -> tuple[Number, ...]:
        (a,) = self.of
        lead, rest = _apart(a, -_near())
        found = lead.exp()
        return found, found * _series(rest, 1, self.fingerprint * _inverse(found.fingerprint) - 1)


class _Series(_Made):
    """The terms x^j / j! from some j on, of a small x.

    What is left of them after one is below 2 x / j of that.
    """

    __slots__ = ()
    inner = None

    def _split(self) -> tuple[Number, ...]:
        x, first = self.of
        lead = rational(1, math.factorial(first))
        for _ in range(first):
            lead = lead * x
        return lead, _series(x, first + 1, self.fingerprint - lead.fingerprint)


class _Sum(_Made):
    """Of terms."""

    __slots__ = ()

    @property
    def inner(self) -> Number | None:
        """A term, where none is a detail itself."""
        apart = self.size - min(map(_size_of, self.of)) > _near()
        return None if apart else super().inner

    def _split(self) -> tuple[Number, ...]:
        return self.of


def total(values: Iterable[Number]) -> Number:
    """The sum of all."""
    terms = sorted(filter(None, values), key=_size_of, reverse=True)
    for turn in itertools.count():
        if len(terms) < 2:
            return terms[0] if terms else ZERO
        leading, ball, known = _leading(terms)
        if known or turn == _MOST_TURNS:
            break
        first = _gathered(terms[:leading])
        if len(first) == leading:
            found = None if any(map(_is_lost, first)) else _finest(first)
            if found is None:
                break
            which, factor = found
            first[which : which + 1] = _without(first[which], factor)
        terms = sorted([*first, *terms[leading:]], key=_size_of, reverse=True)
    return _summed(terms, leading, ball)


def _is_lost(one: Number) -> bool:
    """Whether nothing is known of it, nor will be."""
    return not one.gap and one.ball.contains(0)


def _factors(one: Number) -> tuple[Number, ...]:
    return one.of if isinstance(one, _Product) else (one,)


def _together(a: Number, b: Number) -> list[Number]:
    """The factors of a product, of which one at most has no detail."""
    factors = [*_factors(a), *_factors(b)]
    plain = [one for one in factors if not one.gap]
    return factors if len(plain) < 2 else [one for one in factors if one.gap] + [plain[0] * plain[1]]


def _finest(terms: Sequence[Number]) -> tuple[int, Number] | None:
    """The term to split, and by which of its factors: the finest detail of all that the terms do not share.

    Before a factor goes a sum, in a term without it, that has it in its own terms: then they may share it.
    """
    each = [Counter(factor.fingerprint for factor in _factors(one) if factor.gap) for one in terms]
    common = reduce(operator.and_, each)
    found = [
        (which, factor)
        for which, one in enumerate(terms)
        for factor in _factors(one)
        if factor.gap and each[which][factor.fingerprint] > common[factor.fingerprint]
    ]
    if not found:
        return None
    which, factor = max(found, key=lambda pair: pair[1].gap)
    own = factor.fingerprint
    return next(((k, one) for k, one in found if own not in each[k] and _has(one, own)), (which, factor))


def _has(one: Number, fingerprint: int) -> bool:
    """Whether it is a sum with a term that has this factor."""
    parts = one.of if isinstance(one, _Sum) else ()
    return any(factor.fingerprint == fingerprint for part in parts for factor in _factors(part))


def _without(one: Number, factor: Number) -> Iterable[Number]:
    """A term as the sum of terms, by one of its factors."""
    others = list(_factors(one))
    others.remove(factor)
    rest = reduce(operator.mul, others, ONE)
    return filter(None, (part * rest for part in factor.split()))


def _apart(one: Number, least: float) -> tuple[Number, Number]:
    """It without a detail whose log2 is ``least`` at most, and that."""
    leading: list[Number] = [one]
    below: list[Number] = []
    while not below and (finest := max(leading, key=_gap_of)).gap:
        leading.remove(finest)
        for part in finest.split():
            (below if part.size <= least else leading).append(part)
    return total(leading), total(below)


def _gathered(terms: Iterable[Number]) -> list[Number]:
    """Terms without those that cancel as formulas, and twice one that is there twice."""
    found: dict[int, Number] = {}
    for one in terms:
        while one.fingerprint in found:
            one = found.pop(one.fingerprint) * _TWO
        if not found.pop(PRIME - one.fingerprint, None):
            found[one.fingerprint] = one
    return [*found.values()] if sum(found) % PRIME else []


def _leading(terms: Sequence[Number]) -> tuple[int, Any, bool]:
    """How many terms, the largest first, are not far below their sum; that; and whether it is known."""
    near, least = _near(), terms[0].size - _near()
    ball, size, count = terms[0].ball, terms[0].size, 1
    while count < len(terms) and terms[count].size > size - near:
        while count < len(terms) and terms[count].size > size - near:
            ball = ball + terms[count].ball
            count += 1
        size = _size(ball)
        if size < least or ball.contains(0):
            return count, ball, False
    return count, ball, True


def _summed(terms: Sequence[Number], leading: int, ball: Any) -> Number:
    """Their sum, of whose leading terms this is the ball."""
    size = _size(ball)
    for one in terms[leading:]:
        ball = ball + one.ball
    own = sum(one.fingerprint for one in terms) % PRIME
    if leading < len(terms):
        gap = size - terms[leading].size
    else:
        gap = max(one.gap and size - one.size + one.gap for one in terms)
    return _Sum(ball, own, size, gap, *terms) if gap > _near() else Number(ball, own, _size(ball))


def _near() -> float:
    """How many bits below a number something is a detail: nearer ones are among its digits."""
    return flint.ctx.prec / 2


def of_ball(ball: Any, fingerprint: int) -> Number:
    """One without details."""
    return Number(ball, fingerprint % PRIME, _size(ball)) if fingerprint or not ball.is_zero() else ZERO


@lru_cache(maxsize=1024)
def _inverse(of: int) -> int:
    return pow(of, -1, PRIME)


def rational(above: int, below: int = 1) -> Number:
    """above / below."""
    return of_ball(flint.arb(above) / below, above * _inverse(below) % PRIME)


def exactly(value: float) -> Number:
    """A float, exactly; infinite ones have no digits."""
    if not math.isfinite(value):
        return Number(flint.arb(value), 1, math.inf)
    above, below = value.as_integer_ratio()
    return of_ball(flint.arb(value), above * _inverse(below) % PRIME)


def numbers(values: Any) -> Array:
    """Those of an array of floats, exactly."""
    values = np.asarray(values, np.float64)
    out = np.empty(values.size, object)
    out[:] = [*map(exactly, values.ravel().tolist())]
    return out.reshape(values.shape)


def balls(values: Array) -> Array:
    """Those of an array of numbers."""
    return np.asarray(np.frompyfunc(lambda one: one.ball, 1, 1)(values))


def dot(left: Iterable[Number], right: Iterable[Number]) -> Number:
    """The sum of their products."""
    return total(a * b for a, b in zip(left, right, strict=True) if a and b)


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


def _series(x: Number, first: int, fingerprint: int) -> Number:
    """See ``_Series``; its fingerprint is what is left of an exponential's."""
    if not x:
        return x
    term = x.ball**first / math.factorial(first)
    found, last, bits = term, first, 0.0
    while bits < flint.ctx.prec:
        last, bits = last + 1, bits - x.size
        term = term * x.ball / last
        found = found + term
    found = found + flint.arb(0, abs(term).upper())  # twice what is left, and more
    return _Series(found, fingerprint % PRIME, _size(found), -x.size, x, first)


def _size(ball: Any) -> float:
    """log2 of it, of what it is at most where it may be 0."""
    if not ball.is_finite():
        return math.inf
    if ball.rel_accuracy_bits() < 1:
        ball = ball.abs_upper()
    digits, exponent = map(int, ball.mid().man_exp())
    return exponent + math.log2(abs(digits)) if digits else -math.inf


ZERO = Number(flint.arb(0), 0, -math.inf)
ONE, _TWO, _MINUS = (exactly(one) for one in (1.0, 2.0, -1.0))
