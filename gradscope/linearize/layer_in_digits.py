"""Slopes of a cell along given states in hundreds of digits: its own step, run and differentiated in them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from gradscope.cells.cell import Cell
from gradscope.cells.notation import NAMELESS
from gradscope.cells.units import Parameters
from gradscope.custom_types import Array
from gradscope.linearize import digits, levels
from gradscope.linearize.digits import NEAR, Number
from gradscope.linearize.digits_program import DigitsProgram
from gradscope.linearize.jacobians import slopes
from gradscope.product_svd.ball_product import precision


class LayerInDigits:
    """Of one cell; see ``Digits``."""

    def __init__(self, cell: Cell, parameters: Parameters, inputs: Array, states: Array, read: bool) -> None:
        self._cell, self._read = cell, read
        self._weights = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
        self._inputs, self._states = inputs, states
        shapes = (
            {name: _shape(value) for name, value in self._weights.items()},
            *map(_shape, (inputs[0], states[0])),
        )
        self._advance = DigitsProgram(cell.advance, *shapes)
        self._slopes = DigitsProgram(partial(_slopes if cell.units is not None else _dense, cell), *shapes)
        self._found: dict[int, dict[str, Any]] = {}

    def paths(self, bits: int) -> dict[str, Any]:
        """See ``Digits``: {"own": paths, "input": slopes by the input, where it is ``read``}."""
        if bits not in self._found:
            with precision(bits):
                self._found[bits] = self._computed()
        return self._found[bits]

    @property
    def operations(self) -> int:
        """See ``Digits``."""
        return len(self._inputs) * (self._advance.operations + self._slopes.operations)

    def _computed(self) -> dict[str, Any]:
        weights = {name: digits.exact_numbers(value) for name, value in self._weights.items()}
        every = [jax.tree.map(_balls, self._slopes(weights, x, state)) for x, state in self._along(weights)]
        own, entering = jax.tree.map(lambda *steps: np.stack(steps), *every)
        return {"own": own, "input": entering if self._read else {}}

    def _along(self, weights: Any) -> Iterator[tuple[Array, Array]]:
        """Inputs and states before every step."""
        state = digits.at_levels(*levels.beside_level(self._cell, self._states[0]))
        for t, x in enumerate(map(digits.exact_numbers, self._inputs)):
            yield x, state
            if t + 1 < len(self._inputs):
                made = self._advance(weights, x, state)
                state = np.frompyfunc(_refined, 2, 1)(made, self._states[t + 1])


def _refined(made: Number, state: float) -> Number:
    """A state as a step made it, where that is near a level; else as the trajectory has it."""
    near = made.rest is None or abs(float(made.rest.mid())) < NEAR
    return made if near and abs(float(made) - state) < NEAR else digits.exact_number(state)


def _balls(numbers: Array) -> Array:
    """As balls alone."""
    return np.asarray(np.frompyfunc(lambda one: one.ball, 1, 1)(numbers))


def _shape(value: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(value), np.float64)  # type: ignore[no-untyped-call]


def _slopes(cell: Cell, weights: Any, x: Any, state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    own, entering, *_ = slopes(cell, weights, x, state)
    return own, entering


def _dense(cell: Cell, weights: Any, x: Any, state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every path's Jacobian (m, m), and that by the input (m, d)."""
    by_input, by_path = jax.jacrev(partial(cell.step, weights), argnums=(0, 1))(x, cell.copies(state))
    return (by_path if cell.paths else {NAMELESS: by_path}), {"input": by_input}
