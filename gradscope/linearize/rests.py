"""What states have beside levels (see ``levels``), for programs that take steps along a trajectory.

The states are then ``Parted``, and what is done at one of them is done in such numbers, operation by
operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradscope.cells.cell import Cell
from gradscope.cells.units import Parameters
from gradscope.linearize.beside import Arithmetic, Parted, arithmetic_of, in_beside
from gradscope.linearize.levels import refined

# States (..., m), or these as Parted.
States = Any


def walked(
    take: Callable[[Any, Parted, Parted], tuple[Any, Parted]],
    parameters: Parameters,
    inputs: Any,
    states: Any,
    first: Parted,
) -> tuple[Any, Parted]:
    """What is found at every step, and the states after each with all that they have beside levels.

    take : (parameters, x, state before) -> (what is found, state after), all of them Parted of the kind of
    ``first``, the state (m,) before the steps; states : (T + 1, m).
    """
    kind = arithmetic_of(first.rest)
    weights = _parted(parameters, kind)

    def step(before: Parted, each: Any) -> tuple[Parted, tuple[Any, Parted]]:
        x, after = each
        found, made = take(weights, _parted(x, kind), before)
        left = refined(made, after)
        return left, (found, left)

    every: tuple[Any, Parted] = lax.scan(step, first, (inputs, states[1:]))[1]
    return every


def along(cell: Cell, parameters: Parameters, inputs: Any, states: Any, first: Parted) -> Parted:
    """States (T + 1, m) with all that they have beside levels, from the first (m,)."""

    def take(weights: Any, x: Parted, before: Parted) -> tuple[None, Parted]:
        return None, in_beside(cell.advance, weights, x, before)

    found = walked(take, parameters, inputs, states, first)[1]
    every: Parted = jax.tree.map(lambda one, later: jnp.concatenate([one[None], later]), first, found)
    return every


def before_each(states: States) -> States:
    """Those before each step, (T, m)."""
    return jax.tree.map(lambda part: part[:-1], states)


def nudged(states: States, factors: Any) -> States:
    """States times factors about 1: a level is as it is."""
    return states._replace(rest=states.rest * factors) if _is(states) else states * factors


def run_at(
    function: Callable[..., Any], parameters: Parameters, inputs: Any, states: States, *more: Any
) -> Any:
    """What a function of all these puts out, as arrays: run in the numbers that the states are made of."""
    if not _is(states):
        return function(parameters, inputs, states, *more)
    kind = arithmetic_of(states.rest)
    found = in_beside(function, *_parted((parameters, inputs), kind), states, *_parted(more, kind))
    return jax.tree.map(kind.total, found, is_leaf=_is)


def _parted(arrays: Any, kind: Arithmetic) -> Any:
    return jax.tree.map(lambda array: Parted(None, kind.of(jnp.asarray(array))), arrays)


def _is(value: Any) -> bool:
    return isinstance(value, Parted)
