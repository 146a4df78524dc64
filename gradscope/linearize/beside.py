"""Numbers as what they are near and what they have beside it: 1 and -1e-40, of which a float has 1 alone.

A program of JAX is run in them operation by operation, in floats or in numbers of any exponent (``wide``).
Functions that level out say what is left beside their level; sums and products keep it, so that what 1 and
-1 leave of each other is right to the digits of a float. What has no rule here is done to the sum of both.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradscope.linearize import wide
from gradscope.linearize.wide import Unbounded

# What is no further from a level is told by what it has beside it; else it has its digits as it is.
NEAR = 2.0**-8


class Parted(NamedTuple):
    """whole + rest, arrays of one shape.

    whole : floats, None of what is near no level; rest : floats or Unbounded, None of a literal.
    """

    whole: Any
    rest: Any


class Arithmetic(NamedTuple):
    """What rests are made of: numbers of it from floats, floats of them, and what is done with them.

    do : (name of an operation of JAX, numbers) -> a number; where : as of arrays; made : what an equation of
    a program makes of values; totals : those that were asked for in a program, which is compiled for as long
    as it is.
    """

    of: Callable[[Any], Any]
    floats: Callable[[Any], Any]
    do: Callable[..., Any]
    where: Callable[[Any, Any, Any], Any]
    made: Callable[[Any, Sequence[Any]], Sequence[Any]]
    totals: dict[int, tuple[Parted, Any]]

    def total(self, a: Parted) -> Any:
        """The number itself."""
        if a.rest is None:
            return self.of(a.whole)
        if a.whole is None:
            return a.rest
        if id(a) not in self.totals:
            self.totals[id(a)] = a, self.do("add", self.of(a.whole), a.rest)
        return self.totals[id(a)][1]

    def rest(self, a: Parted) -> Any:
        """0 of a literal."""
        return self.of(jnp.zeros_like(a.whole)) if a.rest is None else a.rest

    def whole(self, a: Parted) -> Any:
        """0 of what is near no level."""
        return jnp.zeros_like(self.floats(a.rest)) if a.whole is None else a.whole

    def chosen(self, condition: Any, a: Parted, b: Parted) -> Parted:
        """As ``where`` of arrays."""
        whole = None
        if a.whole is not None or b.whole is not None:
            whole = jnp.where(condition, self.whole(a), self.whole(b))
        return Parted(whole, self.where(condition, self.rest(a), self.rest(b)))


_PLAIN: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "mul": operator.mul,
    "neg": operator.neg,
    "div": operator.truediv,
}
_FLOATS = Arithmetic(
    jnp.asarray,
    lambda numbers: numbers,
    lambda name, *values: _PLAIN.get(name, getattr(lax, name))(*values),
    jnp.where,
    wide.run_by_jax,
    {},
)
_UNBOUNDED = Arithmetic(
    wide.wide,
    wide.plain,
    lambda name, *values: wide.RULES[name](*values),
    wide.where,
    wide.made,
    {},
)


def arithmetic_of(rest: Any) -> Arithmetic:
    """What a rest is made of."""
    return (_UNBOUNDED if isinstance(rest, Unbounded) else _FLOATS)._replace(totals={})


def in_beside(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of pytrees of Parted, and of integers, puts out, each float of it Parted.

    Raises UnknownOperationError where numbers of any exponent have no rule for what it does.
    """
    leaves, tree = jax.tree.flatten(arguments, is_leaf=_is_beside)
    kind = arithmetic_of(next(leaf.rest for leaf in leaves if _is_beside(leaf)))
    shapes = [
        jax.eval_shape(lambda p: p, kind.floats(leaf.rest) if _is_beside(leaf) else leaf) for leaf in leaves
    ]
    traced, out = jax.make_jaxpr(lambda *some: function(*jax.tree.unflatten(tree, some)), return_shape=True)(
        *shapes
    )
    found = _run(kind, traced.jaxpr, traced.consts, leaves)
    return jax.tree.unflatten(jax.tree.structure(out), found)


def _is_beside(value: Any) -> bool:
    return isinstance(value, Parted)


def _run(kind: Arithmetic, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    def read(atom: Any) -> Any:
        return _literal(atom.val) if hasattr(atom, "val") else known[atom]

    known = dict(zip(jaxpr.constvars, map(_literal, consts), strict=True))
    known |= dict(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        known |= zip(equation.outvars, _made(kind, equation, [*map(read, equation.invars)]), strict=True)
    return [*map(read, jaxpr.outvars)]


def _literal(value: Any) -> Any:
    """The level that it is: the 1 of 1 - f, say. Indices and conditions stay as they are."""
    if _is_beside(value) or not _is_real(value):
        return value
    return Parted(jnp.asarray(value), None)


def _is_real(value: Any) -> bool:
    return isinstance(value, Unbounded) or jnp.issubdtype(jnp.result_type(value), jnp.floating)


def _made(kind: Arithmetic, equation: Any, values: Sequence[Any]) -> Sequence[Any]:
    """What an operation makes of these."""
    name, params = equation.primitive.name, equation.params
    inner = next((params[key] for key in ("call_jaxpr", "jaxpr") if key in params), None)
    if name in wide.CALLS and inner is not None:
        return _run(kind, getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values)
    if all(one.rest is None for one in values if _is_beside(one)):
        held = [one.whole if _is_beside(one) else one for one in values]
        return [*map(_literal, wide.run_by_jax(equation, held))]
    if name in wide.ALIKE or (
        name == "convert_element_type" and _is_real(jnp.zeros((), params["new_dtype"]))
    ):
        return _moved(kind, equation, values)
    if name in _RULES:
        return [_RULES[name](kind, *values, **({"params": params} if name in _WITH_PARAMS else {}))]
    found = kind.made(equation, [kind.total(one) if _is_beside(one) else one for one in values])
    return [Parted(None, one) if _is_real(one) else one for one in found]


def _moved(kind: Arithmetic, equation: Any, values: Sequence[Any]) -> Sequence[Any]:
    """What moves numbers about does so to both parts."""
    rests = kind.made(equation, [kind.rest(one) if _is_beside(one) else one for one in values])
    if all(one.whole is None for one in values if _is_beside(one)):
        return [Parted(None, rest) for rest in rests]
    wholes = wide.run_by_jax(equation, [kind.whole(one) if _is_beside(one) else one for one in values])
    return [*map(Parted, wholes, rests)]


def _plus(kind: Arithmetic, a: Parted, b: Parted) -> Parted:
    if a.rest is None or b.rest is None:
        one, literal = (b, a.whole) if a.rest is None else (a, b.whole)
        return Parted(kind.whole(one) + literal, one.rest)
    if a.whole is None or b.whole is None:
        return Parted(b.whole if a.whole is None else a.whole, kind.do("add", a.rest, b.rest))
    return Parted(a.whole + b.whole, kind.do("add", a.rest, b.rest))


def _negative(kind: Arithmetic, a: Parted) -> Parted:
    return Parted(None if a.whole is None else -a.whole, None if a.rest is None else kind.do("neg", a.rest))


def _minus(kind: Arithmetic, a: Parted, b: Parted) -> Parted:
    return _plus(kind, a, _negative(kind, b))


def _times(kind: Arithmetic, a: Parted, b: Parted) -> Parted:
    """The rest is (w + r) (v + s) less w v, of which every term is small where both are near levels."""
    if a.whole is None or b.whole is None:
        return Parted(None, kind.do("mul", kind.total(a), kind.total(b)))
    whole = a.whole * b.whole
    if a.rest is None or b.rest is None:
        one, literal = (b, a.whole) if a.rest is None else (a, b.whole)
        return Parted(whole, kind.do("mul", kind.of(literal), one.rest))
    crossed = kind.do("mul", kind.of(a.whole), b.rest)
    return Parted(whole, kind.do("add", crossed, kind.do("mul", a.rest, kind.total(b))))


def _over(kind: Arithmetic, a: Parted, b: Parted) -> Parted:
    """The level of a quotient is 1 or -1: a / (1 + |a|), 1 / (1 + exp(-a))."""
    below = kind.total(b)
    quotient = kind.do("div", kind.total(a), below)
    if b.whole is None or b.rest is None:
        return Parted(None, quotient)
    side = jnp.sign(kind.floats(quotient))
    left = kind.total(_minus(kind, a, _times(kind, Parted(side, None), b)))
    return _levelled(kind, side, kind.do("div", left, below), quotient)


def _levelled(kind: Arithmetic, side: Any, rest: Any, value: Any) -> Parted:
    """A value that is side + rest, told so where it is near that."""
    close = jnp.abs(kind.floats(rest)) < NEAR
    return Parted(jnp.where(close, side, 0.0), kind.where(close, rest, value))


def _tail(kind: Arithmetic, value: Any, times: float) -> tuple[Any, Any]:
    """The side of a value, and e / (1 + e) of e = exp(-times |value|)."""
    side = _sign(kind, value)
    small = kind.do("exp", kind.do("mul", value, kind.of(-times * side)))
    return side, kind.do("mul", small, kind.of(1.0 / (1.0 + kind.floats(small))))


def _tanh(kind: Arithmetic, a: Parted) -> Parted:
    value = kind.total(a)
    side, tail = _tail(kind, value, 2.0)
    return _levelled(kind, side, kind.do("mul", tail, kind.of(-2.0 * side)), kind.do("tanh", value))


def _sigmoid(kind: Arithmetic, a: Parted) -> Parted:
    value = kind.total(a)
    side, tail = _tail(kind, value, 1.0)
    above = kind.where(side > 0, kind.do("neg", tail), kind.of(-jnp.ones_like(side)))
    return _levelled(kind, jnp.ones_like(side), above, kind.do("logistic", value))


def _expm1(kind: Arithmetic, a: Parted) -> Parted:
    value = kind.total(a)
    return _levelled(kind, -jnp.ones_like(kind.floats(value)), kind.do("exp", value), kind.do("expm1", value))


def _sign(kind: Arithmetic, value: Any) -> Any:
    """That of a number, as a float."""
    return jnp.sign(value.p if isinstance(value, Unbounded) else value)


def _compared(compare: Callable[[Any, Any], Any]) -> Callable[[Arithmetic, Parted, Parted], Any]:
    def applied(kind: Arithmetic, a: Parted, b: Parted) -> Any:
        if a.whole is None and b.whole is None and not isinstance(a.rest, Unbounded):
            return compare(a.rest, b.rest)
        return compare(_sign(kind, kind.total(_minus(kind, a, b))), 0.0)

    return applied


def _largest(kind: Arithmetic, a: Parted, b: Parted) -> Parted:
    return kind.chosen(_RULES["lt"](kind, a, b), b, a)


def _smallest(kind: Arithmetic, a: Parted, b: Parted) -> Parted:
    return kind.chosen(_RULES["gt"](kind, a, b), b, a)


def _size(kind: Arithmetic, a: Parted) -> Parted:
    return kind.chosen(_sign(kind, kind.total(a)) < 0, _negative(kind, a), a)


def _power(kind: Arithmetic, a: Parted, params: Any) -> Parted:
    found, y = a, params["y"]
    for _ in range(abs(y) - 1):
        found = _times(kind, found, a)
    return _over(kind, Parted(jnp.ones(()), None), found) if y < 0 else found


def _sum(_: Arithmetic, a: Parted, params: Any) -> Parted:
    axes = tuple(params["axes"])
    whole = None if a.whole is None else a.whole.sum(axis=axes)
    unbounded = isinstance(a.rest, Unbounded)
    rest = wide.RULES["reduce_sum"](a.rest, params=params) if unbounded else a.rest.sum(axis=axes)
    return Parted(whole, rest)


_WITH_PARAMS = ("integer_pow", "reduce_sum")
_RULES: dict[str, Callable[..., Any]] = {
    "abs": _size,
    "add": _plus,
    "add_any": _plus,
    "clamp": lambda kind, low, a, high: _smallest(kind, _largest(kind, a, low), high),
    "div": _over,
    "eq": _compared(operator.eq),
    "expm1": _expm1,
    "ge": _compared(operator.ge),
    "gt": _compared(operator.gt),
    "integer_pow": _power,
    "le": _compared(operator.le),
    "logistic": _sigmoid,
    "lt": _compared(operator.lt),
    "max": _largest,
    "min": _smallest,
    "mul": _times,
    "ne": _compared(operator.ne),
    "neg": _negative,
    "reduce_sum": _sum,
    "sign": lambda kind, a: Parted(_sign(kind, kind.total(a)), None),
    "square": lambda kind, a: _times(kind, a, a),
    "stop_gradient": lambda _, a: a,
    "sub": _minus,
    "tanh": _tanh,
}
