"""Numbers of as many digits as are asked for: a rational, exactly, and a ball beside it.

Of 1 - 1e-1000 a ball of a hundred digits has 1 alone; as 1 and the ball of -1e-1000 it has all of them. Every
ball (python-flint's ``arb``) holds the number that it stands for: what it does not decide, a sign say, ends
with ``UnknownDigitsError``, and more digits may tell. How many there are is ``flint.ctx.prec``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flint
import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.steps import UnknownDigitsError

# What is no further from a level is told by what it has beside it, as of ``beside``.
NEAR = 2.0**-8
# Bits of a rational from which on it is part of the ball.
_LONG = 512


class Number:
    """whole + rest: an int or a fraction (flint.fmpq), and a ball, None of what is no more than ``whole``."""

    __slots__ = ("rest", "whole")

    def __init__(self, whole: Any, rest: Any = None) -> None:
        self.whole, self.rest = whole, rest

    @property
    def ball(self) -> Any:
        """All of it."""
        if self.rest is None:
            return flint.arb(self.whole)
        return self.whole + self.rest if self.whole else self.rest

    def __float__(self) -> float:
        return float(self.ball.mid())

    def __neg__(self) -> Number:
        return Number(-self.whole, None if self.rest is None else -self.rest)

    def __add__(self, other: Number) -> Number:
        whole = self.whole + other.whole
        if self.rest is None:
            return Number(whole, other.rest)
        return Number(whole, self.rest if other.rest is None else self.rest + other.rest)

    def __sub__(self, other: Number) -> Number:
        return self + -other

    def __mul__(self, other: Number) -> Number:
        """The rest is (w + r) (v + s) less w v, of which every term is small where both are near levels."""
        w, r, v, s = self.whole, self.rest, other.whole, other.rest
        if r is None and s is None:
            return _short(w * v)
        if not (w and v):
            if (r is None and not w) or (s is None and not v):
                return ZERO
            return Number(0, self.ball * other.ball)
        if r is None or s is None:
            return _short(w * v, w * s if r is None else r * v)
        return _short(w * v, w * s + r * (v + s))

    def __truediv__(self, other: Number) -> Number:
        """The level of a quotient is 1 or -1: a / (1 + |a|), 1 / (1 + exp(-a))."""
        if self.rest is None and not self.whole:
            return ZERO
        below = other.ball
        quotient = self.ball / below
        if not other.whole or other.rest is None:
            return Number(0, quotient)
        side = -1 if quotient < 0 else 1
        left = self - (other if side > 0 else -other)
        return levelled(side, left.ball / below, quotient)


ZERO = Number(0)
ONE = Number(1)


def levelled(side: Any, rest: Any, value: Any) -> Number:
    """A value that is side + rest, told so where it is near that."""
    return Number(side, rest) if abs(float(rest.mid())) < NEAR else Number(0, value)


def _short(whole: Any, rest: Any = None) -> Number:
    """With a rational that is long in the ball."""
    if isinstance(whole, flint.fmpq) and int(whole.height_bits()) > _LONG:
        return Number(0, Number(whole, rest).ball)
    return Number(whole, rest)


def at_level(value: float, rest: float = 0.0) -> Number:
    """A float that others may be near, and what is beside it; both exactly."""
    if not math.isfinite(value):
        return Number(0, flint.arb(value))
    whole, below = value.as_integer_ratio()
    exact = whole if below == 1 else flint.fmpq(whole, below)
    return Number(exact, flint.arb(rest) if rest else None)


def exact_number(value: float) -> Number:
    """A float, exactly, near nothing."""
    return Number(0, flint.arb(value)) if value else ZERO


def at_levels(values: Any, rests: Any = 0.0) -> Array:
    """Those of arrays."""
    return _filled(at_level, values, rests)


def exact_numbers(values: Any) -> Array:
    """Those of an array, near nothing."""
    return _filled(exact_number, values)


def _filled(make: Callable[..., Number], *values: Any) -> Array:
    every = np.broadcast_arrays(*(np.asarray(one, np.float64) for one in values))
    out = np.empty(every[0].size, object)
    out[:] = [make(*each) for each in zip(*(one.ravel().tolist() for one in every), strict=True)]
    return out.reshape(every[0].shape)


def sign(a: Number) -> int:
    """-1, 0 or 1."""
    if a.rest is None:
        return int(a.whole > 0) - int(a.whole < 0)
    ball = a.ball
    if ball > 0:
        return 1
    if ball < 0:
        return -1
    raise UnknownDigitsError


def _tanh(a: Number) -> Number:
    ball = a.ball
    if abs(float(ball.mid())) < 1:
        return ZERO if a.rest is None and not a.whole else Number(0, ball.tanh())
    side = 1 if ball > 0 else -1
    return Number(side, -2 * side / (1 + (2 * side * ball).exp()))


def _sigmoid(a: Number) -> Number:
    ball = a.ball
    return Number(1, -1 / (1 + ball.exp())) if float(ball.mid()) > 0 else Number(0, 1 / (1 + (-ball).exp()))


def _exp(a: Number) -> Number:
    ball = a.ball
    return Number(1, ball.expm1()) if abs(float(ball.mid())) < NEAR else Number(0, ball.exp())


def _expm1(a: Number) -> Number:
    ball = a.ball
    return Number(-1, ball.exp()) if float(ball.mid()) < -1 else Number(0, ball.expm1())


def _log(a: Number) -> Number:
    near_one = a.whole == 1 and a.rest is not None
    return Number(0, a.rest.log1p() if near_one else a.ball.log())


def _erf(a: Number) -> Number:
    ball = a.ball
    if abs(float(ball.mid())) < 1:
        return Number(0, ball.erf())
    side = 1 if ball > 0 else -1
    return Number(side, -side * (side * ball).erfc())


def _erfc(a: Number) -> Number:
    ball = a.ball
    return Number(2, -(-ball).erfc()) if float(ball.mid()) < -1 else Number(0, ball.erfc())


def _of_ball(function: Callable[[Any], Any]) -> Callable[[Number], Number]:
    return lambda a: Number(0, function(a.ball))


def power(a: Number, exponent: int) -> Number:
    """By an integer."""
    found = ONE
    for _ in range(abs(exponent)):
        found = found * a
    return ONE / found if exponent < 0 else found


def larger(a: Number, b: Number) -> Number:
    """Of two."""
    return b if sign(a - b) < 0 else a


def smaller(a: Number, b: Number) -> Number:
    """Of two."""
    return b if sign(a - b) > 0 else a


# What is done with one number, or two, to another, by the names of JAX.
RULES: dict[str, Callable[..., Number]] = {
    "abs": lambda a: -a if sign(a) < 0 else a,
    "add": Number.__add__,
    "add_any": Number.__add__,
    "atan": _of_ball(lambda ball: ball.atan()),
    "clamp": lambda low, a, high: smaller(larger(a, low), high),
    "cos": _of_ball(lambda ball: ball.cos()),
    "cosh": _of_ball(lambda ball: ball.cosh()),
    "div": Number.__truediv__,
    "erf": _erf,
    "erfc": _erfc,
    "exp": _exp,
    "exp2": _of_ball(lambda ball: (ball * flint.arb.const_log2()).exp()),
    "expm1": _expm1,
    "log": _log,
    "log1p": lambda a: _log(ONE + a),
    "logistic": _sigmoid,
    "max": larger,
    "min": smaller,
    "mul": Number.__mul__,
    "neg": Number.__neg__,
    "pow": lambda a, b: Number(0, a.ball**b.ball),
    "rsqrt": _of_ball(lambda ball: ball.rsqrt()),
    "sign": lambda a: Number(sign(a)),
    "sin": _of_ball(lambda ball: ball.sin()),
    "sinh": _of_ball(lambda ball: ball.sinh()),
    "sqrt": lambda a: ZERO if a.rest is None and not a.whole else Number(0, a.ball.sqrt()),
    "square": lambda a: a * a,
    "stop_gradient": lambda a: a,
    "sub": Number.__sub__,
    "tan": _of_ball(lambda ball: ball.tan()),
    "tanh": _tanh,
}
# What is asked of two numbers.
QUESTIONS: dict[str, Callable[[Number, Number], bool]] = {
    "eq": lambda a, b: sign(a - b) == 0,
    "ge": lambda a, b: sign(a - b) >= 0,
    "gt": lambda a, b: sign(a - b) > 0,
    "le": lambda a, b: sign(a - b) <= 0,
    "lt": lambda a, b: sign(a - b) < 0,
    "ne": lambda a, b: sign(a - b) != 0,
}
