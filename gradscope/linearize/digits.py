"""What functions make of numbers of as many digits as are asked for (``product_svd.scales``).

Of 1 - 1e-1000 a ball of a hundred digits has 1 alone; as 1 and the ball of -1e-1000 it has all of them. Every
ball (python-flint's ``arb``) holds the number that it stands for: what it does not decide, a sign say, ends
with ``UnknownDigitsError``, and more digits may tell. How many there are is ``flint.ctx.prec``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flint

from gradscope.product_svd.scales import ONE, Number, exactly, of_ball, stand_in
from gradscope.product_svd.steps import UnknownDigitsError

_TWO = exactly(2.0)


def sign(a: Number) -> int:
    """-1, 0 or 1."""
    if not a:
        return 0
    ball = a.ball
    if ball > 0:
        return 1
    if ball < 0:
        return -1
    raise UnknownDigitsError


def _side(a: Number) -> int:
    """Of which sign it is about: what is said for one is right of the other too."""
    return -1 if a.ball.mid() < 0 else 1


def _tanh(a: Number) -> Number:
    """1 - 2 e / (1 + e), e = exp(-2 a), for a that is positive."""
    side = _side(a)
    e = (_TWO * (-a if side > 0 else a)).exp()
    beside = _TWO * e / (ONE + e)
    ball = a.ball
    found = ONE - beside
    if abs(ball) < 1:
        found = of_ball((side * ball).tanh(), found.fingerprint)
    return found if side > 0 else -found


def _sigmoid(a: Number) -> Number:
    """1 - e / (1 + e), e = exp(-a), for a that is positive."""
    side = _side(a)
    e = (-a if side > 0 else a).exp()
    beside = e / (ONE + e)
    return ONE - beside if side > 0 else beside


def _sqrt(a: Number) -> Number:
    return of_ball(a.ball.sqrt(), stand_in("sqrt", a.fingerprint)) if a else a


def _expm1(a: Number) -> Number:
    found = a.exp() - ONE
    ball = a.ball
    return of_ball(ball.expm1(), found.fingerprint) if abs(ball) < 1 else found


def _log(a: Number) -> Number:
    less = a - ONE
    ball = less.ball
    return of_ball(ball.log1p() if abs(ball) < 0.5 else a.ball.log(), stand_in("log", a.fingerprint))


def _erfc(a: Number) -> Number:
    """Of one that is positive; of others 2 less that."""
    side = _side(a)
    own = a if side > 0 else -a
    found = of_ball(own.ball.erfc(), stand_in("erfc", own.fingerprint))
    return found if side > 0 else _TWO - found


def _erf(a: Number) -> Number:
    side = _side(a)
    found = ONE - _erfc(a if side > 0 else -a)
    if abs(a.ball) < 1:
        found = of_ball((side * a.ball).erf(), found.fingerprint)
    return found if side > 0 else -found


def _of_ball(name: str, function: Callable[..., Any]) -> Callable[..., Number]:
    """Its stand-in is known again where the same is asked."""

    def rule(*given: Number) -> Number:
        own = stand_in(name, *(one.fingerprint for one in given))
        return of_ball(function(*(one.ball for one in given)), own)

    return rule


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
    "atan": _of_ball("atan", lambda ball: ball.atan()),
    "clamp": lambda low, a, high: smaller(larger(a, low), high),
    "cos": _of_ball("cos", lambda ball: ball.cos()),
    "cosh": _of_ball("cosh", lambda ball: ball.cosh()),
    "div": Number.__truediv__,
    "erf": _erf,
    "erfc": _erfc,
    "exp": Number.exp,
    "exp2": _of_ball("exp2", lambda ball: (ball * flint.arb.const_log2()).exp()),
    "expm1": _expm1,
    "log": _log,
    "log1p": lambda a: _log(ONE + a),
    "logistic": _sigmoid,
    "max": larger,
    "min": smaller,
    "mul": Number.__mul__,
    "neg": Number.__neg__,
    "pow": _of_ball("pow", lambda ball, by: ball**by),
    "rsqrt": lambda a: ONE / _sqrt(a),
    "sign": lambda a: exactly(float(sign(a))),
    "sin": _of_ball("sin", lambda ball: ball.sin()),
    "sinh": _of_ball("sinh", lambda ball: ball.sinh()),
    "sqrt": _sqrt,
    "square": lambda a: a * a,
    "stop_gradient": lambda a: a,
    "sub": Number.__sub__,
    "tan": _of_ball("tan", lambda ball: ball.tan()),
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
