"""In which unit and at which step the gradient of a loss is, in as many cells as a picture has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradscope.custom_types import Array

# Rows and columns, at most.
_UNITS, _STEPS = 64, 120


def by_unit(deltas: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
    """{layer, or "": {"step", "unit": the first of each column and row, "log10": rows of columns}}.

    deltas : {gate: (B, T, n)}, see LossGradient. A cell is log10 of the largest |dL/d(pre-activation)| of its
    units and steps, over gates and sequences; -inf where all are zero, inf where float64 ends.
    """
    layers: dict[str, list[Array]] = {}
    for name, each in deltas.items():
        layers.setdefault(name.rpartition(".")[0], []).append(np.abs(each).max(axis=0))
    return {layer: _cells(np.max(gates, axis=0)) for layer, gates in layers.items()}


def _cells(sizes: Array) -> dict[str, Any]:
    """sizes : (T, n)."""
    steps, units = (_starts(count, most) for count, most in zip(sizes.shape, (_STEPS, _UNITS), strict=True))
    largest = np.maximum.reduceat(np.maximum.reduceat(sizes, steps, axis=0), units, axis=1)
    with np.errstate(divide="ignore"):
        logs = np.log10(largest.T).round(2)
    return {"step": [s + 1 for s in steps], "unit": [u + 1 for u in units], "log10": logs}


def _starts(count: int, most: int) -> Sequence[int]:
    found: list[int] = np.unique(np.linspace(0, count, min(count, most) + 1)[:-1].astype(int)).tolist()
    return found
