"""Numbers of float64's digits and any exponent, and programs of JAX that are run in them.

A number is p 2^e here, |p| from 1/2 to 1 and e an integer. A program is run operation by operation, as JAX
traces it; one of them that is not among those below ends it with ``UnknownOperationError``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# From 2^+-FAR on functions are what they tend to, and squares and cubes are still held.
FAR = 330
# The exponent of zero: below that of any product, and sums of a few are held.
_ZERO = -(2**60)
_LOST = 1100  # bits by which a term is smaller than another that hides it, at least
# Of a float64: bits of its mantissa, its largest exponent, and that of 1.
_MANTISSA, _EXPONENT, _BIAS = 52, 0x7FF, 1023
# From 2^this on exponentials are zero or infinite; ln 2 in two parts, the first of 32 bits.
_MOST = 44
_LN2 = (0.693147180369123816490, 1.90821492927058770002e-10)
# Where the tails of sigmoid and erfc are taken for them; the series of the latter has so many terms.
_TAIL, _GAUSSIAN_TAIL, _TERMS = 7, 5, 10


class Unbounded(NamedTuple):
    """p 2^e, arrays of one shape; e is int64."""

    p: Any
    e: Any


class UnknownOperationError(Exception):
    """An operation that has no rule here."""


def wide(numbers: Any) -> Unbounded:
    """Numbers of float64."""
    p, e = jnp.frexp(numbers)
    return Unbounded(p, jnp.where(p == 0, _ZERO, e.astype(jnp.int64)))


def plain(numbers: Unbounded) -> Any:
    """As float64, infinite beyond it."""
    return jnp.ldexp(numbers.p, _bits(numbers.e, -_LOST, _LOST))


def in_wide(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of pytrees of Unbounded, and of integers, puts out, each float of it Unbounded.

    Raises UnknownOperationError where it does what there is no rule for.
    """
    leaves, tree = jax.tree.flatten(arguments, is_leaf=_is_wide)
    shapes = [jax.eval_shape(lambda p: p, leaf.p if _is_wide(leaf) else leaf) for leaf in leaves]
    traced, out = jax.make_jaxpr(lambda *some: function(*jax.tree.unflatten(tree, some)), return_shape=True)(
        *shapes
    )
    return jax.tree.unflatten(jax.tree.structure(out), _run(traced.jaxpr, traced.consts, leaves))


def _is_wide(value: Any) -> bool:
    return isinstance(value, Unbounded)


def _of_any(value: Any) -> Any:
    """Unbounded of what holds real numbers; indices and conditions stay as they are."""
    real = not _is_wide(value) and jnp.issubdtype(jnp.result_type(value), jnp.floating)
    return wide(jnp.asarray(value, jnp.float64)) if real else value


def _run(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    known = dict(zip(jaxpr.constvars, map(_of_any, consts), strict=True))
    known |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return _of_any(atom.val) if hasattr(atom, "val") else known[atom]

    for equation in jaxpr.eqns:
        known |= zip(equation.outvars, made(equation, [*map(read, equation.invars)]), strict=True)
    return [*map(read, jaxpr.outvars)]


def made(equation: Any, values: Sequence[Any]) -> Sequence[Any]:
    """What an operation makes of these."""
    name, params = equation.primitive.name, equation.params
    inner = next((params[key] for key in ("call_jaxpr", "jaxpr") if key in params), None)
    if name in CALLS and inner is not None:
        return _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values)
    if not any(map(_is_wide, values)):
        return [_of_any(one) for one in run_by_jax(equation, values)]
    if name in ALIKE:
        parts = [
            run_by_jax(equation, [one[k] if _is_wide(one) else one for one in values])
            for k in range(len(Unbounded._fields))
        ]
        return [Unbounded(*one) for one in zip(*parts, strict=True)]
    if name not in RULES:
        raise UnknownOperationError(name)
    return [RULES[name](*values, **({"params": params} if name in _WITH_PARAMS else {}))]


def run_by_jax(equation: Any, values: Sequence[Any]) -> Sequence[Any]:
    """What an operation makes of JAX's own arrays."""
    made = equation.primitive.bind(*values, **equation.params)
    return made if equation.primitive.multiple_results else [made]


def _bits(e: Any, low: int, high: int) -> Any:
    return jnp.clip(e, low, high).astype(jnp.int32)


def _normal(p: Any, e: Any) -> Unbounded:
    """With |p| from 1/2 to 1, and the exponent of zero; of p that is as large as a normal float, or 0.

    As ``frexp``, in fewer operations: what is compiled is made of little else.
    """
    bits = lax.bitcast_convert_type(p, jnp.int64)
    more = (bits >> _MANTISSA) & _EXPONENT
    there = (more != 0) & (more != _EXPONENT)
    kept = bits & ~(_EXPONENT << _MANTISSA) | ((_BIAS - 1) << _MANTISSA)
    scaled = jnp.where(there, lax.bitcast_convert_type(kept, jnp.float64), p)
    return Unbounded(scaled, jnp.where(p == 0, _ZERO, e + jnp.where(there, more - (_BIAS - 1), 0)))


def _sum(terms: Unbounded) -> Unbounded:
    """Along the last axis, to float64's digits of the largest term."""
    top = terms.e.max(axis=-1, initial=_ZERO)
    return _normal(_shifted(terms.p, terms.e - top[..., None]).sum(axis=-1), top)


def plus(a: Unbounded, b: Unbounded) -> Unbounded:
    """The sum."""
    top = jnp.maximum(a.e, b.e)
    return _normal(_shifted(a.p, a.e - top) + _shifted(b.p, b.e - top), top)


def _shifted(p: Any, e: Any) -> Any:
    """p 2^e, e at most 0, and 0 where no normal float is that small: as ``ldexp``, in fewer operations."""
    held = jnp.where(e < 2 - _BIAS, -_BIAS, e)
    return p * lax.bitcast_convert_type((held + _BIAS) << _MANTISSA, jnp.float64)


def _negative(a: Unbounded) -> Unbounded:
    return Unbounded(-a.p, a.e)


def _times(a: Unbounded, b: Unbounded) -> Unbounded:
    return _normal(a.p * b.p, a.e + b.e)


def _over(a: Unbounded, b: Unbounded) -> Unbounded:
    return _normal(a.p / b.p, a.e - b.e)


def _difference(a: Unbounded, b: Unbounded) -> Any:
    """A number of the sign of a - b."""
    return plus(a, _negative(b)).p


def where(condition: Any, a: Unbounded, b: Unbounded) -> Unbounded:
    """As of arrays."""
    return Unbounded(jnp.where(condition, a.p, b.p), jnp.where(condition, a.e, b.e))


def _largest(a: Unbounded, b: Unbounded) -> Unbounded:
    return where(_difference(a, b) < 0, b, a)


def _smallest(a: Unbounded, b: Unbounded) -> Unbounded:
    return where(_difference(a, b) > 0, b, a)


def _power(a: Unbounded, params: Any) -> Unbounded:
    return _normal(lax.integer_pow(a.p, params["y"]), a.e * params["y"])


def _root(a: Unbounded) -> Unbounded:
    return _normal(jnp.sqrt(jnp.ldexp(a.p, (a.e & 1).astype(jnp.int32))), a.e >> 1)


def _logarithm(a: Unbounded) -> Unbounded:
    return wide(jnp.log(a.p) + a.e * math.log(2.0))


def _log1p(a: Unbounded) -> Unbounded:
    return where(a.e > FAR, _logarithm(a), _levelling(jnp.log1p)(a))


def _exponential(a: Unbounded) -> Unbounded:
    held = jnp.ldexp(a.p, _bits(a.e, -FAR, _MOST))
    power = jnp.round(held / math.log(2.0))
    value = _normal(jnp.exp(held - power * _LN2[0] - power * _LN2[1]), power.astype(jnp.int64))
    ends = where(a.p < 0, wide(jnp.zeros_like(a.p)), wide(jnp.full_like(a.p, jnp.inf)))
    return where(a.e > _MOST, ends, value)


def _expm1(a: Unbounded) -> Unbounded:
    return where((a.p > 0) & (a.e > _TAIL), _exponential(a), _levelling(jnp.expm1)(a))


def _sigmoid(a: Unbounded) -> Unbounded:
    return where((a.p < 0) & (a.e >= _TAIL), _exponential(a), _levelling(lax.logistic)(a))


def _erfc(a: Unbounded) -> Unbounded:
    """Far out by its asymptotic series, exp(-a^2) / (a sqrt(pi)) (1 - 1/(2 a^2) + 3/(2 a^2)^2 - ...)."""
    square = _times(a, a)
    small = 0.5 * plain(_over(wide(jnp.ones_like(a.p)), square))
    series = jnp.ones_like(a.p)
    for k in range(_TERMS, 0, -1):
        series = 1.0 - (2 * k - 1) * small * series
    tail = _over(_times(_exponential(_negative(square)), wide(series / math.sqrt(math.pi))), a)
    return where((a.p > 0) & (a.e >= _GAUSSIAN_TAIL), tail, _levelling(lax.erfc)(a))


def _levelling(function: Callable[[Any], Any]) -> Callable[[Unbounded], Unbounded]:
    """The rule of a function that is level far out, or infinite."""

    def applied(a: Unbounded) -> Unbounded:
        held = jnp.ldexp(a.p, _bits(a.e, -FAR, FAR))
        value, slope = jax.jvp(function, (held,), (jnp.ones_like(held),))
        # Near zero it is its tangent, if it leads through zero.
        tangent = (a.e < -FAR) & (function(jnp.zeros(())) == 0)
        return where(tangent, _times(wide(slope), a), wide(value))

    return applied


def _total(a: Unbounded, params: Any) -> Unbounded:
    axes = tuple(params["axes"])
    kept = [k for k in range(a.p.ndim) if k not in axes]
    shape = [a.p.shape[k] for k in kept]
    return _sum(Unbounded(*(part.transpose(*kept, *axes).reshape(*shape, -1) for part in a)))


def _product(a: Unbounded, b: Unbounded, params: Any) -> Unbounded:
    """dot_general: every term of it is held."""
    (over, others), (batch, batches) = params["dimension_numbers"]

    def axes(one: Unbounded, batch: Sequence[int], over: Sequence[int]) -> tuple[Unbounded, tuple[int, ...]]:
        """Axes of the batch, one of the rest, one of those that are summed; and the sizes of the rest."""
        free = [k for k in range(one.p.ndim) if k not in (*batch, *over)]
        lead, rest = [one.p.shape[k] for k in batch], tuple(one.p.shape[k] for k in free)
        inner = math.prod(one.p.shape[k] for k in over)
        shape = (*lead, math.prod(rest), inner)
        return Unbounded(*(part.transpose(*batch, *free, *over).reshape(shape) for part in one)), rest

    left, rows = axes(a, batch, over)
    right, columns = axes(b, batches, others)
    left, right = (
        Unbounded(*(jnp.expand_dims(part, axis) for part in one)) for one, axis in ((left, -2), (right, -3))
    )
    total = _sum(_times(left, right))
    lead = [a.p.shape[k] for k in batch]
    return Unbounded(*(part.reshape(*lead, *rows, *columns) for part in total))


def _converted(a: Unbounded, params: Any) -> Unbounded:
    if not jnp.issubdtype(params["new_dtype"], jnp.floating):
        raise UnknownOperationError("convert_element_type")
    return a


# Programs within programs, and what moves numbers about.
CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "remat",
    "checkpoint",
)
ALIKE = (
    "broadcast_in_dim",
    "concatenate",
    "copy",
    "copy_p",
    "expand_dims",
    "pad",
    "reshape",
    "rev",
    "select_n",
    "slice",
    "split",
    "squeeze",
    "stack",
    "transpose",
    "unstack",
)
_WITH_PARAMS = ("convert_element_type", "dot_general", "integer_pow", "reduce_sum")
RULES: dict[str, Callable[..., Any]] = {
    "abs": lambda a: Unbounded(abs(a.p), a.e),
    "add": plus,
    "add_any": plus,
    "clamp": lambda low, a, high: _smallest(_largest(a, low), high),
    "convert_element_type": _converted,
    "div": _over,
    "dot_general": _product,
    "eq": lambda a, b: _difference(a, b) == 0,
    "erf": _levelling(lax.erf),
    "erfc": _erfc,
    "exp": _exponential,
    "expm1": _expm1,
    "ge": lambda a, b: _difference(a, b) >= 0,
    "gt": lambda a, b: _difference(a, b) > 0,
    "integer_pow": _power,
    "le": lambda a, b: _difference(a, b) <= 0,
    "log": _logarithm,
    "log1p": _log1p,
    "logistic": _sigmoid,
    "lt": lambda a, b: _difference(a, b) < 0,
    "max": _largest,
    "min": _smallest,
    "mul": _times,
    "ne": lambda a, b: _difference(a, b) != 0,
    "neg": _negative,
    "reduce_sum": _total,
    "rsqrt": lambda a: _over(wide(jnp.ones_like(a.p)), _root(a)),
    "sign": lambda a: wide(jnp.sign(a.p)),
    "sqrt": _root,
    "square": lambda a: _times(a, a),
    "stop_gradient": lambda a: a,
    "sub": lambda a, b: plus(a, _negative(b)),
    "tanh": _levelling(jnp.tanh),
}
