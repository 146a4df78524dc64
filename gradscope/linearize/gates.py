"""Sums over gate activations: how open the gates are, and how many are saturated."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from gradscope.cells.cell import Cell
from gradscope.cells.units import Parameters
from gradscope.custom_types import Array
from gradscope.linearize.trajectory import Trajectory, forward

# Karpathy, Johnson and Li 2015 (arXiv 1506.02078): a gate is saturated left of 0.1 or right of 0.9.
SATURATED = (0.1, 0.9)


def gate_sums(gates: Mapping[str, Array]) -> dict[str, Array]:
    """Of activations {gate: array}: their sum, how many are saturated, how many there are."""
    low, high = SATURATED
    return {
        name: np.array([g.sum(), np.count_nonzero((g < low) | (g > high)), g.size], np.float64)
        for name, g in gates.items()
    }


def gate_sums_along(trajectory: Trajectory, count: int) -> list[dict[str, Array]]:
    """The same of ``count`` sequences of a trajectory, from a forward pass of their own."""
    cell = trajectory.cell
    sums: list[dict[str, Array]] = [{} for _ in range(count)]
    if cell.gates is None:
        return sums
    run = trajectory.spread.lift(_activations, cell)
    for i in range(trajectory.segments.count):
        found = jax.device_get(run(trajectory.parameters, trajectory.inputs(i), trajectory.start(i)))
        for number, total in enumerate(sums):
            part = gate_sums({name: g[number, : trajectory.valid(i)] for name, g in found.items()})
            total |= {name: total.get(name, 0) + value for name, value in part.items()}
    return sums


def _activations(cell: Cell, parameters: Parameters, inputs: Any, start: Any) -> Any:
    assert cell.gates is not None
    before = forward(cell, parameters, inputs, start)[:-1]
    return jax.vmap(partial(cell.gates, parameters))(inputs, before)
