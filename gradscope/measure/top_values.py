"""The top values of a batch's chains without Jacobians: full chain, paths, shares and gates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from gradscope.cells.cell import Cell
from gradscope.cells.notation import NAMELESS
from gradscope.cells.stack import block_names, extents_of
from gradscope.cells.units import Parameters
from gradscope.custom_types import Array
from gradscope.linearize.budget import SEGMENT_BYTES, tangent_bytes
from gradscope.linearize.gates import gate_sums
from gradscope.linearize.system import blaming, precise
from gradscope.linearize.tangent_chain import TangentChain
from gradscope.linearize.tangents import TangentSteps, tangents
from gradscope.linearize.trajectory import Segments, Spread, Trajectory, forward
from gradscope.measure.measured import Measured
from gradscope.problem.problem import Problem
from gradscope.product_svd.operator import Operator, Window
from gradscope.product_svd.spectrum import Spectrum, diagonal_spectrum, top_spectra


def measure_tops(
    problem: Problem,
    numbers: range,
    devices: Sequence[jax.Device],
    entry_error: float,
    floor: float,
    report: Callable[[float], None],
    known: frozenset[str] = frozenset(),
) -> list[tuple[Measured, dict[str, Array]]]:
    """What is found of the sequences ``numbers``, all at once, and sums over their gates.

    entry_error, floor : as for chain.spectrum; report : called with the fraction that is done;
    known : paths whose own chains are measured elsewhere.
    """
    assert problem.top is not None
    cell, count = problem.cell, len(numbers)
    kept = tuple(path for path in cell.paths if path not in problem.cut)
    chosen = slice(numbers.start, numbers.stop, numbers.step)  # a view: inputs may be large
    segments = Segments.cover(problem.steps, count * tangent_bytes(cell, problem.hidden), SEGMENT_BYTES)
    with precise(problem.dtype), blaming(cell, problem.state.shape[1:]):
        spread = Spread(tuple(devices[:count]))
        trajectory = Trajectory(
            cell,
            problem.parameters,
            problem.inputs[chosen],
            problem.state[chosen],
            segments,
            spread,
            problem.dtype,
        )
        found: dict[str, list[Spectrum]] = {}
        every = _chains(cell, kept, problem.hidden)
        chains = {name: steps for name, steps in every.items() if name not in known}
        windows = _windows(cell)
        for name, steps in chains.items():
            sweeps = TangentChain(trajectory, steps, count, problem.dtype)
            if name == "full":
                full = sweeps
            product: Operator = Window(sweeps, windows[name]) if name in windows else sweeps
            top = min(problem.top, product.size)
            if steps.diagonal:
                found[name] = [_diagonal(sweeps.diagonals(i), top, entry_error) for i in range(count)]
            else:
                found[name] = top_spectra(product, top, by_lag=True, floor=floor, entry_error=entry_error)
            report(len(found) / len(chains))
        if len(kept) == len(cell.components) == 1:
            found[kept[0]] = found["full"]
        left, right = (np.array([getattr(s, side) for s in found["full"]]) for side in ("left", "right"))
        shares = full.shares(left, right)
        gates = _gates(trajectory, count)
    names = kept or (NAMELESS,)
    return [
        (
            Measured(
                {name: each[number] for name, each in found.items()},
                dict(zip(names, shares[number].T, strict=True)),
            ),
            gates[number],
        )
        for number in range(count)
    ]


def _diagonal(factors: Array, top: int, entry_error: float) -> Spectrum:
    """Products of numbers, which need no passes; only the top of them, as of the other chains."""
    found = diagonal_spectrum(factors, by_lag=True, entry_error=entry_error)
    return replace(found, log10_singular_values=found.log10_singular_values[:top], exact_zeros=None)


def _chains(cell: Cell, kept: tuple[str, ...], hidden: int) -> dict[str, TangentSteps]:
    """The full chain's steps and those of every path alone, where they are not the same."""
    chains = {"full": tangents(cell, kept)}
    if len(cell.components) > 1 or len(kept) > 1:
        windows = _windows(cell)  # what one layer does to another is a block of the whole product
        chains |= {
            path: chains["full"] if path in windows else tangents(cell, (path,), cell.source(path), hidden)
            for path in kept
        }
    return chains


def _windows(cell: Cell) -> dict[str, tuple[slice, slice]]:
    """Rows and columns of the whole product that the chains between two layers of a stack are."""
    part = list(extents_of(cell.members))
    names = block_names(cell.members)
    return {name: (part[j], part[i]) for (i, j), name in names.items() if i != j}


def _gates(trajectory: Trajectory, count: int) -> list[dict[str, Array]]:
    """Sums over the gates of every sequence, as flow.gate_sums."""
    cell = trajectory.cell
    if cell.gates is None:
        return [{} for _ in range(count)]
    run = trajectory.spread.lift(_activations, cell)
    sums: list[dict[str, Array]] = [{} for _ in range(count)]
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
