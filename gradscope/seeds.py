"""The loss whose gradient is asked for: its derivatives by the outputs of the layer, from readout or file."""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from typing import Any

import numpy as np

from gradscope.checkpoints import Named
from gradscope.checks import one_of
from gradscope.errors import InputError
from gradscope.files import Array, as_float64, quoted, shown
from gradscope.inputs import read_array
from gradscope.memory import available
from gradscope.problem import Problem

READOUT_AT = ("last", "every")
# What a problem with a loss says of it.
LOSS = ("readout", "readout_at", "adjoint")
# How frameworks call a matrix (outputs, n), and one of (n, outputs).
_ROWS_ARE_OUTPUTS = re.compile(r"(^|[./])weight$")
_ROWS_ARE_INPUTS = re.compile(r"(^|[./])(kernel|vars/0)(:0)?$")


def with_loss(
    problem: Problem, readout: Named | None = None, readout_at: str | None = None, adjoint: Any = None
) -> Problem:
    """The problem with the ``seeds`` e_t = dL/dh_t of its loss; as it is where neither is given.

    readout : the matrix of a Linear or Dense layer that reads the outputs h (n,) of this one. The loss is
        the sum of what it puts out, L = sum_k (W h)_k, so that e_t = W^T 1; readout_at : "last" (default),
        or "every" for the sum over all steps.
    adjoint : a file or an array. (n,) or (B, n) is at the last step, (B, T, n) at every step; where there is
        one sequence (T, n) is at every step too, T in the order of the inputs.

    Raises InputError where both are given, where sizes are not those of the layer, in the cell view.
    """
    if readout is None and adjoint is None:
        if readout_at is not None:
            raise InputError(f"readout_at is {quoted(readout_at)} without a readout: give both")
        return problem
    if problem.view == "cell":
        raise InputError("view 'cell' is of the cell state alone, a loss is not: leave view or the loss out")
    if readout is None:
        if readout_at is not None:
            raise InputError(
                "readout_at is about a readout: the shape of the adjoint says at which steps it is"
            )
        called = shown(os.fspath(adjoint)) if isinstance(adjoint, str | os.PathLike) else "array"
        seeds, source = _from_adjoint(problem, adjoint), {"adjoint": called}
    elif adjoint is not None:
        raise InputError("readout and adjoint are two losses: give one of them")
    else:
        readout_at = readout_at or "last"
        one_of("readout_at", readout_at, READOUT_AT)
        seeds, source = _from_readout(problem, readout, readout_at), {"readout": readout.name}
        source["readout_at"] = readout_at
    if not np.abs(seeds).max() <= np.finfo(problem.dtype).max:
        raise InputError(f"the loss's derivatives go beyond {problem.dtype}: scale them down")
    _check_memory(problem)
    return replace(problem, seeds=seeds, source=problem.source | source)


def _from_readout(problem: Problem, readout: Named, at: str) -> Array:
    n = _outputs(problem)
    called, shape = f"readout {shown(readout.name)}", readout.values.shape
    if len(shape) != 2:
        raise InputError(f"{called} has shape {shape}, expected the matrix of a Linear or Dense layer")
    transposed = _rows_are_inputs(readout, n)
    reads = shape[0] if transposed else shape[1]
    if reads != n:
        raise InputError(
            f"{called} has shape {shape} and reads {reads} features, the layer puts out {n}: choose the "
            "readout that stands upon this layer"
        )
    seed = readout.values.sum(axis=1 if transposed else 0)
    return np.tile(seed, (problem.batch, problem.steps if at == "every" else 1, 1))


def _rows_are_inputs(readout: Named, n: int) -> bool:
    """Whether the matrix is (n, outputs), as its name says, else its shape."""
    if _ROWS_ARE_OUTPUTS.search(readout.name) or _ROWS_ARE_INPUTS.search(readout.name):
        return bool(_ROWS_ARE_INPUTS.search(readout.name))
    rows, columns = readout.values.shape
    if rows == columns == n:
        raise InputError(
            f"readout {shown(readout.name)} is square, and its name does not say which axis reads the layer: "
            "give its derivatives as adjoint"
        )
    return int(rows) == n


def _from_adjoint(problem: Problem, given: Any) -> Array:
    n, b, t = _outputs(problem), problem.batch, problem.steps
    array = read_array(given) if isinstance(given, str | os.PathLike) else as_float64(given, "adjoint")
    if array.shape == (n,):
        return np.tile(array, (b, 1, 1))
    if array.shape == (b, n):
        return array[:, None]
    if array.shape in [(b, t, n)] + [(t, n)] * (b == 1):
        every = array.reshape(b, t, n)
        return every[:, ::-1] if problem.source.get("direction") == "backward" else every
    expected = f"({n},) or {(b, n)} at the last step, {(t, n) if b == 1 else (b, t, n)} at every step"
    raise InputError(f"adjoint has shape {array.shape}, expected {expected}")


def _outputs(problem: Problem) -> int:
    part = problem.cell.output(problem.hidden)
    return int(part.stop - part.start)


def _check_memory(problem: Problem) -> None:
    """Refuse deltas that would not fit, before the work: they are kept of every step."""
    shapes = problem.cell.shapes(problem.hidden, problem.input_size)
    deltas = sum(math.prod(shape) for key, shape in shapes.items() if key.rpartition(".")[2].startswith("b"))
    need = 2 * 8 * problem.batch * problem.steps * deltas
    if need > (have := available()):
        raise InputError(
            f"the deltas of {problem.batch} sequences of {problem.steps} steps need about {need >> 30} GiB, "
            f"this machine has {have >> 30}: give fewer or shorter ones"
        )
