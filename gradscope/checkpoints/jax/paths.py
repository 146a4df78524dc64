"""Derivatives of a step that JAX traces, by the matrix that the state goes through first; with all digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal

from gradscope.checkpoints.derivatives import DIRECT, OpaqueError

# Products of a matrix with what may depend on the state.
PRODUCTS = ("dot_general", "conv_general_dilated")
# What only holds a program of its own, which is walked through in its place.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr"}


@dataclass(frozen=True)
class _Value:
    """A number in the making.

    tangents : by path, as the state moves along one direction; none where it does not depend on the state.
    matrix : the matrix that it is made of, alone or with other parameters and constants; "" of none, None
        where it is not made of these alone.
    """

    primal: Any
    tangents: Mapping[str, Any] = field(default_factory=dict)
    matrix: str | None = ""


def derivative(
    step: Callable[..., Sequence[Any]],
    weights: Sequence[Any],
    names: Sequence[str],
    given: Sequence[Any],
    state: Sequence[Any],
) -> Callable[[Sequence[Any]], list[dict[str, Any]]]:
    """The derivative of ``step(weights, given, state)`` by the state: direction -> by path, of every output.

    Each value in the program has one tangent for every path. What a product with a matrix of the module makes
    of the tangent that has been through none is of that matrix from there on. names : of the weights that are
    matrices, "" of others. Raises OpaqueError where paths cannot be told apart.
    """
    closed = jax.make_jaxpr(lambda *all_: list(step(*all_)))(list(weights), list(given), list(state))
    own = [_Value(weight, matrix=name) for weight, name in zip(weights, names, strict=True)]
    read = [_Value(array, matrix=None) for array in given]

    def along(direction: Sequence[Any]) -> list[dict[str, Any]]:
        moved = [
            _Value(part, {DIRECT: tangent}, None) for part, tangent in zip(state, direction, strict=True)
        ]
        return [dict(value.tangents) for value in _walked(closed, [*own, *read, *moved])]

    return along


def _walked(closed: Any, values: Sequence[_Value]) -> list[_Value]:
    """What a program makes of values."""
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.constvars, map(_Value, closed.consts), strict=True))
    known |= dict(zip(jaxpr.invars, values, strict=True))

    def value(variable: Any) -> _Value:
        return _Value(variable.val) if isinstance(variable, Literal) else known[variable]

    for equation in jaxpr.eqns:
        made = _made(equation, [value(variable) for variable in equation.invars])
        known |= dict(zip(equation.outvars, made, strict=True))
    return [value(variable) for variable in jaxpr.outvars]


def _made(equation: Any, values: Sequence[_Value]) -> list[_Value]:
    """What one operation makes of values."""
    name, alone = equation.primitive.name, [value.matrix for value in values]
    if (inner := equation.params.get(_CALLS.get(name, ""))) is not None:
        closed = inner if hasattr(inner, "consts") else ClosedJaxpr(inner, ())
        return _walked(closed, values)
    matrix = None if None in alone else next(filter(None, alone), "")
    with_matrix = next(filter(None, alone), "")
    paths = dict.fromkeys(path for value in values for path in value.tangents)
    if paths and with_matrix and any("jaxpr" in part for part in equation.params):
        raise OpaqueError
    bind = bound(equation)
    primals = bind(*(value.primal for value in values))
    found: list[dict[str, Any]] = [{} for _ in primals]
    for path in paths:
        into = with_matrix if path == DIRECT and with_matrix and name in PRODUCTS else path
        for sums, tangent in zip(found, _tangents(name, bind, values, path), strict=True):
            if tangent is not None:
                sums[into] = sums[into] + tangent if into in sums else tangent
    return [_Value(primal, one, matrix) for primal, one in zip(primals, found, strict=True)]


def bound(equation: Any) -> Callable[..., Sequence[Any]]:
    """What an equation of a program does to its arguments."""
    given = equation.primitive.get_bind_params(equation.params)
    subfuns, params = given if isinstance(given, tuple) else ((), given)  # by the version of JAX

    def bind(*primals: Any) -> Sequence[Any]:
        made = equation.primitive.bind(*subfuns, *primals, **params)
        return tuple(made) if equation.primitive.multiple_results else (made,)

    return bind


def _tangents(
    name: str, bind: Callable[..., Sequence[Any]], values: Sequence[_Value], path: str
) -> Sequence[Any]:
    """How what an operation makes moves with its arguments along a path; None of what are no real numbers."""
    if name in _SLOPES:
        (value,) = values
        return (_SLOPES[name](value.primal) * value.tangents[path],)
    moving = [k for k, value in enumerate(values) if path in value.tangents]

    def of_those(*some: Any) -> Sequence[Any]:
        primals = [value.primal for value in values]
        for k, primal in zip(moving, some, strict=True):
            primals[k] = primal
        return bind(*primals)

    at = [values[k].primal for k in moving]
    made, tangents = jax.jvp(of_those, at, [values[k].tangents[path] for k in moving])
    real = [jax.numpy.issubdtype(primal.dtype, jax.numpy.floating) for primal in made]
    return [tangent if is_real else None for tangent, is_real in zip(tangents, real, strict=True)]


def _of_tanh(a: Any) -> Any:
    """Its slope sech^2, which 1 - tanh^2 has no digits of where the unit saturates."""
    other = jax.nn.sigmoid(-2 * abs(a))
    return 4 * other * (1 - other)


def _of_sigmoid(a: Any) -> Any:
    return jax.nn.sigmoid(a) * jax.nn.sigmoid(-a)


_SLOPES: dict[str, Callable[[Any], Any]] = {"tanh": _of_tanh, "logistic": _of_sigmoid}
