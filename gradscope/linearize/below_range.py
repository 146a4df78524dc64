"""Slopes that float64, or another dtype, takes as 0 and that are not: those of saturated units.

They are computed anew along the states that are there, in numbers of any exponent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from gradscope.cells.cell import Cell
from gradscope.cells.factors import own
from gradscope.cells.notation import is_recurrent, key
from gradscope.cells.units import Parameters
from gradscope.custom_types import Array
from gradscope.linearize.anew import given, in_float64, layers_along, read_by_others, slopes_anew
from gradscope.linearize.levels import Last
from gradscope.linearize.system import System, precise
from gradscope.linearize.trajectory import states_of
from gradscope.linearize.wide import UnknownOperationError
from gradscope.product_svd.extended_range_array import NOTHING, Wide

# Operations whose slopes fall as exponentials do, and those whose fall as these of squares.
_FALL = {"exp", "exp2", "expm1", "logistic", "tanh", "log1p", "erf", "erfc"}
_FALL_FASTER = {"erf", "erfc"}
# Pre-activations up to this leave slopes to every dtype: of products of three of them, and of squares.
_HELD, _HELD_BY_FASTER = 0.2, 0.03
# exp(-a) is right to a roundings of a: beyond this exponent not to five digits, and it counts as 0.
_FARTHEST = -(2**36)


def far_paths(
    cell: Cell,
    parameters: Mapping[str, Array],
    inputs: Array,
    states: Array,
    first: Last,
    paths: Mapping[str, Any],
) -> tuple[dict[str, Any] | None, bool, Last]:
    """What ``linearize`` returned as ``paths``, as ``Wide``, where its dtype takes some as 0 that are not.

    inputs : (T, d); states : (T + 1, m); first : see ``slopes_anew``; paths : as found in the dtype of the
    states. None where it holds them, and of a cell that does what ``wide`` has no rule for; then second
    False, for all are not held, as where some have no digits in numbers of any exponent either. Third the
    rest of the last state, where it was computed.
    """
    if given(cell):
        return None, False, None
    tiny = np.finfo(states.dtype).tiny
    leaves = jax.tree.leaves(paths)
    if not any((np.abs(leaf) < tiny).any() for leaf in leaves):
        return None, True, None
    if not may_fall(cell, parameters, inputs, states):
        return None, True, None
    between = read_by_others(cell, paths)
    try:
        found, last = slopes_anew(cell, parameters, inputs, states, first, between, unbounded=True)
    except UnknownOperationError:
        return None, False, None
    kept = jax.tree.map(lambda path, _: path, found, paths, is_leaf=partial(_is, Wide))
    held = all((one.exponent[one.mantissa != 0] >= _FARTHEST).all() for one in _leaves(kept))
    if any((one.mantissa == 0).any() for one in _leaves(kept)):  # these may be smaller still
        held = held and not _any_layer(_may_vanish, cell, parameters, inputs, states)
    kept = jax.tree.map(_with_digits, kept, is_leaf=partial(_is, Wide))
    lost = any(
        ((one.mantissa != 0) & (np.abs(leaf) < tiny)).any()
        for one, leaf in zip(_leaves(kept), leaves, strict=True)
    )
    return kept if lost else None, held, last


def may_fall(cell: Cell, parameters: Mapping[str, Array], inputs: Array, states: Array) -> bool:
    """Whether slopes may be smaller than the states' dtype holds without being 0, as those of relu are."""
    if given(cell):
        return False
    return _any_layer(partial(_may_fall, dtype=states.dtype), cell, parameters, inputs, states)


def _any_layer(
    of_one: Callable[..., bool], cell: Cell, parameters: Mapping[str, Array], inputs: Array, states: Array
) -> bool:
    with precise("float64"):
        return any(of_one(*one) for one in layers_along(cell, *in_float64(parameters, inputs, states)))


def falls(system: System, device: jax.Device) -> bool:
    """Whether they may be that along any sequence."""
    every = zip(
        system.inputs, states_of(system, [device]), map(system.length, range(system.batch)), strict=True
    )
    return any(may_fall(system.cell, system.parameters, x[:n], s[: n + 1]) for x, s, n in every)


def _leaves(tree: Any) -> list[Wide]:
    leaves: list[Wide] = jax.tree.leaves(tree, is_leaf=partial(_is, Wide))
    return leaves


def _with_digits(numbers: Wide) -> Wide:
    """These with 0 in place of those that have no digits."""
    there = numbers.exponent >= _FARTHEST
    return Wide(np.where(there, numbers.mantissa, 0.0), np.where(there, numbers.exponent, NOTHING))


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind)


def _may_fall(cell: Cell, parameters: Parameters, inputs: Array, states: Array, dtype: Any) -> bool:
    """Of one layer."""
    most, drive = -math.log(np.finfo(dtype).tiny), _drive(cell, parameters, inputs, states)
    if not drive > _HELD_BY_FASTER * most:  # not <=, or NaN passes
        return False
    known = _operations(cell, _shapes(parameters), inputs.shape[1], states.shape[1])
    return bool(known & _FALL) and (drive > _HELD * most or bool(known & _FALL_FASTER))


def _may_vanish(cell: Cell, parameters: Parameters, inputs: Array, states: Array) -> bool:
    """Whether slopes of one layer may be so small that no exponent here holds them."""
    known = _operations(cell, _shapes(parameters), inputs.shape[1], states.shape[1])
    faster = 2 if known & _FALL_FASTER else 1
    drive = _drive(cell, parameters, inputs, states)
    return bool(known & _FALL) and not drive <= (-_FARTHEST) ** (1 / faster)  # not >, or NaN passes


def _shapes(parameters: Parameters) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, np.shape(value)) for name, value in parameters.items())


@cache
def _operations(
    cell: Cell, shapes: tuple[tuple[str, tuple[int, ...]], ...], features: int, size: int
) -> frozenset[str]:
    """Names of what a step does."""
    number = partial(jax.ShapeDtypeStruct, dtype="float64")
    given = {name: number(shape) for name, shape in shapes}
    traced = jax.make_jaxpr(cell.advance)(given, number((features,)), number((size,)))
    return frozenset(_primitives(traced.jaxpr))


def _primitives(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                    yield from _primitives(inner)


def _drive(cell: Cell, parameters: Parameters, inputs: Array, states: Array) -> float:
    """A bound on the pre-activations and the states of all steps."""
    before, largest = states[:-1], float(np.abs(states).max())
    gates = [name.removeprefix("R").removeprefix("_") for name in parameters if is_recurrent(name)]
    if not gates:  # of a user's own cell
        most = max(1.0, largest, float(np.abs(inputs).max(initial=0)))
        return most * sum(
            float(np.abs(p).sum(axis=-1).max(initial=0)) for p in map(np.atleast_1d, own(parameters).values())
        )
    for gate in gates:
        w, r, b = (np.asarray(parameters.get(key(kind, gate), 0.0), np.float64) for kind in "WRb")
        h = before[:, -r.shape[1] :] if cell.components[-1] == "h" else before[:, : r.shape[1]]
        with np.errstate(over="ignore"):
            # A cell with masks reads them after its inputs; some multiply h, each of its numbers by its own.
            own_inputs, masks = np.hsplit(inputs, [w.shape[1]]) if w.ndim == 2 else (inputs, inputs[:, :0])
            entering = np.abs(own_inputs @ w.T) if w.ndim == 2 else np.abs(w)
            back = np.abs(h) @ np.abs(r.T) * np.abs(masks).max() if masks.size else np.abs(h @ r.T)
            largest = max(largest, float((entering + back).max() + np.abs(b).max()))
    return largest
