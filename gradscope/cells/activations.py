"""Activation functions whose derivatives keep their digits where the unit saturates.

From the value, 1 - h^2 and s (1 - s) lose every digit that h and s share with 1; from the pre-activation
the same slopes are right to a few roundings, down to the smallest number of the dtype. What subtracts a
sigmoid from 1 takes ``complement`` in its place, for the same reason, and what subtracts a value from a state
that may be at the same level (``Levels``) takes both ``less`` it.

At a kink the slope is that of the left, as of PyTorch's relu at 0; of a flat piece beside it, 0.

A new one is a row in ``_FUNCTIONS``, of its value and its slope, and one in ``activated.ACTIVATIONS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from gradscope.cells.activated import name_and_numbers

Function = Callable[[Any], Any]

relu = jax.nn.relu  # its slope at 0 is 0, as in PyTorch


@jax.custom_jvp
def tanh(a: Any) -> Any:
    """Hyperbolic tangent; its slope is sech(a)^2."""
    return jnp.tanh(a)


@jax.custom_jvp
def sigmoid(a: Any) -> Any:
    """The logistic function s; its slope is s(a) s(-a)."""
    return jax.nn.sigmoid(a)


def _sech(a: Any) -> Any:
    e = jnp.exp(-jnp.abs(a))
    return 2.0 * e / (1.0 + e * e)


def _tanh_slope(a: Any) -> Any:
    sech = _sech(a)  # squared last: the exponential of 2 a ends sooner, where XLA takes tiny numbers as 0
    return sech * sech


def _sigmoid_slope(a: Any) -> Any:
    e = jnp.exp(-jnp.abs(a))
    return e / ((1.0 + e) * (1.0 + e))


tanh.defjvps(lambda tangent, _, a: _tanh_slope(a) * tangent)
sigmoid.defjvps(lambda tangent, _, a: _sigmoid_slope(a) * tangent)


@cache
def activation(name: str) -> Function:
    """The activation of this name (``activated.ACTIVATIONS``), one object for one name."""
    kind, parameters = name_and_numbers(name)
    if kind in _OWN:
        return _OWN[kind]
    value, slope = _FUNCTIONS[kind]

    @jax.custom_jvp
    def phi(a: Any) -> Any:
        return value(a, *parameters)

    phi.defjvps(lambda tangent, _, a: slope(a, *parameters) * tangent)
    return phi


@dataclass(frozen=True)
class Levels:
    """What phi is far out, where that is not 0; level 0 is none of ``values``, 1 their first and so on.

    tail : (a, level) -> phi(a) less that level, where level is none too if there is one alone.
    """

    values: tuple[float, ...] = ()
    tail: Callable[[Any, Any], Any] = lambda a, _: a

    def nearest(self, value: Any) -> Any:
        """The level that is near a value."""
        found = jnp.zeros(jnp.shape(value), jnp.int32)
        for k, known in enumerate(self.values, 1):
            found = jnp.where(jnp.abs(value - known) < 0.5 * abs(known), k, found)
        return found

    def value(self, level: Any) -> Any:
        """0 of none."""
        found: Any = 0.0  # which has no dtype of its own
        for k, known in enumerate(self.values, 1):
            found = jnp.where(level == k, known, found)
        return found


@cache
def levels(name: str) -> Levels:
    """Those of the activation of this name."""
    kind, parameters = name_and_numbers(name)
    return _LEVELS[kind](*parameters) if kind in _LEVELS else Levels()


@cache
def complement(name: str) -> Function:
    """1 - phi, without cancellation where that is what a gate that saturates leaves."""
    phi = activation(name)
    if 1.0 not in levels(name).values:
        return lambda a: 1.0 - phi(a)
    rest, level = less(name), 1 + levels(name).values.index(1.0)
    return lambda a: -rest(a, jnp.full(jnp.shape(a), level))


@cache
def less(name: str) -> Callable[[Any, Any], Any]:
    """phi(a) less the value of a level, without cancellation."""
    phi, known = activation(name), levels(name)
    if not known.values:
        return lambda a, _: phi(a)

    @jax.custom_jvp
    def rest(a: Any, level: Any) -> Any:
        return jnp.where(level == 0, phi(a), known.tail(a, level))

    rest.defjvps(lambda tangent, _, a, __: jax.jvp(phi, (a,), (tangent,))[1], None)
    return rest


def _tanh_levels(alpha: float = 1.0, beta: float = 1.0) -> Levels:
    """Of alpha tanh(beta a)."""

    def tail(a: Any, level: Any) -> Any:
        side = jnp.where(level == 1, 2.0, -2.0)
        return alpha * side * jax.nn.sigmoid(beta * side * a)

    return Levels((-alpha, alpha), tail)


def _softsign_levels() -> Levels:
    def tail(a: Any, level: Any) -> Any:
        side = jnp.where(level == 1, 1.0, -1.0)
        part = 1.0 / (1.0 + jnp.abs(a))
        return side * jnp.where(side * a < 0.0, part, 2.0 - part)

    return Levels((-1.0, 1.0), tail)


def _elu_levels(alpha: float, scale: float = 1.0, width: float = 1.0) -> Levels:
    """Of scale alpha (exp(a / width) - 1), below 0."""
    low = scale * alpha

    def tail(a: Any, _: Any) -> Any:
        return low * jnp.exp(jnp.minimum(a, 0.0) / width) + scale * jnp.maximum(a, 0.0)

    return Levels((-low,), tail) if low else Levels()


_OWN: dict[str, Function] = {"tanh": tanh, "sigmoid": sigmoid, "relu": relu, "linear": lambda a: a}


def _above(a: Any, edge: float, then: Any, otherwise: Any) -> Any:
    return jnp.where(a > edge, then, otherwise)


def _between(a: Any, low: float, high: float, then: Any) -> Any:
    return jnp.where((a > low) & (a < high), then, jnp.zeros_like(a))


def _celu(a: Any, alpha: float) -> Any:
    return _above(a, 0.0, a, alpha * jnp.expm1(jnp.minimum(a, 0.0) / alpha))


def _celu_slope(a: Any, alpha: float) -> Any:
    return _above(a, 0.0, jnp.ones_like(a), jnp.exp(a / alpha))


def _elu(a: Any, alpha: float) -> Any:
    return _above(a, 0.0, a, alpha * jnp.expm1(jnp.minimum(a, 0.0)))


def _elu_slope(a: Any, alpha: float) -> Any:
    return _above(a, 0.0, jnp.ones_like(a), alpha * jnp.exp(a))


# Klambauer et al. 2017 (arXiv 1706.02515).
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def _selu(a: Any) -> Any:
    return _SELU_SCALE * _elu(a, _SELU_ALPHA)


def _selu_slope(a: Any) -> Any:
    return _above(a, 0.0, jnp.full_like(a, _SELU_SCALE), _SELU_SCALE * _SELU_ALPHA * jnp.exp(a))


def _softplus(a: Any) -> Any:
    return jnp.maximum(a, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(a)))


def _silu_slope(a: Any) -> Any:
    return jax.nn.sigmoid(a) * (1.0 + a * jax.nn.sigmoid(-a))


def _normal(a: Any) -> Any:
    """The density of the standard normal distribution."""
    return jnp.exp(-0.5 * a * a) / math.sqrt(2.0 * math.pi)


def _cumulative(a: Any) -> Any:
    return 0.5 * jax.scipy.special.erfc(-a / math.sqrt(2.0))


def _gelu_slope(a: Any) -> Any:
    return _cumulative(a) + a * _normal(a)


# Hendrycks and Gimpel 2016 (arXiv 1606.08415): (1 + tanh u) / 2 is a sigmoid of 2 u.
_GELU, _CUBE = 2.0 * math.sqrt(2.0 / math.pi), 0.044715


def _gelu_tanh(a: Any) -> Any:
    return a * jax.nn.sigmoid(_GELU * a * (1.0 + _CUBE * a * a))


def _gelu_tanh_slope(a: Any) -> Any:
    u, inner = _GELU * a * (1.0 + _CUBE * a * a), _GELU * (1.0 + 3.0 * _CUBE * a * a)
    rest = 1.0 + a * inner * jax.nn.sigmoid(-u)
    half = jnp.exp(0.5 * jnp.minimum(u, 0.0))  # sigmoid(u) ends sooner than its product with the rest
    return half * (rest * half) / (1.0 + jnp.exp(-jnp.abs(u)))


def _mish_parts(a: Any) -> tuple[Any, Any]:
    """tanh(softplus(a)) and its derivative, from exp(-|a|)."""
    e = jnp.exp(-jnp.abs(a))
    low, high = e * (e + 2.0), 1.0 + 2.0 * e
    below, above = low + 2.0, high + 2.0 * e * e
    value = _above(a, 0.0, high / above, low / below)
    slope = 4.0 * e * (1.0 + e) * _above(a, 0.0, e / (above * above), 1.0 / (below * below))
    return value, slope


def _mish(a: Any) -> Any:
    return a * _mish_parts(a)[0]


def _mish_slope(a: Any) -> Any:
    value, slope = _mish_parts(a)
    return value + a * slope


def _hard_sigmoid(a: Any, alpha: float, beta: float) -> Any:
    return jnp.clip(alpha * a + beta, 0.0, 1.0)


def _hard_sigmoid_slope(a: Any, alpha: float, beta: float) -> Any:
    return _between(alpha * a + beta, 0.0, 1.0, jnp.full_like(a, alpha))


def _hard_silu(a: Any) -> Any:
    return a * jnp.clip(a + 3.0, 0.0, 6.0) / 6.0


def _hard_silu_slope(a: Any) -> Any:
    return _above(a, 3.0, jnp.ones_like(a), _above(a, -3.0, (2.0 * a + 3.0) / 6.0, jnp.zeros_like(a)))


def _root(a: Any, b: float) -> Any:
    return jnp.sqrt(a * a + b)


def _squareplus(a: Any, b: float) -> Any:
    root = _root(a, b)
    return 0.5 * _above(a, 0.0, root + a, b / (root - jnp.minimum(a, 0.0)))


def _softsign(a: Any) -> Any:
    return a / (1.0 + jnp.abs(a))


def _softsign_slope(a: Any) -> Any:
    part = 1.0 / (1.0 + jnp.abs(a))
    return part * part


def _shrunk(a: Any, edge: float) -> Any:
    """Where the shrinking ones are not zero."""
    return jnp.abs(a) > edge


def _sparse_plus(a: Any) -> Any:
    return _above(a, 1.0, a, 0.25 * jnp.maximum(a + 1.0, 0.0) ** 2)


_FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "affine": (lambda a, alpha, beta: alpha * a + beta, lambda a, alpha, beta: jnp.full_like(a, alpha)),
    "celu": (_celu, _celu_slope),
    "elu": (_elu, _elu_slope),
    "exponential": (jnp.exp, jnp.exp),
    "gelu": (lambda a: a * _cumulative(a), _gelu_slope),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_slope),
    "hard_shrink": (
        lambda a, edge: jnp.where(_shrunk(a, edge), a, 0.0),
        lambda a, edge: jnp.where(_shrunk(a, edge), jnp.ones_like(a), 0.0),
    ),
    "hard_sigmoid": (_hard_sigmoid, _hard_sigmoid_slope),
    "hard_silu": (_hard_silu, _hard_silu_slope),
    "hard_tanh": (lambda a: jnp.clip(a, -1.0, 1.0), lambda a: _between(a, -1.0, 1.0, jnp.ones_like(a))),
    "leaky_relu": (
        lambda a, alpha: _above(a, 0.0, a, alpha * a),
        lambda a, alpha: _above(a, 0.0, jnp.ones_like(a), jnp.full_like(a, alpha)),
    ),
    "log_sigmoid": (lambda a: -_softplus(-a), lambda a: jax.nn.sigmoid(-a)),
    "mish": (_mish, _mish_slope),
    "relu6": (lambda a: jnp.clip(a, 0.0, 6.0), lambda a: _between(a, 0.0, 6.0, jnp.ones_like(a))),
    "scaled_tanh": (
        lambda a, alpha, beta: alpha * jnp.tanh(beta * a),
        lambda a, alpha, beta: alpha * beta * _tanh_slope(beta * a),
    ),
    "selu": (_selu, _selu_slope),
    "silu": (lambda a: a * jax.nn.sigmoid(a), _silu_slope),
    "soft_shrink": (
        lambda a, edge: jnp.where(_shrunk(a, edge), a - edge * jnp.sign(a), 0.0),
        lambda a, edge: jnp.where(_shrunk(a, edge), jnp.ones_like(a), 0.0),
    ),
    "softplus": (_softplus, jax.nn.sigmoid),
    "softsign": (_softsign, _softsign_slope),
    "sparse_plus": (_sparse_plus, lambda a: jnp.clip(0.5 * (a + 1.0), 0.0, 1.0)),
    "sparse_sigmoid": (
        lambda a: jnp.clip(0.5 * (a + 1.0), 0.0, 1.0),
        lambda a: _between(a, -1.0, 1.0, jnp.full_like(a, 0.5)),
    ),
    "squareplus": (_squareplus, lambda a, b: _squareplus(a, b) / _root(a, b)),
    "tanh_shrink": (lambda a: a - jnp.tanh(a), lambda a: jnp.tanh(a) ** 2),
    "thresholded_relu": (
        lambda a, edge: _above(a, edge, a, jnp.zeros_like(a)),
        lambda a, edge: _above(a, edge, jnp.ones_like(a), jnp.zeros_like(a)),
    ),
}
_LEVELS: dict[str, Callable[..., Levels]] = {
    "celu": lambda alpha: _elu_levels(alpha, width=alpha),
    "elu": _elu_levels,
    "scaled_tanh": _tanh_levels,
    "selu": lambda: _elu_levels(_SELU_ALPHA, _SELU_SCALE),
    "sigmoid": lambda: Levels((1.0,), lambda a, _: -jax.nn.sigmoid(-a)),
    "softsign": _softsign_levels,
    "tanh": _tanh_levels,
}
