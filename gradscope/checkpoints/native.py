"""Native files: a ``.npz`` whose keys are the notation of the cells (W_z, R_z, b_z, p_i, ...)."""

from __future__ import annotations

import os
from collections.abc import Set

from gradscope.cells import CELLS, find
from gradscope.cells.base import Cell
from gradscope.checkpoints.layer import Layer, assemble, mismatch
from gradscope.errors import InputError
from gradscope.files import about, read_npz


def read(path: str | os.PathLike[str], cell: Cell | None) -> Layer:
    """The layer in a native ``.npz`` file; the cell is told by the keys where only one has them."""
    arrays = read_npz(path, lambda names: checked(names, cell))
    with about(path):
        return assemble(cell_of(arrays.keys(), cell), arrays)


def checked(names: list[str], cell: Cell | None) -> list[str]:
    """The names, if they are the keys of a cell: a file of anything else need not be read."""
    cell_of(set(names), cell)
    return names


def cell_of(names: Set[str], cell: Cell | None) -> Cell:
    """The cell whose keys these are: the one given, or the only built-in one that has them."""
    problems = {c.name: mismatch(c, names) for c in ([cell] if cell else map(find, CELLS))}
    fitting = [name for name, problem in problems.items() if not problem]
    if len(fitting) == 1:
        return cell or find(fitting[0])
    if fitting:
        raise InputError(
            f"the keys are those of {', '.join(fitting)}: say which one, as in --cell {fitting[0]}"
        )
    if cell:
        raise InputError(problems[cell.name])
    nearest = min(CELLS, key=lambda name: len(names ^ find(name).parameters(1, 1).keys()))
    raise InputError(f"the keys are of no built-in cell; the nearest: {problems[nearest]}")
