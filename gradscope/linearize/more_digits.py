"""Slopes along given states with as many digits as are wanted, computed where somebody asks.

The states are those of the trajectory, as they are in its dtype; what they have beside levels is carried from
each to the next (as in ``anew``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.cells.cell import Cell
from gradscope.cells.factors import own
from gradscope.custom_types import Array
from gradscope.linearize.anew import in_float64, layers_along
from gradscope.linearize.wide import UnknownOperationError
from gradscope.product_svd.steps import UnknownDigitsError

if TYPE_CHECKING:
    from gradscope.linearize.layer_in_digits import LayerInDigits


class Digits:
    """``paths`` as of ``linearize``, of steps from the first on, with as many digits as are wanted.

    inputs : (T, d); states : (T + 1, m); between : layers of a stack of which slopes by the input are wanted
    too.
    """

    def __init__(
        self,
        cell: Cell,
        parameters: Mapping[str, Array],
        inputs: Array,
        states: Array,
        between: Collection[str],
    ) -> None:
        self._given = cell, parameters, inputs, states
        self._between = between

    @cached_property
    def _layers(self) -> dict[str, LayerInDigits]:
        """Traced where anybody asks."""
        from gradscope.linearize.layer_in_digits import LayerInDigits  # python-flint takes its time

        cell, parameters, inputs, states = self._given
        names = [member.name for member in cell.members] or [""]
        every = layers_along(cell, *in_float64(parameters, inputs, states))
        return {
            name: LayerInDigits(*one, name in self._between) for name, one in zip(names, every, strict=True)
        }

    @property
    def operations(self) -> float:
        """How many all of them take, about; infinite where a cell reads its Jacobians, which are rounded."""
        cell, parameters, *_ = self._given
        each = [member.own(parameters) for member in cell.members] or [dict(parameters)]
        if not all(map(own, each)):
            return math.inf
        return sum(layer.operations for layer in self._layers.values())

    def paths(self, bits: int) -> dict[str, Any]:
        """Arrays of balls, which are kept. Raises UnknownDigitsError."""
        try:
            found = {name: layer.paths(bits) for name, layer in self._layers.items()}
        except UnknownOperationError as error:
            raise UnknownDigitsError from error
        return found if self._given[0].members else found[""]["own"]


@dataclass(frozen=True)
class Some:
    """Those of one path: where they are among all, and which of them.

    keys : as in ``paths``; parts : indices, one after the other.
    """

    every: Digits
    keys: tuple[str, ...] = ()
    parts: tuple[Any, ...] = ()

    def at(self, *keys: str) -> Some:
        """Those under these names."""
        return replace(self, keys=(*self.keys, *keys))

    def part(self, index: Any) -> Some:
        """Some of the array."""
        return replace(self, parts=(*self.parts, index))

    def balls(self, bits: int) -> Array:
        """(T, ...), see ``Digits.paths``."""
        found: Any = self.every.paths(bits)
        for one in (*self.keys, *self.parts):
            found = found[one]
        return np.asarray(found)
