"""The loss whose gradient is asked for: its derivatives by the outputs of the layer, from readout or file."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from gradscope.cells.notation import is_bias
from gradscope.custom_types import Array
from gradscope.errors import InputError, as_option, counted, quoted, shown
from gradscope.formats.reading import read_array
from gradscope.formats.tensors import as_float64
from gradscope.linearize.system import System
from gradscope.machine import available
from gradscope.problem.checks import one_of
from gradscope.problem.inputs import label
from gradscope.problem.problem import Problem
from gradscope.settings import READOUT_AT, ReadoutAt

if TYPE_CHECKING:
    from gradscope.checkpoints import Named

# How frameworks call a matrix (outputs, n), and one of (n, outputs).
_ROWS_ARE_OUTPUTS = re.compile(r"(^|[./])weight$")
_ROWS_ARE_INPUTS = re.compile(r"(^|[./])(kernel|vars/0)(:0)?$")


def with_loss(
    problem: Problem, readout: Named | None = None, readout_at: str | None = None, adjoint: Any = None
) -> Problem:
    """The problem with the adjoint e_t = dL/dh_t of its loss; as it is where neither is given.

    readout : the matrix of a Linear or Dense layer that reads the outputs h (n,) of this one. The loss is
        the sum of what it puts out, L = sum_k (W h)_k, so that e_t = W^T 1; readout_at : "last" (default),
        or "every" for the sum over all steps.
    adjoint : a file or an array. (n,) or (B, n) is at the last step, (B, T, n) at every step; where there is
        one sequence (T, n) is at every step too, T in the order of the inputs.

    Raises InputError where both are given, where sizes are not those of the layer, in the cell view.
    """
    if readout is None and adjoint is None:
        if readout_at is not None:
            raise InputError(
                f"{as_option('readout_at')} is {quoted(readout_at)} without {as_option('readout')}: give both"
            )
        return problem
    if problem.view == "cell":
        raise InputError(
            f"{as_option('view')} 'cell' is of the cell state alone, a loss is not: leave "
            f"{as_option('view')} or the loss out"
        )
    if problem.origin.jacobians != "own" and "h" not in problem.system.cell.components:
        raise InputError(
            "a loss is of what a layer puts out, and of this one that is no part of the state that passes "
            "from step to step: leave the loss out"
        )
    if readout is None:
        if readout_at is not None:
            raise InputError(
                f"{as_option('readout_at')} is about a readout: the shape of the adjoint says at "
                "which steps it is"
            )
        origin = replace(problem.origin, adjoint=label(adjoint))
        found = _from_adjoint(problem.system, adjoint)
    elif adjoint is not None:
        raise InputError(
            f"{as_option('readout')} and {as_option('adjoint')} are two losses: give one of them"
        )
    else:
        readout_at = readout_at or READOUT_AT
        one_of("readout_at", readout_at, get_args(ReadoutAt))
        origin = replace(problem.origin, readout=readout.name, readout_at=readout_at)
        found = _from_readout(problem.system, readout, readout_at)
    dtype = problem.system.dtype
    if not np.abs(found).max() <= np.finfo(dtype).max:
        raise InputError(f"the loss's derivatives go beyond {dtype}: scale them down")
    _check_memory(problem.system)
    return replace(problem, adjoint=found, origin=origin)


def with_losses(
    sides: Sequence[Problem], readout: Named | None, readout_at: str | None, adjoint: Any
) -> list[Problem]:
    """The two directions of a layer, each with its part of a loss that reads their outputs side by side.

    sides : the forward one and the backward one; the rest as for ``with_loss``. The loss must be at every
    step: the last step of the one direction is the first of the other.
    """
    first = sides[0].system
    widths = [side.system.outputs for side in sides]
    total, cuts = sum(widths), np.cumsum(widths)[:-1]
    at_every = "of two directions the last step of one is the first of the other"
    if readout is not None and adjoint is None:
        if readout_at != "every":
            raise InputError(f"{at_every}: say --readout-at every, or give the loss as --adjoint")
        axis = 1 - _axis_of_outputs(readout, total)
        parts = [replace(readout, values=part) for part in np.split(readout.values, cuts, axis=axis)]
        return [with_loss(side, part, "every") for side, part in zip(sides, parts, strict=True)]
    if readout is not None or adjoint is None:
        return [with_loss(sides[0], readout, readout_at, adjoint)]  # which says what is wrong
    array = read_array(adjoint) if isinstance(adjoint, str | os.PathLike) else as_float64(adjoint, "adjoint")
    steps = first.given_steps
    shapes = [(first.batch, steps, total)] + [(steps, total)] * (first.batch == 1)
    if array.shape not in shapes:
        raise InputError(f"{as_option('adjoint')} has shape {array.shape}, expected {shapes[-1]}: {at_every}")
    lossy = [
        with_loss(side, adjoint=part)
        for side, part in zip(sides, np.split(array, cuts, axis=-1), strict=True)
    ]
    return [replace(side, origin=replace(side.origin, adjoint=label(adjoint))) for side in lossy]


def _from_readout(system: System, readout: Named, at: str) -> Array:
    adjoint = readout.values.sum(axis=_axis_of_outputs(readout, system.outputs))
    return np.tile(adjoint, (system.batch, system.steps if at == "every" else 1, 1))


def _axis_of_outputs(readout: Named, n: int) -> int:
    """Which axis of a readout's matrix are its outputs; the other reads the n features of a layer."""
    called, shape = f"readout {shown(readout.name)}", readout.values.shape
    if len(shape) != 2:
        raise InputError(f"{called} has shape {shape}, expected the matrix of a Linear or Dense layer")
    axis = int(_rows_are_inputs(readout, n))
    if (reads := shape[1 - axis]) != n:
        raise InputError(
            f"{called} has shape {shape} and reads {reads} features, the layer puts out {n}: choose the "
            "readout that stands upon this layer"
        )
    return axis


def _rows_are_inputs(readout: Named, n: int) -> bool:
    """Whether the matrix is (n, outputs), as its name says, else its shape."""
    if _ROWS_ARE_OUTPUTS.search(readout.name) or _ROWS_ARE_INPUTS.search(readout.name):
        return bool(_ROWS_ARE_INPUTS.search(readout.name))
    rows, columns = readout.values.shape
    if rows == columns == n:
        raise InputError(
            f"readout {shown(readout.name)} is square, and its name does not say which axis reads the layer: "
            f"give its derivatives as {as_option('adjoint')}"
        )
    return int(rows) == n


def _from_adjoint(system: System, given: Any) -> Array:
    n, b, t = system.outputs, system.batch, system.given_steps
    array = read_array(given) if isinstance(given, str | os.PathLike) else as_float64(given, "adjoint")
    if array.shape == (n,):
        return np.tile(array, (b, 1, 1))
    if array.shape == (b, n):
        return array[:, None]
    if array.shape in [(b, t, n)] + [(t, n)] * (b == 1):
        return system.of_given(_unmasked(system, array.reshape(b, t, n)))
    expected = f"({n},) or {(b, n)} at the last step, {(t, n) if b == 1 else (b, t, n)} at every step"
    raise InputError(f"{as_option('adjoint')} has shape {array.shape}, expected {expected}")


def _unmasked(system: System, adjoint: Array) -> Array:
    """The derivatives (B, T', n) by every output; InputError where one is at a masked step."""
    if system.mask is not None:
        wrong = ~system.mask & adjoint.any(axis=2)
        if wrong.any():
            b, t = np.argwhere(wrong)[0]
            raise InputError(
                f"{as_option('adjoint')} is not 0 at step {t} of sequence {b}, which is masked: "
                "expected 0 there"
            )
    return adjoint


def _check_memory(system: System) -> None:
    """Refuse deltas that would not fit, before the work: they are kept of every step, of some runs."""
    shapes = system.cell.shapes(system.hidden, system.input_size)
    deltas = sum(math.prod(shape) for key, shape in shapes.items() if is_bias(key))
    need = 4 * 8 * system.batch * system.steps * deltas
    if need > (have := available()):
        raise InputError(
            f"the deltas of {counted(system.batch, 'sequence')} of {counted(system.steps, 'step')} need "
            f"about {need >> 30} GiB, this machine has {have >> 30}: give fewer or shorter ones"
        )
