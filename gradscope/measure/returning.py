"""Where the gradient that survives best is on its way back: every unit of the top vector at every step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gradscope.cells.cell import Cell
from gradscope.custom_types import Array
from gradscope.linearize.jacobian_chain import JacobianChain
from gradscope.linearize.segmented import SegmentedChain
from gradscope.measure.by_unit import COLUMNS, cells, starts_of
from gradscope.measure.shares import far_left, far_transposed, far_vectors, propagate, transposed


def returning(
    jacobians: JacobianChain | SegmentedChain, left: Array, shares: Mapping[str, Array]
) -> dict[str, Array]:
    """{"step": (k,), the first of every column, from 1; "log10": (k, m)}: the largest log10 |b_t| in it.

    b_t = (J_T ... J_(t+1))^T u, with ``left`` u the top left singular vector: what comes back at step t of
    the gradient at the last step that is amplified most; |b_T| = 1, |b_0| = sigma_1. -inf where ``shares``
    are NaN: rounding leaves nothing of it there.
    """
    columns = Columns(len(jacobians), len(left))
    certain = ~np.isnan(next(iter(shares.values())))
    back = _far_back(jacobians, left) if jacobians.beyond else _back(jacobians, left)
    for first, sizes in back:
        columns.take(first, sizes, certain[first : first + len(sizes)])
    return columns.found


def _back(jacobians: JacobianChain | SegmentedChain, left: Array) -> Iterator[tuple[int, Array]]:
    """Of each segment from the last its first step, and log10 |b_t| (L, m) of its steps."""
    vector, log = left, 0.0
    for i in range(len(jacobians.starts) - 1, -1, -1):
        vectors, logs = propagate(transposed(jacobians.segment(i)), vector, log)
        with np.errstate(divide="ignore", invalid="ignore"):
            sizes = np.log10(np.abs(vectors[-2::-1])) + logs[-2::-1, None] / math.log(10)
        yield jacobians.starts[i], sizes
        vector, log = vectors[-1], logs[-1]


def _far_back(jacobians: JacobianChain | SegmentedChain, left: Array) -> Iterator[tuple[int, Array]]:
    """The same where float64 does not hold the steps."""
    vector = far_left(jacobians, left)
    sizes = vector.log10
    whole = sizes.max() + 0.5 * np.log10((100.0 ** (sizes - sizes.max())).sum())
    for i in range(len(jacobians.starts) - 1, -1, -1):
        vectors = list(far_vectors(far_transposed(jacobians.segment(i)), vector))
        yield jacobians.starts[i], np.array([one.log10[:, 0] - whole for one in vectors[-2::-1]])
        vector = vectors[-1]


class Columns:
    """Of vectors (m,) that come step by step the largest entries in each column of a picture.

    Of ``steps`` steps; found : see ``returning``.
    """

    def __init__(self, steps: int, size: int) -> None:
        self._starts = np.array(starts_of(steps, COLUMNS))
        self.found = {"step": self._starts + 1, "log10": np.full((len(self._starts), size), -np.inf)}

    def take(self, first: int, log10: Array, certain: Array) -> None:
        """Steps from ``first`` on, from 0; log10 : (k, m), and (k,) whether it is known."""
        sizes = np.where(certain[:, None] & np.isfinite(log10), log10, -np.inf)
        at = np.arange(first, first + len(sizes))
        np.maximum.at(self.found["log10"], np.searchsorted(self._starts, at, side="right") - 1, sizes)


def of_layers(found: Mapping[str, Array], cell: Cell, hidden: int, steps: int) -> dict[str, dict[str, Any]]:
    """{layer, or "": {"step", "steps", "unit", "units", "log10": rows of columns}}, see ``by_unit``.

    found : of ``returning``. A unit of a layer has the largest of the components of its state.
    """
    log10 = found["log10"]
    if cell.members:
        ends = np.cumsum([member.size for member in cell.members])[:-1]
        parts = zip(cell.members, np.split(log10, ends, axis=1), strict=True)
        states = {one.name: _units(part, one.cell, one.hidden) for one, part in parts}
    else:
        states = {"": _units(log10, cell, hidden)}
    return {name: cells(units, found["step"], steps) for name, units in states.items()}


def _units(log10: Array, cell: Cell, hidden: int) -> Array:
    """(k, n) of (k, m): of each unit the largest of its components."""
    if log10.shape[1] != cell.size(hidden):  # of --view cell, one component
        return log10
    parts = [log10[:, part] for part in cell.extents(hidden).values()]
    units = np.full((len(log10), max(part.shape[1] for part in parts)), -np.inf)
    for part in parts:
        units[:, : part.shape[1]] = np.maximum(units[:, : part.shape[1]], part)
    return units
