"""A simple recurrent network whose slopes something else has computed: they are part of what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from gradscope.cells.cell import Cell, unit_cell
from gradscope.cells.factors import with_factors
from gradscope.cells.units import Parameters, Units

_SLOPE = "slope"


@dataclass(frozen=True)
class GivenSlopes(Units):
    """Units of h_t = d_t (W x_t + R h_(t-1) + b), which read (x_t, d_t)."""


def is_elman(cell: Cell) -> bool:
    """Whether h_t = phi(W x_t + R h_(t-1) + b), of any function phi."""
    units = cell.units
    return units is not None and units.weights == (("", "W"),) and units.paths == ("R",)


def reads_slopes(cell: Cell) -> bool:
    """Whether the cell, or a layer of the stack that it is, is one that ``given_slopes`` made."""
    return any(isinstance(one.cell.units, GivenSlopes) for one in cell.members) or isinstance(
        cell.units, GivenSlopes
    )


@cache
def given_slopes(cell: Cell, input_size: int) -> Cell:
    """The cell h_t = d_t (W x_t + R h_(t-1) + b), whose input (input_size + n,) is x_t and then d_t.

    Where d_t are the slopes of the Elman network ``cell`` its derivatives are that one's, at any state: the
    network goes along ``System.states``, through which these steps need not lead.

    Cached, so that what is compiled serves the next one like it.
    """
    units = cell.units
    assert units is not None

    def drive(params: Parameters, x: Any) -> dict[str, Any]:
        return {**units.drive(params, x[:input_size]), _SLOPE: x[input_size:]}

    def core(_: Any, pre: Mapping[str, Any], __: Any) -> Any:
        return (pre[_SLOPE] * pre[""],), {}

    known = GivenSlopes(units.gates, drive, units.weights, core)
    return with_factors(unit_cell(cell.name, known, cell.parameters, cell.components), cell.factors)
