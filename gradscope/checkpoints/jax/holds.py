"""Which operations of a program of JAX have another derivative than that of what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from gradscope.checkpoints.calls import rounding
from gradscope.checkpoints.jax.paths import bound

# Relative, by what two derivatives differ that are the same but for their rounding, in digits of their own.
_ROUNDINGS = 1e3
_KIND, _INNER = "custom_jvp_call", "call_jaxpr"


class Holds:
    """Finds ``stop_gradient``, a ``custom_vjp``, and a ``custom_jvp`` that is not its function's derivative.

    JAX's own activations are functions with a ``custom_jvp`` too, of which that is the right one: both are
    taken at random numbers, once for each place in the code that makes one.
    """

    def __init__(self) -> None:
        self._known: dict[Any, bool] = {}

    def within(self, jaxpr: Any) -> bool:
        """Whether a program has one."""
        return any(map(self.in_equation, jaxpr.eqns))

    def in_equation(self, equation: Any) -> bool:
        """Whether an operation is one, or has one in it."""
        name = equation.primitive.name
        if name.startswith(("stop_gradient", "custom_vjp")):
            return True
        if name == _KIND:
            key = _place(equation)
            if key not in self._known:
                self._known[key] = _has_another(equation)
            return self._known[key]
        return any(map(self.within, _programs(equation)))


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
    given = [_drawn(rng, variable.aval) for variable in equation.invars]
    real = [k for k, one in enumerate(given) if np.issubdtype(one.dtype, np.floating)]
    tangents = [_drawn(rng, equation.invars[k].aval) for k in real]

    def run(function: Any, *moved: Any) -> Any:
        arguments = [*given]
        for k, one in zip(real, moved, strict=True):
            arguments[k] = one
        return function(*arguments)

    inner = jaxpr_as_fun(equation.params[_INNER])
    theirs, plain = (
        jax.jvp(partial(run, function), [given[k] for k in real], tangents)[1]
        for function in (bound(equation), inner)
    )
    return not all(map(_are_same, theirs, plain))


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
