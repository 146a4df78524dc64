"""Native names: the notation of the cells (W_z, R_z, b_z, p_i, ...), one layer to a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from functools import partial

from gradscope.cells import CELLS, find
from gradscope.cells.cell import Cell
from gradscope.checkpoints.convolutions import convolutional
from gradscope.checkpoints.found import Found, attempt, projected_name, take
from gradscope.checkpoints.layer import assemble, mismatch
from gradscope.custom_types import Array
from gradscope.errors import InputError, listed
from gradscope.formats.tensors import Tensors

# What looks like our notation, and is compared with that of the cells.
_OURS = re.compile(r"[WR](_.*)?", re.S)


def layer(tensors: Tensors, cell: Cell | None) -> Found:
    """The layer whose arrays have the cells' own names; raises InputError where no cell has them."""
    if not has_keys(tensors, cell):
        raise InputError(
            convolutional(tensors)
            or "holds no LSTM, GRU or RNN of PyTorch or Flax, nor one under gradscope's names, but "
            f"{listed(list(tensors), 4) or 'no tensors'}: save the model that has one, or say what its "
            "arrays are, as in --map 'W_z,W_r,W_h=NAME', or by numpy.savez as W_z, R_z, b_z, ...; a "
            "loop over time in the model's own code is recorded: gradscope.record(model, batch, 'run.npz')"
        )
    if cell is None and "M" in tensors:
        cell = projected_cell(take(tensors, ["M"])[0]["M"])
    cells = cells_of(tensors.keys(), cell)
    return attempt(partial(_layer, tensors, cells, cell or find(cells[0])), "", tensors)


def has_keys(names: Iterable[str], cell: Cell | None) -> bool:
    """Whether any of the names looks like ours; with a cell of the user's own they may be anything."""
    return any(map(_OURS.fullmatch, names)) or (cell is not None and cell.name not in CELLS)


def _layer(tensors: Tensors, cells: tuple[str, ...], cell: Cell) -> Found:
    arrays, dtype = take(tensors, tensors)
    assemble(cell, arrays)  # says which array does not fit the others
    question = ""
    if len(cells) > 1:
        question = f"the keys are those of {', '.join(cells)}: say which one, as in --cell {cells[0]}"
    return Found("", arrays, cells, question, dtype=dtype)


def projected_cell(projection: Array | None) -> Cell | None:
    """The LSTM with this projection M, which of all built-in cells alone has one; None without it."""
    return None if projection is None else find(projected_name(projection, "M"))


def cells_of(names: Set[str], cell: Cell | None) -> tuple[str, ...]:
    """The cells whose keys these are: the one given, or every built-in one that has them."""
    problems = {c.name: mismatch(c, names) for c in ([cell] if cell else map(find, CELLS))}
    fitting = tuple(name for name, problem in problems.items() if not problem)
    if fitting:
        return fitting
    if cell:
        raise InputError(problems[cell.name])
    nearest = min(CELLS, key=lambda name: len(names ^ find(name).parameters(1, 1).keys()))
    raise InputError(f"the keys are of no built-in cell; the nearest: {problems[nearest]}")
