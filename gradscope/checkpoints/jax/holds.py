"""Which operations of a program of JAX have another derivative than that of what they compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from gradscope.checkpoints.calls import rounding
from gradscope.checkpoints.jax.paths import bound
from gradscope.custom_types import Array

# Relative, by what two derivatives differ that are the same but for their rounding, in digits of their own.
_ROUNDINGS = 1e3
# Relative, by what a derivative and a difference quotient may differ as a whole, kinks included; the step of
# that, and draws, each of which has to differ.
_SLOPE, _STEP, _DRAWS = 0.02, 2.0**-7, 3
_KIND, _INNER = "custom_jvp_call", "call_jaxpr"
# Which move by steps, so that JAX's derivative is 0 however fine these are.
_STEPPED = {"ceil", "floor", "round"}


class Holds:
    """Finds ``stop_gradient``, a ``custom_vjp``, and a ``custom_jvp`` that is not its function's derivative.

    And rounding to steps, or to integers: fine ones change next to nothing but the gradient.

    JAX's own activations are functions with a ``custom_jvp`` too, of which that is the right one: both are
    taken at random numbers, once for each place in the code that makes one. Where the function itself holds
    something back the two may agree all the same: then how far it moves between two points tells whether that
    changes anything (the largest value that is taken off before exp does not).
    """

    def __init__(self) -> None:
        self._known: dict[Any, bool] = {}

    def within(self, jaxpr: Any) -> bool:
        """Whether a program has one."""
        return any(map(self.in_equation, jaxpr.eqns))

    def in_equation(self, equation: Any) -> bool:
        """Whether an operation is one, or has one in it."""
        name = equation.primitive.name
        if name.startswith(("stop_gradient", "custom_vjp")) or name in _STEPPED or _to_integers(equation):
            return True
        if name == _KIND:
            key = _place(equation)
            if key not in self._known:
                self._known[key] = _has_another(equation)
            return self._known[key]
        return any(map(self.within, _programs(equation)))


def _to_integers(equation: Any) -> bool:
    """Whether an operation makes integers of real numbers."""
    if equation.primitive.name != "convert_element_type":
        return False
    before, after = equation.invars[0].aval.dtype, equation.params["new_dtype"]
    return jax.numpy.issubdtype(before, np.floating) and jax.numpy.issubdtype(after, np.integer)


def _programs(equation: Any) -> Iterator[Any]:
    """Those within an operation."""
    params = [*equation.params.values()]
    for value in jax.tree.leaves(params, is_leaf=lambda one: hasattr(one, "eqns")):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner


def _place(equation: Any) -> tuple[Any, ...]:
    """What a function and its derivative are called, where they stand, and what they are given."""
    inner = equation.params[_INNER].jaxpr
    rule = getattr(equation.params["jvp_jaxpr_fun"], "debug_info", None)
    told = (getattr(one, "func_src_info", None) for one in (inner.debug_info, rule))
    return *told, str(inner), *(str(variable.aval) for variable in equation.invars)


def _has_another(equation: Any) -> bool:
    """Whether the rule of a custom_jvp is not the derivative of the function, at random numbers."""
    rng = np.random.default_rng(0)
    draws = [_Drawn(rng, [variable.aval for variable in equation.invars]) for _ in range(_DRAWS)]
    inner = jaxpr_as_fun(equation.params[_INNER])
    theirs, plain = (draws[0].derivative(function) for function in (bound(equation), inner))
    if not all(map(_are_same, theirs, plain)):
        return True
    if not Holds().within(equation.params[_INNER].jaxpr):
        return False
    return all(_moves_otherwise(one.derivative(inner), one.quotient(inner)) for one in draws)


class _Drawn:
    """Random numbers for a function, and a direction; avals : of its arguments."""

    def __init__(self, rng: np.random.Generator, avals: Sequence[Any]) -> None:
        self._given = [_drawn(rng, aval) for aval in avals]
        self._real = [k for k, one in enumerate(self._given) if np.issubdtype(one.dtype, np.floating)]
        self._at = [self._given[k] for k in self._real]
        self._along = [_drawn(rng, avals[k]) for k in self._real]

    def _run(self, function: Any, *moved: Any) -> Any:
        arguments = [*self._given]
        for k, one in zip(self._real, moved, strict=True):
            arguments[k] = one
        return function(*arguments)

    def derivative(self, function: Any) -> Any:
        """Of what a function puts out, along the direction."""
        return jax.jvp(partial(self._run, function), self._at, self._along)[1]

    def quotient(self, function: Any) -> list[Array]:
        """The same from two points of the function."""
        ahead, behind = (
            self._run(function, *(one + step * way for one, way in zip(self._at, self._along, strict=True)))
            for step in (_STEP, -_STEP)
        )
        return [
            (np.asarray(one, np.float64) - np.asarray(other, np.float64)) / (2 * _STEP)
            for one, other in zip(ahead, behind, strict=True)
        ]


def _moves_otherwise(derivative: Any, quotient: Sequence[Array]) -> bool:
    """Whether a derivative is not what a function moves by, as a whole."""
    for one, moved in zip(derivative, quotient, strict=True):
        if jax.numpy.issubdtype(one.dtype, jax.numpy.floating):
            allowed = _SLOPE + 2 * rounding(str(one.dtype)) / _STEP
            if np.linalg.norm(np.asarray(one, np.float64) - moved) > allowed * np.linalg.norm(moved):
                return True
    return False


def _drawn(rng: np.random.Generator, aval: Any) -> Any:
    numbers = rng.standard_normal(aval.shape) * 2
    return jax.numpy.asarray(numbers if jax.numpy.issubdtype(aval.dtype, np.floating) else 1, aval.dtype)


def _are_same(one: Any, other: Any) -> bool:
    if not jax.numpy.issubdtype(one.dtype, np.floating):
        return True
    unit = rounding(str(one.dtype))
    both = np.asarray(one, np.float64), np.asarray(other, np.float64)
    largest = max(np.abs(both[1]).max(initial=0), 1.0)
    return bool(np.allclose(*both, rtol=0, atol=_ROUNDINGS * unit * largest, equal_nan=True))
