"""Cells whose states leave float64: run, and differentiated, in numbers of its digits and any exponent.

What the chain needs of such a network are its derivatives, and these are mostly numbers that float64 holds:
of a function that grows constants far out, 1 or 0 of a relu, and zero where a gate is shut.
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
from gradscope.cells.given_slopes import given_rows, given_slopes
from gradscope.cells.stack import extents_of, stacked
from gradscope.cells.units import Parameters
from gradscope.custom_types import Array
from gradscope.linearize.jacobians import core_derivatives
from gradscope.linearize.system import System, cast, precise
from gradscope.linearize.wide import Unbounded, UnknownOperationError, in_wide, plain, wide
from gradscope.machine import available

# Exponents from which on those of products may not be held any more.
_MOST = 2**56


@dataclass(frozen=True)
class Along:
    """A system that reads the derivatives of one that leaves its dtype.

    Its Jacobians are that one's; its states are infinite where they are beyond the dtype.
    reached : (B,) log10 of the largest state.
    """

    system: System
    reached: Array


def with_slopes(system: System) -> Along | None:
    """The same along its own states, whatever their size.

    None where a Jacobian has entries that leave the dtype too, and of a cell that does what ``wide`` has no
    rule for.
    """
    if system.cell.members:
        return _of_stack(system)
    ran = _run(system.cell, system.hidden, system.parameters, system.inputs, system.state, system.dtype)
    if ran is None:
        return None
    along = replace(system, cell=ran.cell, inputs=_beside(system.inputs, ran.given), states=ran.states)
    return Along(along, ran.reached)


def _of_stack(system: System) -> Along | None:
    """The same of a stack, of those of its layers that leave it; the others are as they were."""
    assert system.states is not None
    states, inputs, members = system.states.copy(), system.inputs, []
    put_out: dict[int, Array] = {}
    reached = np.zeros(system.batch)
    for j, (member, own) in enumerate(zip(system.cell.members, extents_of(system.cell.members), strict=True)):
        if not np.isfinite(states[:, :, own]).all():
            read = member.input(system.inputs, put_out)
            given = (member.own(system.parameters), read, system.state[:, own], system.dtype)
            ran = _run(member.cell, member.hidden, *given)
            if ran is None:
                return None
            states[:, :, own], reached = ran.states, np.maximum(reached, ran.reached)
            columns = (inputs.shape[2], inputs.shape[2] + ran.given.shape[2])
            inputs = _beside(inputs, ran.given)
            member = replace(
                member,
                cell=ran.cell,
                input_size=member.input_size + ran.given.shape[2],
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
    """States (B, T + 1, m), infinite beyond their dtype; the cell that is given its derivatives, and these.

    given : (B, T, numbers); reached : log10 of the largest state, (B,).
    """

    states: Array
    cell: Cell
    given: Array
    reached: Array


def _run(
    cell: Cell, hidden: int, parameters: Parameters, inputs: Array, state: Array, dtype: str
) -> _Ran | None:
    """A cell in numbers of any exponent, None where its derivatives leave the dtype or cannot be had."""
    size = inputs.shape[2]
    if not np.isfinite(inputs).all():
        return None
    with precise("float64"):
        cast_ = (cast(parameters, "float64"), inputs.astype(np.float64), state.astype(np.float64))
        gates = jax.eval_shape(cell.gates, cast_[0], cast_[1][0, 0], cast_[2][0]) if cell.gates else {}
        rows = given_rows(cell, hidden, size, tuple(sorted(gates)))
        numbers = sum(math.prod(shape) for _, shape in rows)
        if 3 * 8 * numbers * math.prod(inputs.shape[:2]) > available():
            return None
        try:
            found = jax.device_get(_of_batch(cell, tuple(sorted(gates)), *cast_))
        except UnknownOperationError:
            return None
    states, given, exponents, sound = found
    if not (sound.all() and np.abs(given).max() <= np.finfo(dtype).max) or np.isnan(states).any():
        return None
    with np.errstate(over="ignore"):
        along = given_slopes(cell, hidden, size, tuple(sorted(gates)))
        return _Ran(np.asarray(states, dtype), along, np.asarray(given), exponents * math.log10(2.0))


@partial(jax.jit, static_argnums=(0, 1))
def _of_batch(cell: Cell, gates: tuple[str, ...], parameters: Parameters, inputs: Any, state: Any) -> Any:
    """One sequence after the other: the terms of a product (n, n) are held."""
    weights = {key: wide(jnp.asarray(value)) for key, value in parameters.items()}

    def step(before: Unbounded, x: Any) -> tuple[Unbounded, Any]:
        after = in_wide(cell.advance, weights, wide(x), before)
        rows = (_of_units if cell.units else _dense)(cell, gates, weights, wide(x), before)
        sound = jnp.isfinite(after.p).all() & (after.e.max() < _MOST)
        given = jnp.concatenate([jnp.ravel(row) for row in rows])
        return after, (plain(after), given, after.e.max(), sound)

    def sequence(given: tuple[Any, Any]) -> tuple[Any, ...]:
        inputs, state = given
        _, (states, slopes, exponents, sound) = lax.scan(step, wide(state), inputs)
        return jnp.concatenate([state[None], states]), slopes, exponents.max(), sound.all()

    return lax.map(sequence, (inputs, state))


def _of_units(cell: Cell, gates: tuple[str, ...], weights: Any, x: Unbounded, before: Unbounded) -> list[Any]:
    """The slopes of every unit, and its gates, in the order of ``given_rows``."""
    units = cell.units
    assert units is not None
    (own, pre), (open_, _) = in_wide(partial(core_derivatives, cell), weights, x, before)
    slopes = [*([own] if units.own else []), *(pre[name] for name in sorted(pre))]
    return [plain(row) for row in (*slopes, *(open_[gate] for gate in gates))]


def _dense(cell: Cell, gates: tuple[str, ...], weights: Any, x: Unbounded, before: Unbounded) -> list[Any]:
    """The Jacobian by the input, and that of every path, and the gates."""
    open_ = in_wide(cell.gates, weights, x, before) if cell.gates else {}
    by_input, by_state, _ = lax.map(
        lambda unit: dense_derivatives(in_wide, cell, weights, x, before, wide(unit)),
        jnp.eye(before.p.shape[0]),
    )
    return [plain(by_input), jnp.swapaxes(plain(by_state), 0, 1), *(plain(open_[gate]) for gate in gates)]


def dense_derivatives(
    run: Callable[..., Any], cell: Cell, weights: Any, x: Any, before: Any, unit: Any
) -> tuple[Any, Any, Any]:
    """One row of the Jacobian by the input, (d,), and by each path, (paths, m), and the new state, (m,).

    run : ``in_wide`` or ``in_beside``, whose numbers they are; unit : (m,), 1 of the row.
    """

    def row(parameters: Any, x: Any, state: Any, unit: Any) -> tuple[Any, Any, Any]:
        new, back = jax.vjp(partial(cell.step, parameters), x, cell.copies(state))
        by_input, by_state = back(unit)
        paths = [by_state[path] for path in cell.paths] if cell.paths else [by_state]
        return by_input, jnp.stack(paths), new

    found: tuple[Any, Any, Any] = run(row, weights, x, before, unit)
    return found
