"""A program of JAX, run operation by operation in numbers of as many digits as are asked for (``digits``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradscope.custom_types import Array
from gradscope.linearize import digits
from gradscope.linearize.digits import QUESTIONS, RULES
from gradscope.linearize.system import precise
from gradscope.linearize.wide import ALIKE, CALLS, UnknownOperationError, run_by_jax
from gradscope.product_svd.scales import dot, exactly, numbers, total

_Maker = Callable[..., Any]


class DigitsProgram:
    """A function of pytrees of arrays of ``Number``, traced once.

    shapes : for its arguments, as ``jax.make_jaxpr`` takes them.
    """

    def __init__(self, function: Callable[..., Any], *shapes: Any) -> None:
        with precise("float64"):
            self._jaxpr, out = jax.make_jaxpr(function, return_shape=True)(*shapes)
        self._tree = jax.tree.structure(out)
        # What equations make of nothing that is given, and where those that move numbers take them from.
        self._fixed: dict[Any, Any] = {}
        self._places: dict[int, list[Array]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Raises UnknownOperationError and UnknownDigitsError."""
        with precise("float64"):
            leaves = jax.tree.leaves(arguments)
            return jax.tree.unflatten(self._tree, self._run(self._jaxpr.jaxpr, self._jaxpr.consts, leaves))

    @property
    def operations(self) -> int:
        """How many a call takes, about."""
        return _operations(self._jaxpr.jaxpr)

    def _run(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        known = dict(zip(jaxpr.constvars, map(_held, consts), strict=True))
        known |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            if hasattr(atom, "val"):
                return _held(atom.val)
            return known[atom] if atom in known else self._fixed[atom]

        for equation in jaxpr.eqns:
            if all(one in self._fixed for one in equation.outvars):
                continue
            made = self._made(equation, [*map(read, equation.invars)])
            given = any(not hasattr(atom, "val") and atom in known for atom in equation.invars)
            (known if given else self._fixed).update(zip(equation.outvars, made, strict=True))
        return [*map(read, jaxpr.outvars)]

    def _made(self, equation: Any, values: Sequence[Any]) -> Sequence[Any]:
        """What an operation makes of these."""
        name, params = equation.primitive.name, equation.params
        if inner := _inner(equation):
            return self._run(*inner, values)
        if not any(map(_is_real, values)):
            return [*map(_held, run_by_jax(equation, values))]
        if name == "select_n":
            return [_chosen(*values)]
        if name in ALIKE:
            return self._moved(equation, values)
        if name in _OF_ARRAYS:
            return [_OF_ARRAYS[name](*values, params)]
        if name in RULES:
            return [_each(RULES[name], *values)]
        if name in QUESTIONS:
            return [_each(QUESTIONS[name], *values).astype(bool)]
        raise UnknownOperationError(name)

    def _moved(self, equation: Any, values: Sequence[Any]) -> list[Any]:
        """What moves numbers about is run once, on their places."""
        if id(equation) not in self._places:
            starts = np.cumsum([0, *(one.size for one in values)])
            every = [
                jnp.arange(start, start + one.size).reshape(one.shape)
                for start, one in zip(starts, values, strict=False)
            ]
            self._places[id(equation)] = [*map(np.asarray, run_by_jax(equation, every))]
        pool = np.concatenate([one.ravel() for one in values])
        return [pool[places] for places in self._places[id(equation)]]


def _operations(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if inner := _inner(equation):
            total += _operations(inner[0])
        elif equation.primitive.name not in ALIKE:
            terms = 1
            if equation.primitive.name == "dot_general":
                (over, _), _ = equation.params["dimension_numbers"]
                terms = math.prod(equation.invars[0].aval.shape[k] for k in over)
            total += sum(terms * one.aval.size for one in equation.outvars)
    return total


def _inner(equation: Any) -> tuple[Any, Sequence[Any]] | None:
    """A program within this one, and its constants."""
    params = equation.params
    inner = next((params[key] for key in ("call_jaxpr", "jaxpr") if key in params), None)
    if equation.primitive.name not in CALLS or inner is None:
        return None
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())


def _is_real(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == object


def _held(value: Any) -> Any:
    """Numbers of what holds real ones; indices and conditions stay as they are."""
    if _is_real(value) or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return value
    return numbers(value)


def _each(rule: _Maker, *values: Any) -> Array:
    found = np.frompyfunc(rule, len(values), 1)(*values)
    return found if isinstance(found, np.ndarray) else _scalar(found)


def _scalar(value: Any) -> Array:
    out = np.empty((), object)
    out[()] = value
    return out


def _chosen(which: Any, *cases: Array) -> Array:
    which = np.broadcast_to(np.asarray(which).astype(int), cases[0].shape)
    found = cases[0]
    for number, case in enumerate(cases[1:], 1):
        found = np.where(which == number, case, found)
    return found


def _total(a: Array, params: Any) -> Array:
    return _reduced(total, a, params)


def _reduced(rule: _Maker, a: Array, params: Any) -> Array:
    """What a rule makes of the numbers along some axes."""
    axes = tuple(params["axes"])
    kept = [k for k in range(a.ndim) if k not in axes]
    rows = a.transpose(*kept, *axes).reshape(math.prod(a.shape[k] for k in kept), -1)
    out = np.empty(len(rows), object)
    out[:] = [*map(rule, rows.tolist())]
    return out.reshape([a.shape[k] for k in kept])


def _product(a: Array, b: Array, params: Any) -> Array:
    """dot_general, by numpy's of objects."""
    (over, others), (batch, batches) = params["dimension_numbers"]

    def arranged(one: Array, batch: Sequence[int], over: Sequence[int]) -> tuple[Array, tuple[int, ...]]:
        """(batch, rest, summed) and the sizes of the rest."""
        free = [k for k in range(one.ndim) if k not in (*batch, *over)]
        rest = tuple(one.shape[k] for k in free)
        lead = tuple(one.shape[k] for k in batch)
        count = int(np.prod([one.shape[k] for k in over], dtype=int))
        return one.transpose(*batch, *free, *over).reshape(*lead, -1, count), rest

    left, rows = arranged(a, batch, over)
    right, columns = arranged(b, batches, others)
    lead = left.shape[: len(batch)]
    count = math.prod(lead)
    every = [
        dot(row, column)
        for one, other in zip(
            left.reshape(count, -1, left.shape[-1]).tolist(),
            right.reshape(count, -1, left.shape[-1]).tolist(),
            strict=True,
        )
        for row in one
        for column in other
    ]
    out = np.empty(len(every), object)
    out[:] = every
    return out.reshape(*lead, *rows, *columns)


def _converted(a: Array, params: Any) -> Array:
    if not jnp.issubdtype(params["new_dtype"], jnp.floating):
        raise UnknownOperationError("convert_element_type")
    return a


_OF_ARRAYS: dict[str, Callable[..., Array]] = {
    "convert_element_type": _converted,
    "dot_general": _product,
    "integer_pow": lambda a, params: _each(lambda one: digits.power(one, params["y"]), a),
    "is_finite": lambda a, _: _each(lambda one: one.ball.is_finite(), a).astype(bool),
    "reduce_max": lambda a, params: _reduced(partial(reduce, digits.larger), a, params),
    "reduce_min": lambda a, params: _reduced(partial(reduce, digits.smaller), a, params),
    "reduce_sum": _total,
    "reduce_precision": lambda a, _: a,
    "round": lambda a, _: _each(lambda one: exactly(float(round(float(one)))), a),
}
