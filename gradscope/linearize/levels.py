"""What states near a level have beside it, of which a float has no digits (see ``cells.mean``).

Of h = 1 - 1e-40, which float64 has as 1, it is -1e-40; of c = 0, where 1 - 1e-50 and -1 met, -1e-50. It is
carried along given states, from each to the next (``anew``).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradscope.cells.cell import Cell
from gradscope.custom_types import Array
from gradscope.linearize.beside import NEAR, Parted, arithmetic_of

# {layer of a stack, "" of a cell alone: what its state (m,) is near, as ``beside_level``, and the rest}.
Last = Any


def comes_near(cell: Cell) -> bool:
    """Whether states of the cell, or of any layer of a stack, may come near a level."""
    if cell.members:
        return any(comes_near(member.cell) for member in cell.members)
    alone = cell.units is not None and cell.units.own is None  # it is read through matrices, where it is 1
    return not (cell.given or alone) and bool(_levels(cell))


def _levels(cell: Cell) -> tuple[float, ...]:
    """Of a cell that says nothing 1, as tanh has and most that level out."""
    return (1.0,) if cell.adds is None else tuple({abs(value) for value in cell.adds.levels.values})


def may_cancel(cell: Cell, states: Any, gates: Mapping[str, Any]) -> Any:
    """Whether states (T + 1, m) come so near to levels that floats lose what they have beside them.

    gates : {gate: (T, n)}, as ``linearize`` returns them. All of them NumPy's arrays, or JAX's.
    """
    if cell.members:
        extents = cell.extents(0)
        each = (
            may_cancel(member.cell, states[:, extents[member.name]], member.own(gates))
            for member in cell.members
        )
        return reduce(operator.or_, each)
    if not comes_near(cell):
        return False
    if cell.adds is None:
        return _near(states, (1.0,))
    own = states[:, : next(iter(gates.values())).shape[1]]
    if cell.adds.kept is None:
        return _near(own, _levels(cell))
    # Of c that is near 1 by chance nothing is lost: it is what is added that comes from a level.
    stays = gates[cell.adds.kept] if cell.adds.kept else 1.0
    return _near(own[:1], _levels(cell)) | _near(own[1:] - stays * own[:-1], _levels(cell))


def _near(values: Any, levels: tuple[float, ...]) -> Any:
    """Whether any is near a level."""
    return reduce(operator.or_, ((abs(abs(values) - level) < NEAR).any() for level in levels))


def beside_level(cell: Cell, state: Array) -> tuple[Array, Array]:
    """States (.., m), whose own digits are all that there are: (.., m) what they are near, and the rest."""
    if cell.members:
        extents = cell.extents(0)
        each = [beside_level(member.cell, state[..., extents[member.name]]) for member in cell.members]
        near, rest = (np.concatenate(parts, axis=-1) for parts in zip(*each, strict=True))
        return near, rest
    near = np.zeros_like(state)
    for level in _levels(cell):
        times = np.round(state / level) * level
        near = np.where(np.abs(state - times) < NEAR, times, near)
    return near, state - near


def refined(made: Parted, state: Any) -> Parted:
    """A state (m,) as a step made it, where that is near a level; else as the trajectory has it."""
    kind = arithmetic_of(made.rest)
    there = jnp.abs(kind.floats(kind.total(made)) - state) < NEAR
    close = there & (jnp.abs(kind.floats(made.rest)) < NEAR)
    return kind.chosen(close, Parted(kind.whole(made), made.rest), Parted(None, kind.of(state)))
