"""How much memory there is, and what would be needed."""

from __future__ import annotations

import math

from gradscope.cells.cell import Cell, Member
from gradscope.errors import InputError, as_option
from gradscope.machine import available, cores

# What is computed at every step of one segment of a trajectory fits into this.
SEGMENT_BYTES = 64 * 2**20


def step_bytes(cell: Cell, hidden: int) -> int:
    """What one step of one sequence takes: states, gates and slopes, or a dense Jacobian per path."""
    if cell.members:
        return sum(step_bytes(m.cell, m.hidden) + _entering_bytes(m) for m in cell.members)
    m, paths = cell.size(hidden), max(1, len(cell.paths))
    return 8 * (m * (paths + 2) if cell.units else m * m * paths + 2 * m)


def _entering_bytes(member: Member) -> int:
    """What one step of the derivatives of a layer's state by its input takes."""
    units = member.cell.units
    return 8 * member.size * (len(units.weights) if units else member.input_size)


def tangent_bytes(cell: Cell, hidden: int) -> int:
    """What one step of one sequence takes where no Jacobian is formed."""
    return step_bytes(cell, hidden) if cell.units else 8 * 4 * cell.size(hidden)


def check_memory(cell: Cell, hidden: int, shape: tuple[int, int, int], top: bool = False) -> None:
    """Refuse what would not fit in memory, by the arrays that grow: better than to be killed.

    top : whether no Jacobian is formed.
    """
    batch, steps, input_size = shape
    m = cell.size(hidden)
    segment = min(steps, max(2, SEGMENT_BYTES // step_bytes(cell, hidden)))
    weights = sum(math.prod(shape) for shape in cell.shapes(hidden, input_size).values())
    # Of a sequence under way: a few segments, on device and host; a few m x m factors of the product, and
    # the size of every row of every step. Of all: inputs; norms and shares by step.
    under_way = 4 * segment * step_bytes(cell, hidden) + 8 * (2 * steps * m + 16 * m * m)
    kept = 8 * (batch * steps * (2 * input_size + 2 * len(cell.paths) + 2) + 4 * weights)
    need = min(batch, cores()) * under_way + kept
    if top:  # all sequences at once: a segment; blocks of columns, spaces of lags; matrices both ways
        need = 4 * SEGMENT_BYTES + 8 * (batch * m * 2000 + 4 * weights) + kept
    if need > (have := available()):
        raise InputError(
            f"{as_option('hidden')} {hidden}, {as_option('steps')} {steps}, {as_option('batch')} {batch} "
            f"need about {need >> 30} GiB, this machine has "
            f"{have >> 30}: ask for less"
        )
