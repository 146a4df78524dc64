"""Simple recurrent networks whose states leave float64: run in numbers of its digits and any exponent.

What such a network's Jacobians need are the slopes at its pre-activations, and of a function that grows these
are constants far out: 1 or 0 of a relu. A number is p 2^e here, |p| from 1/2 to 1 and e an integer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradscope.cells.cell import Cell
from gradscope.cells.given_slopes import given_slopes, is_elman
from gradscope.cells.stack import extents_of, stacked
from gradscope.cells.units import Parameters
from gradscope.custom_types import Array
from gradscope.linearize.system import System, cast, precise

# From 2^+-FAR on a function is its tangent there, to the last digit, and squares and cubes are still held.
_FAR = 330
# Slopes that far out below which it is level: of some that approach a level they are powers of 1/a.
_LEVEL = 2.0**-100
# The exponent of zero: below that of any product.
_ZERO = -(2**30)
_LOST = 1100  # bits by which a term is smaller than another that hides it, at least

# Numbers p and exponents e of the same shape.
Wide = tuple[Any, Any]


@dataclass(frozen=True)
class Along:
    """A system that reads the slopes of one that leaves its dtype.

    Its Jacobians are that one's; its states are infinite where they are beyond the dtype.
    reached : (B,) log10 of the largest state.
    """

    system: System
    reached: Array


def with_slopes(system: System) -> Along | None:
    """The slopes of a simple recurrent network along its states; None of units of another kind.

    None of a function too that itself leaves float64, an exponential.
    """
    if system.cell.members:
        return _of_stack(system)
    ran = _run(system.cell, system.parameters, system.inputs, system.state, system.dtype)
    if ran is None:
        return None
    cell, inputs = given_slopes(system.cell, system.input_size), _beside(system.inputs, ran.slopes)
    return Along(replace(system, cell=cell, inputs=inputs, states=ran.states), ran.reached)


def _of_stack(system: System) -> Along | None:
    """The same of a stack, of those of its layers that leave it; the others are as they were."""
    assert system.states is not None
    states, inputs, members = system.states.copy(), system.inputs, []
    put_out: dict[int, Array] = {}
    reached = np.zeros(system.batch)
    for j, (member, own) in enumerate(zip(system.cell.members, extents_of(system.cell.members), strict=True)):
        if not np.isfinite(states[:, :, own]).all():
            with precise("float64"):
                read = np.asarray(member.input(system.inputs, put_out))
            ran = _run(member.cell, member.own(system.parameters), read, system.state[:, own], system.dtype)
            if ran is None:
                return None
            states[:, :, own], reached = ran.states, np.maximum(reached, ran.reached)
            columns = (inputs.shape[2], inputs.shape[2] + member.hidden)
            inputs = _beside(inputs, ran.slopes)
            member = replace(
                member,
                cell=given_slopes(member.cell, member.input_size),
                input_size=member.input_size + member.hidden,
                reads=(*member.reads, columns),
            )
        members.append(member)
        put_out[j] = states[:, 1:, member.output_in(own.start)]
    cell = stacked(tuple(members))
    return Along(replace(system, cell=cell, inputs=inputs, states=states), reached)


def _beside(inputs: Array, slopes: Array) -> Array:
    return np.concatenate([inputs, slopes], axis=2)


@dataclass(frozen=True)
class _Ran:
    """States (B, T + 1, n), infinite beyond their dtype; slopes (B, T, n); log10 of the largest, (B,)."""

    states: Array
    slopes: Array
    reached: Array


def _run(cell: Cell, parameters: Parameters, inputs: Array, state: Array, dtype: str) -> _Ran | None:
    """An Elman network in numbers of any exponent, None of another and where slopes leave the dtype."""
    if not is_elman(cell) or not np.isfinite(inputs).all():
        return None
    with precise("float64"):
        given = (cast(parameters, "float64"), inputs.astype(np.float64), state.astype(np.float64))
        states, slopes, exponents = jax.device_get(_of_batch(cell, *given))
    if not np.abs(slopes).max() <= np.finfo(dtype).max or np.isnan(states).any():  # not >, or NaN passes
        return None
    with np.errstate(over="ignore"):
        return _Ran(np.asarray(states, dtype), np.asarray(slopes), exponents * math.log10(2.0))


@partial(jax.jit, static_argnums=0)
def _of_batch(cell: Cell, parameters: Parameters, inputs: Any, state: Any) -> tuple[Any, Any, Any]:
    """One sequence after the other: the terms of a product (n, n) are held."""
    units = cell.units
    assert units is not None

    def phi(a: Any) -> Any:
        return units.core(jnp.zeros_like(a), {"": a}, {})[0][0]

    def step(before: Wide, x: Any) -> tuple[Wide, Any]:
        terms = _terms(parameters["R"], before)
        drive = _wide(units.drive(parameters, x)[""])
        after, slope = _activated(
            phi, _sum(*(jnp.column_stack(pair) for pair in zip(terms, drive, strict=True)))
        )
        return after, (_plain(after), slope, after[1].max())

    def sequence(given: tuple[Any, Any]) -> tuple[Any, Any, Any]:
        inputs, state = given
        _, (states, slopes, exponents) = lax.scan(step, _wide(state), inputs)
        return jnp.concatenate([state[None], states]), slopes, exponents.max()

    found: tuple[Any, Any, Any] = lax.map(sequence, (inputs, state))
    return found


def _terms(matrix: Any, vector: Wide) -> Wide:
    """Of a product, R_ij h_j."""
    p, e = _wide(matrix * vector[0])
    return p, jnp.where(p == 0, _ZERO, e + vector[1])


def _sum(p: Any, e: Any) -> Wide:
    """Along the last axis, to float64's digits of the largest term."""
    top = e.max(axis=-1)
    found, more = jnp.frexp(jnp.ldexp(p, jnp.clip(e - top[..., None], -_LOST, 0)).sum(axis=-1))
    return found, jnp.where(found == 0, _ZERO, top + more)


def _activated(phi: Callable[[Any], Any], a: Wide) -> tuple[Wide, Any]:
    """phi(a), and its slope there."""
    p, e = a
    held = jnp.ldexp(p, jnp.clip(e, -_FAR, _FAR))
    value, slope = phi(held), jax.vmap(jax.grad(phi))(held)
    # Far out phi is its tangent, or where that is level itself; near zero too, if it leads through zero.
    tangent = (e > _FAR) & (jnp.abs(slope) > _LEVEL) | (e < -_FAR) & (phi(jnp.zeros_like(p)) == 0)
    (q, f), (r, g) = _wide(value), _wide(slope * p)
    new = jnp.where(tangent, r, q)
    return (new, jnp.where(new == 0, _ZERO, jnp.where(tangent, g + e, f))), slope


def _wide(numbers: Any) -> Wide:
    p, e = jnp.frexp(numbers)
    return p, jnp.where(p == 0, _ZERO, e)


def _plain(numbers: Wide) -> Any:
    """As float64, infinite beyond it."""
    return jnp.ldexp(numbers[0], jnp.clip(numbers[1], -_LOST, _LOST))
