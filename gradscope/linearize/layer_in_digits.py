"""Slopes of a cell along given states in hundreds of digits: its own step, run and differentiated in them."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import flint
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
from gradscope.product_svd.ball_product import precision, to_wide
from gradscope.product_svd.extended_range_array import Wide
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
        self._advance, self._slopes = _programs(cell, shapes, inputs.shape[1], states.shape[1])
        self._found: dict[int, dict[str, Any]] = {}

    def paths(self, bits: int) -> dict[str, Any]:
        """See ``Digits``: {"own": paths, "input": slopes by the input, where it is ``read``}."""
        if bits not in self._found:
            with precision(bits):
                self._found[bits], _ = self._computed()
        return self._found[bits]

    def wide(self) -> tuple[dict[str, Any], tuple[Array, Wide]]:
        """The same as ``Wide``; and what the last state is near, and has beside that.

        Raises UnknownDigitsError where a number has not all digits of a float64, an infinite one among them.
        """
        with precision(_SOME):
            balls, last = self._computed()
            near = np.array([float(one.whole) for one in last])
            return jax.tree.map(_sure, balls), (near, _sure(_rests(last)))

    @property
    def operations(self) -> int:
        """See ``Digits``."""
        return len(self._inputs) * (self._advance.operations + self._slopes.operations)

    def _computed(self) -> tuple[dict[str, Any], Array]:
        """Balls, and the last state."""
        weights = {name: digits.exact_numbers(value) for name, value in self._weights.items()}
        state, every = digits.at_levels(*levels.beside_level(self._cell, self._states[0])), []
        for x, after in zip(map(digits.exact_numbers, self._inputs), self._states[1:], strict=True):
            every.append(jax.tree.map(_balls, self._slopes(weights, x, state)))
            state = np.frompyfunc(_refined, 2, 1)(self._advance(weights, x, state), after)
        own, entering = jax.tree.map(lambda *steps: np.stack(steps), *every)
        return {"own": own, "input": entering if self._read else {}}, state


@lru_cache(maxsize=16)
def _programs(
    cell: Cell, weights: tuple[tuple[str, tuple[int, ...]], ...], input_size: int, size: int
) -> tuple[DigitsProgram, DigitsProgram]:
    """The step, and its slopes; traced once for parameters of such shapes."""
    shapes = {name: _shape(shape) for name, shape in weights}, _shape((input_size,)), _shape((size,))
    found = _slopes if cell.units is not None else _dense
    return DigitsProgram(cell.advance, *shapes), DigitsProgram(partial(found, cell), *shapes)


def _refined(made: Number, state: float) -> Number:
    """A state as a step made it, where that is near a level; else as the trajectory has it."""
    near = made.rest is None or abs(float(made.rest.mid())) < NEAR
    return made if near and abs(float(made) - state) < NEAR else digits.exact_number(state)


def _balls(numbers: Array) -> Array:
    """As balls alone."""
    return np.asarray(np.frompyfunc(lambda one: one.ball, 1, 1)(numbers))


def _rests(numbers: Array) -> Array:
    """What is beside their levels, as balls."""
    nothing = flint.arb(0)
    found = np.frompyfunc(lambda one: nothing if one.rest is None else one.rest, 1, 1)(numbers)
    return np.asarray(found)


def _sure(balls: Array) -> Wide:
    """Balls of which a float64 would have every digit."""
    if all(
        ball.is_finite() and (ball.is_exact() or ball.rel_accuracy_bits() >= _SURE) for ball in balls.flat
    ):
        return to_wide(balls)
    raise UnknownDigitsError


def _shape(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float64)  # type: ignore[no-untyped-call]


def _slopes(cell: Cell, weights: Any, x: Any, state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    own, entering, *_ = slopes(cell, weights, x, state)
    return own, entering


def _dense(cell: Cell, weights: Any, x: Any, state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every path's Jacobian (m, m), and that by the input (m, d)."""
    by_input, by_path = jax.jacrev(partial(cell.step, weights), argnums=(0, 1))(x, cell.copies(state))
    return (by_path if cell.paths else {NAMELESS: by_path}), {"input": by_input}
