"""What runs: a driven recurrent cell."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gradscope.cells.cell import Cell
from gradscope.custom_types import Array
from gradscope.errors import InputError


@contextlib.contextmanager
def precise(dtype: str) -> Iterator[None]:
    """Within, and in this thread alone, JAX computes in ``dtype`` and multiplies in no less."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        yield


def cast(parameters: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Parameters in ``dtype``; what JAX holds already stays as it is."""
    return {k: v if isinstance(v, jax.Array) else np.asarray(v, dtype) for k, v in parameters.items()}


@contextlib.contextmanager
def blaming(cell: Cell, shape: tuple[int, ...]) -> Iterator[None]:
    """Within, what fails is the step of a user's cell: it may in any way, and becomes an InputError."""
    try:
        yield
    except (Exception, SystemExit) as error:
        cells: list[tuple[Cell, tuple[int, ...]]] = [(one.cell, (one.size,)) for one in cell.members]
        cells = cells or [(cell, shape)]
        theirs = [one for one in cells if not one[0].step.__module__.startswith("gradscope.")]
        if not theirs or isinstance(error, InputError):
            raise
        cell, shape = theirs[0]
        raise InputError(
            f"cell {cell.name}: its step failed with {type(error).__name__}: {error}; expected a pure JAX "
            f"function (parameters, x, state) of states of shape {shape}"
        ) from error


def reversed_within(values: Array, lengths: Sequence[int] | None) -> Array:
    """Sequences (B, T, ...), each reversed within its own length; what is beyond it stays there.

    Its own inverse. lengths : (B,), None where all have T.
    """
    if lengths is None:
        return values[:, ::-1]
    turned = values.copy()
    for sequence, length in zip(turned, lengths, strict=True):
        sequence[:length] = sequence[:length][::-1]
    return turned
