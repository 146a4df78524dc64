"""What is left of states near a level, of which a float has no digits (see ``cells.mean``).

A rest is the component that is a mean, less the level near it: of h = 1 - 1e-40, which float64 has as 1, it
is -1e-40. Rests are carried along given states, each from the one before, in floats or in numbers of any
exponent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from gradscope.cells.cell import Cell
from gradscope.cells.mean import LEVEL
from gradscope.cells.units import Parameters

# (n,) of a cell, of a stack {layer: (n,)}; None, or no entry, where no component has levels.
Rest = Any


class Near(NamedTuple):
    """A component before a step as the step takes it: less the level that it comes near by it.

    own : (n,); level : (n,), numbers of levels. So little differ the component and what the step adds to it
    at that level alone.
    """

    own: Any
    level: Any


def carries_rests(cell: Cell) -> bool:
    """Whether the cell, or any layer of a stack, has such a component."""
    return any(
        one.mean is not None and bool(one.mean.levels.values)
        for one in (cell, *(member.cell for member in cell.members))
    )


def own_part(cell: Cell, state: Any) -> Any:
    """The component (..., n) that is a mean, of states (..., m)."""
    assert cell.mean is not None
    n = state.shape[-1] // len(cell.components)
    return state[..., cell.mean.component * n : (cell.mean.component + 1) * n]


def first_rest(cell: Cell, state: Any) -> Rest:
    """That of a state (m,) whose own digits are all there are."""
    if cell.members:
        extents = cell.extents(0)
        found = {one.name: first_rest(one.cell, state[extents[one.name]]) for one in cell.members}
        return {name: rest for name, rest in found.items() if rest is not None}
    if cell.mean is None or not carries_rests(cell):
        return None
    own = own_part(cell, state)
    return own - cell.mean.levels.value(cell.mean.levels.nearest(own))


def moved(cell: Cell, states: Any) -> tuple[Any, Any]:
    """By what the level of each of T + 1 states (.., m) is above that of the next, and this; (T, n) each."""
    assert cell.mean is not None
    levels = cell.mean.levels
    every = levels.nearest(own_part(cell, states))
    values = levels.value(every)
    return values[:-1] - values[1:], every[1:]


def at(cell: Cell, parameters: Parameters, state: Any, near: Near | None) -> tuple[Parameters, Any]:
    """What ``step`` takes beside its input; without ``near`` all is read from the state."""
    if near is None or cell.mean is None:
        return parameters, cell.copies(state)
    parts = jnp.split(state, len(cell.components))
    parts[cell.mean.component] = near.own
    return {**parameters, LEVEL: near.level}, {
        **cell.copies(state),
        cell.mean.path: jnp.concatenate(parts),
    }


def step_at(cell: Cell, parameters: Parameters, x: Any, state: Any, near: Near | None) -> Any:
    """The state after a step, less the level of what is near one: its derivatives are those of the step."""
    given, copies = at(cell, parameters, state, near)
    return cell.step(given, x, copies)


def along(cell: Cell, parameters: Parameters, inputs: Any, states: Any, first: Rest) -> tuple[Any, Rest]:
    """``Near`` before every step, (T, n), and the rests (T + 1, n), from that of the first state."""
    if first is None:
        return None, None

    def step(rest: Any, each: Any) -> tuple[Any, Any]:
        x, state, after, (change, level) = each
        near = Near(rest + change, level)
        new = own_part(cell, step_at(cell, parameters, x, state, near))
        new = jnp.where(level == 0, own_part(cell, after), new)
        return new, (near, new)

    steps = (inputs, states[:-1], states[1:], moved(cell, states))
    near, found = lax.scan(step, first, steps)[1]
    return near, jnp.concatenate([first[None], found])


def near_to(cell: Cell, parameters: Parameters, inputs: Any, states: Any, rest: Rest = None) -> Near | None:
    """``Near`` before every step of a cell that is no stack.

    rest : that of the first state, where its own digits are not all there are.
    """
    if cell.mean is None or not carries_rests(cell):
        return None
    near: Near | None = along(
        cell, parameters, inputs, states, first_rest(cell, states[0]) if rest is None else rest
    )[0]
    return near
