"""A program of JAX, run operation by operation in numbers of as many digits as are asked for (``digits``)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from operator import itemgetter
from typing import Any, NamedTuple

import flint
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

    What its trace does twice, as derivatives do what the function does, is done once, and what nobody asks
    for not at all. shapes : for its arguments, as ``jax.make_jaxpr`` takes them.
    """

    def __init__(self, function: Callable[..., Any], *shapes: Any) -> None:
        with precise("float64"):
            traced, out = jax.make_jaxpr(function, return_shape=True)(*shapes)
        self._tree = jax.tree.structure(out)
        given = len(traced.jaxpr.invars)
        flat = _Flat(given)
        self._outs = flat.run(traced.jaxpr, traced.consts, range(given))
        self._constants, every = flat.constants, flat.asked_for(self._outs)
        self._once, self._each = flat.apart(every)
        # {bits: what is made of nothing that is given}; where operations that move numbers take them from.
        self._fixed: dict[int, dict[int, Any]] = {}
        self._places: dict[int, list[Array]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Raises UnknownOperationError and UnknownDigitsError."""
        with precise("float64"):
            known = dict(enumerate(jax.tree.leaves(arguments))) | self._made_once()
            self._run(self._each, known)
        return jax.tree.unflatten(self._tree, [known[out] for out in self._outs])

    @property
    def operations(self) -> int:
        """How many a call takes, about."""
        return sum(map(_operations, (one.equation for one in self._each)))

    def _made_once(self) -> dict[int, Any]:
        """In numbers of so many bits."""
        bits = flint.ctx.prec
        if bits not in self._fixed:
            self._fixed[bits] = {slot: _held(value) for slot, value in self._constants.items()}
            self._run(self._once, self._fixed[bits])
        return self._fixed[bits]

    def _run(self, operations: Sequence[_Operation], known: dict[int, Any]) -> None:
        for one in operations:
            made = self._made(one.equation, [known[slot] for slot in one.reads])
            known.update(zip(one.writes, made, strict=True))

    def _made(self, equation: Any, values: Sequence[Any]) -> Sequence[Any]:
        """What an operation makes of these."""
        name, params = equation.primitive.name, equation.params
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


class _Operation(NamedTuple):
    """One equation of a trace, and the slots of what it reads and writes."""

    equation: Any
    reads: tuple[int, ...]
    writes: tuple[int, ...]


class _Flat:
    """The operations of a trace with those of the programs within it, each once; slots are numbered.

    given : how many arguments there are, whose slots come first.
    """

    def __init__(self, given: int) -> None:
        self._slots = itertools.count(given)
        self._operations: list[_Operation] = []
        self._known: dict[Any, tuple[int, ...]] = {}
        self.constants: dict[int, Any] = {}

    def run(self, jaxpr: Any, consts: Sequence[Any], arguments: Iterable[int]) -> tuple[int, ...]:
        """The slots of what it puts out."""
        slots = dict(zip(jaxpr.constvars, map(self._constant, consts), strict=True))
        slots |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> int:
            return self._constant(atom.val) if hasattr(atom, "val") else slots[atom]

        for equation in jaxpr.eqns:
            reads, inner = tuple(map(read, equation.invars)), _inner(equation)
            writes = self.run(*inner, reads) if inner else self._written(equation, reads)
            slots |= dict(zip(equation.outvars, writes, strict=True))
        return tuple(map(read, jaxpr.outvars))

    def asked_for(self, outs: Iterable[int]) -> list[_Operation]:
        """Operations without which there were not these."""
        needed, found = set(outs), []
        for one in reversed(self._operations):
            if needed.intersection(one.writes):
                needed.update(one.reads)
                found.append(one)
        return found[::-1]

    def apart(self, operations: Iterable[_Operation]) -> tuple[list[_Operation], list[_Operation]]:
        """Those that are the same whatever is given, and the others."""
        fixed, once, each = set(self.constants), [], []
        for one in operations:
            if fixed.issuperset(one.reads):
                fixed.update(one.writes)
                once.append(one)
            else:
                each.append(one)
        return once, each

    def _constant(self, value: Any) -> int:
        array = np.asarray(value)
        return self._once(
            ("", array.dtype, array.shape, array.tobytes()), 1, lambda new: self._keep(new, value)
        )[0]

    def _keep(self, new: tuple[int, ...], value: Any) -> None:
        self.constants[new[0]] = value

    def _written(self, equation: Any, reads: tuple[int, ...]) -> tuple[int, ...]:
        key = (equation.primitive, tuple(sorted(equation.params.items(), key=itemgetter(0))), reads)
        return self._once(
            key,
            len(equation.outvars),
            lambda new: self._operations.append(_Operation(equation, reads, new)),
        )

    def _once(self, key: Any, count: int, make: Callable[[tuple[int, ...]], None]) -> tuple[int, ...]:
        """Slots of what is known by this key, or of what is made now."""
        try:
            if key in self._known:
                return self._known[key]
        except TypeError:  # parameters that have no hash
            key = object()
        new = tuple(itertools.islice(self._slots, count))
        make(new)
        self._known[key] = new
        return new


def _operations(equation: Any) -> int:
    if equation.primitive.name in ALIKE:
        return 0
    terms = 1
    if equation.primitive.name == "dot_general":
        (over, _), _ = equation.params["dimension_numbers"]
        terms = math.prod(equation.invars[0].aval.shape[k] for k in over)
    return sum(terms * one.aval.size for one in equation.outvars)


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
