"""In which unit and at which step a gradient is, in as many cells as a picture has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradscope.custom_types import Array

# Rows and columns, at most.
ROWS, COLUMNS = 64, 120


def by_unit(
    deltas: Mapping[str, Array], errors: Mapping[str, Array] | None = None
) -> dict[str, dict[str, Any]]:
    """{layer, or "": {"step", "unit": first of each column and row, "steps", "units": how many, "log10"}}.

    deltas : {gate: (B, T, n)}, see LossGradient. A cell of log10, rows of columns, is that of the largest
    |dL/d(pre-activation)| of its units and steps, over gates and sequences; -inf where all are zero, inf
    where float64 ends, NaN where an error in it is as large.
    """
    sizes = _by_layer(deltas)
    off = (
        {layer: np.zeros_like(each) for layer, each in sizes.items()} if errors is None else _by_layer(errors)
    )
    return {layer: _by_step(each, off[layer]) for layer, each in sizes.items()}


def _by_layer(gates: Mapping[str, Array]) -> dict[str, Array]:
    """{layer: (T, n)}, the largest."""
    layers: dict[str, list[Array]] = {}
    for name, each in gates.items():
        layers.setdefault(name.rpartition(".")[0], []).append(np.abs(each).max(axis=0))
    return {layer: np.max(each, axis=0) for layer, each in layers.items()}


def _by_step(sizes: Array, off: Array) -> dict[str, Any]:
    """sizes, and their errors : (T, n)."""
    starts = starts_of(len(sizes), COLUMNS)
    largest, errors = (np.maximum.reduceat(each, starts, axis=0) for each in (sizes, off))
    lost = (errors >= largest) & (errors > 0) & np.isfinite(largest)
    with np.errstate(divide="ignore"):
        log10 = np.where(lost, np.nan, np.log10(largest))
    return cells(log10, np.array(starts) + 1, len(sizes))


def cells(log10: Array, first: Array, steps: int) -> dict[str, Any]:
    """Units put together to rows. log10 : (columns, n); first : of ``steps`` the first of every column."""
    units = starts_of(log10.shape[1], ROWS)
    largest = np.maximum.reduceat(log10, units, axis=1)
    return {
        "step": first.tolist(),
        "steps": steps,
        "unit": [u + 1 for u in units],
        "units": log10.shape[1],
        "log10": largest.T.round(2),
    }


def starts_of(count: int, most: int) -> Sequence[int]:
    """Where each of at most so many equal parts of ``range(count)`` begins."""
    found: list[int] = np.unique(np.linspace(0, count, min(count, most) + 1)[:-1].astype(int)).tolist()
    return found
