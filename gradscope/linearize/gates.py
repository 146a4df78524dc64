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
from gradscope.linearize.course import course, joined_course
from gradscope.linearize.trajectory import Trajectory, forward

# Karpathy, Johnson and Li 2015 (arXiv 1506.02078): a gate is saturated left of 0.1 or right of 0.9.
SATURATED = (0.1, 0.9)
# Rounding units of an activation within which it may as well be on the other side of a threshold.
_ROUNDINGS = 64
# Bars of the histogram of a gate's activations, between 0 and 1.
BARS = 20


def gate_sums(gates: Mapping[str, Array]) -> dict[str, Array]:
    """Of activations {gate: array}: sum, how many are saturated, all, how many in doubt and in each bar.

    In doubt is what rounding may have put on the wrong side of a threshold.
    """
    return {name: np.array(_sums(np.asarray(g)), np.float64) for name, g in gates.items()}


def _sums(g: Array) -> list[float]:
    low, high = SATURATED
    # Those of a gate without bounds, a relu say, are in the last bar.
    bars = np.histogram(np.clip(g, 0.0, 1.0), BARS, (0.0, 1.0))[0]
    near = _ROUNDINGS * np.finfo(g.dtype).eps
    doubtful = np.count_nonzero((abs(g - low) <= near) | (abs(g - high) <= near))
    return [g.sum(), np.count_nonzero((g < low) | (g > high)), g.size, doubtful, *bars]


def followed(trajectory: Trajectory, count: int) -> list[tuple[dict[str, Array], dict[str, Array]]]:
    """The same of ``count`` sequences, and their courses, from a forward pass of their own."""
    sums: list[dict[str, Array]] = [{} for _ in range(count)]
    courses: list[list[dict[str, Array]]] = [[] for _ in range(count)]
    run, segments = trajectory.spread.lift(_activations, trajectory.cell), trajectory.segments
    parameters = jax.device_get(trajectory.parameters)
    for i in range(segments.count):
        given = trajectory.inputs(i)
        inputs, (states, gates) = jax.device_get(
            (given, run(trajectory.parameters, given, trajectory.start(i)))
        )
        for number in range(count):
            valid = trajectory.valid(i)
            open_ = {name: g[number, :valid] for name, g in gates.items()}
            part = gate_sums(open_)
            sums[number] |= {name: sums[number].get(name, 0) + value for name, value in part.items()}
            one = (inputs[number, :valid], states[number, : valid + 1], open_, i * segments.length)
            courses[number].append(course(trajectory.cell, parameters, *one))
    return [(total, joined_course(parts)) for total, parts in zip(sums, courses, strict=True)]


def _activations(cell: Cell, parameters: Parameters, inputs: Any, start: Any) -> tuple[Any, dict[str, Any]]:
    """States s_0 ... s_T, and the gates."""
    states = forward(cell, parameters, inputs, start)
    if cell.gates is None:
        return states, {}
    return states, jax.vmap(partial(cell.gates, parameters))(inputs, states[:-1])
