"""Slopes of a cell along given states in hundreds of digits: its own step, run and differentiated in them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import numpy as np

from gradscope.cells.cell import Cell
from gradscope.cells.notation import NAMELESS
from gradscope.cells.units import Parameters
from gradscope.custom_types import Array
from gradscope.linearize import levels
from gradscope.linearize.beside import NEAR
from gradscope.linearize.digits_program import DigitsProgram
from gradscope.linearize.jacobians import slopes
from gradscope.product_svd.ball_product import precision, to_wide
from gradscope.product_svd.extended_range_array import Wide
from gradscope.product_svd.scales import Number, balls, exactly, numbers
from gradscope.product_svd.steps import UnknownDigitsError

# Bits that leave a number those of a float64, but for what cancels.
_SOME, _SURE = 256, 55


class LayerInDigits:
    """Of one cell; see ``Digits``."""

    def __init__(self, cell: Cell, parameters: Parameters, inputs: Array, states: Array, read: bool) -> None:
        self._cell, self._read = cell, read
        self._weights = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
        self._inputs, self._states = inputs, states
        shapes = tuple((name, value.shape) for name, value in self._weights.items())
        self._step = _program(cell, read, shapes, inputs.shape[1], states.shape[1])
        self._found: tuple[int, dict[str, Any]] = 0, {}  # bits, and what was made of so many

    def paths(self, bits: int) -> dict[str, Any]:
        """See ``Digits``: {"own": paths, "input": slopes by the input, where it is ``read``}."""
        if bits != self._found[0]:
            self._found = 0, {}  # not both at once: numbers are large
            with precision(bits):
                self._found = bits, self._computed()[0]
        return self._found[1]

    def wide(self) -> tuple[dict[str, Any], tuple[Array, Wide]]:
        """The same as ``Wide``; and what the last state is near, and has beside that.

        Raises UnknownDigitsError where a number has not all digits of a float64, an infinite one among them.
        """
        with precision(_SOME):
            found, last = self._computed()
            near, _ = levels.beside_level(self._cell, last.astype(np.float64))
            return jax.tree.map(_sure, found), (near, _sure(last - numbers(near)))

    @property
    def operations(self) -> int:
        """See ``Digits``."""
        return len(self._inputs) * self._step.operations

    def _computed(self) -> tuple[dict[str, Any], Array]:
        """Slopes, and the last state, in numbers."""
        weights = {name: numbers(value) for name, value in self._weights.items()}
        state, every = numbers(self._states[0]), []
        near, _ = levels.beside_level(self._cell, self._states[1:])
        each = zip(map(numbers, self._inputs), self._states[1:], near, strict=True)
        for x, after, level in each:
            found, made = self._step(weights, x, state)
            every.append(found)
            state = np.frompyfunc(_refined, 3, 1)(made, after, level)
        return jax.tree.map(lambda *steps: np.stack(steps), *every), state


@lru_cache(maxsize=16)
def _program(
    cell: Cell, read: bool, weights: tuple[tuple[str, tuple[int, ...]], ...], input_size: int, size: int
) -> DigitsProgram:
    """The step with its slopes; traced once for parameters of such shapes."""
    shapes = {name: _shape(shape) for name, shape in weights}, _shape((input_size,)), _shape((size,))
    one = _units if cell.units is not None else _dense

    def step(weights: Any, x: Any, state: Any) -> tuple[dict[str, Any], Any]:
        own, entering, new = one(cell, weights, x, state)
        return {"own": own, "input": entering if read else {}}, new

    return DigitsProgram(step, *shapes)


def _refined(made: Number, state: float, level: float) -> Number:
    """A state as a step made it, where that is near a level; else as the trajectory has it."""
    found = float(made)
    near = abs(found - level) < NEAR and abs(found - state) < NEAR
    return made if near else exactly(state)


def _sure(found: Array) -> Wide:
    """Numbers of which a float64 would have every digit."""
    each = balls(found)
    if all(ball.is_finite() and (ball.is_exact() or ball.rel_accuracy_bits() >= _SURE) for ball in each.flat):
        return to_wide(each)
    raise UnknownDigitsError


def _shape(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float64)  # type: ignore[no-untyped-call]


def _units(cell: Cell, weights: Any, x: Any, state: Any) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Slopes by path and those by what the input enters, and the new state (m,)."""
    own, entering, _, new = slopes(cell, weights, x, state)
    return own, entering, new.ravel()


def _dense(cell: Cell, weights: Any, x: Any, state: Any) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Every path's Jacobian (m, m), and that by the input (m, d), and the new state (m,)."""

    def step(x: Any, copies: Any) -> tuple[Any, Any]:
        new = cell.step(weights, x, copies)
        return new, new

    (by_input, by_path), new = jax.jacrev(step, argnums=(0, 1), has_aux=True)(x, cell.copies(state))
    return (by_path if cell.paths else {NAMELESS: by_path}), {"input": by_input}, new
