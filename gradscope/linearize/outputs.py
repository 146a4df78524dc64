"""What a layer puts out, for the layers that read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gradscope.cells.cell import Cell
from gradscope.cells.units import Parameters
from gradscope.custom_types import Array
from gradscope.linearize.system import blaming, precise, reversed_within
from gradscope.linearize.trajectory import Segments, Spread, Trajectory, forward
from gradscope.problem.problem import Problem


def outputs(problem: Problem, devices: Sequence[jax.Device]) -> Array:
    """h_1 ... h_T of every sequence, (B, T, n), in the order of time also for a backward layer."""
    cell, part = problem.cell, problem.cell.output(problem.hidden)
    step = 8 * problem.batch * problem.state.shape[1]
    with precise(problem.dtype), blaming(cell, problem.state.shape[1:]):
        trajectory = Trajectory(
            cell,
            problem.parameters,
            problem.inputs,
            problem.state,
            Segments.cover(problem.steps, step),
            Spread(tuple(devices[: problem.batch])),
            problem.dtype,
        )
        run = trajectory.spread.lift(_put_out, cell, part.start, part.stop)
        found = [
            np.asarray(run(trajectory.parameters, trajectory.inputs(i), trajectory.start(i)), np.float64)[
                : problem.batch, : trajectory.valid(i)
            ]
            for i in range(trajectory.segments.count)
        ]
    whole = np.concatenate(found, axis=1)
    backward = problem.source.get("direction") == "backward"
    return reversed_within(whole, problem.lengths) if backward else whole


def _put_out(cell: Cell, start: int, stop: int, parameters: Parameters, inputs: Any, state: Any) -> Any:
    return forward(cell, parameters, inputs, state)[1:, start:stop]
