"""What runs: a recurrent cell driven by input sequences, and how it is run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from gradscope.cells.cell import Cell
from gradscope.custom_types import Array
from gradscope.errors import InputError


@dataclass(frozen=True)
class System:
    """A recurrent cell on a batch of input sequences, valid as it stands.

    hidden : units n; parameters : float64 arrays, keys and shapes as ``cell.parameters``.
    inputs : (B, T, d) float64, in the order in which the cell reads them; state : (B, m) float64, the states
        before the first step.
    lengths : (B,), how many steps of each sequence there are; None where all have T.
    direction : "backward" where the cell reads the sequences that it was given from their ends.
    dtype : what the forward pass and the Jacobians are computed in.
    mask : (B, T'), which of the steps that were given these are; the state stays as it is at the others.
        None where there are no others.
    states : (B, T + 1, m) in its dtype, those before and after every step where something else runs along the
        very same ones (a layer and its stack); None where every program may run on its own.
    rounding : relative, of given Jacobians, where it is coarser than that of ``dtype``.
    """

    cell: Cell
    hidden: int
    parameters: dict[str, Array]
    inputs: Array
    state: Array
    lengths: tuple[int, ...] | None = None
    direction: str = "forward"
    dtype: str = "float64"
    mask: Array | None = None
    states: Array | None = None
    rounding: float = 0.0

    @property
    def batch(self) -> int:
        """Input sequences B."""
        return int(self.inputs.shape[0])

    @property
    def steps(self) -> int:
        """Steps T, of the longest sequence."""
        return int(self.inputs.shape[1])

    @property
    def input_size(self) -> int:
        """Input features d."""
        return int(self.inputs.shape[2])

    @property
    def size(self) -> int:
        """States m."""
        return int(self.state.shape[1])

    @property
    def eps(self) -> float:
        """Relative rounding of the Jacobians' entries, about."""
        return max(float(np.finfo(self.dtype).eps), self.rounding)

    @property
    def output(self) -> slice:
        """Where in the state the outputs are, which layers above and a readout see."""
        return self.cell.output(self.hidden)

    @property
    def outputs(self) -> int:
        """Features that it puts out."""
        return int(self.output.stop - self.output.start)

    def length(self, sequence: int) -> int:
        """Steps of one sequence."""
        return self.lengths[sequence] if self.lengths else self.steps

    def part(self, sequences: slice | Sequence[int], steps: int | None = None) -> System:
        """Some sequences alone, which all have so many steps; of a slice no copy is made."""
        inputs, state = self.inputs[sequences, :steps], self.state[sequences]
        states = (
            None if self.states is None else self.states[sequences, : steps if steps is None else steps + 1]
        )
        return replace(self, inputs=inputs, state=state, lengths=None, mask=None, states=states)

    @property
    def given_steps(self) -> int:
        """Steps of what was given, of the longest sequence."""
        return self.steps if self.mask is None else int(self.mask.shape[1])

    def of_given(self, values: Array) -> Array:
        """Numbers (B, T', ...) of every step that was given, at those that are not masked, in its order."""
        if self.mask is not None:
            first = np.argsort(~self.mask, axis=1, kind="stable")[:, : self.steps]
            values = np.take_along_axis(values, first.reshape(*first.shape, *[1] * (values.ndim - 2)), axis=1)
        return self.as_given(values)

    def as_given(self, values: Array) -> Array:
        """Numbers (B, T, ...) of every step in the order that was given, or from that in its own."""
        return reversed_within(values, self.lengths) if self.direction == "backward" else values

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Within, JAX computes in its dtype, and what fails is laid to a user's cell."""
        with precise(self.dtype), blaming(self.cell, self.state.shape[1:]):
            yield


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
