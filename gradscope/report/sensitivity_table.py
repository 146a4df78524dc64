"""How the gain changes with every parameter, as a table to be read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from gradscope.errors import counted
from gradscope.report.page import headed, note, section

if TYPE_CHECKING:
    from gradscope.measure.sensitivity import Sensitivity

_WORDS = (
    "decades of gain: elasticity for a parameter ten times as large, at this rate; all + 1 for 1 added to "
    "every entry; norm of the derivative, per unit; error of the elasticity. Signs are of small changes: the "
    "states move with them"
)


def sensitivity_sections(found: Sensitivity) -> Iterable[RenderableType]:
    """The sections of a sensitivity, and of that of a loss."""
    told = found.to_dict()
    yield section("Sensitivity: how log10 gain changes with", Group(_rows(told), note(_WORDS), _where(found)))
    yield from _windows(told)
    if found.loss:
        yield section("Sensitivity of the loss: how log10 |dL/ds_0| changes with", _rows(told["loss"]))
        yield from _windows(told["loss"])


def _windows(told: Mapping[str, Any]) -> Iterable[RenderableType]:
    if "windowed" in told:
        windows = f"windows of {counted(told['window'], 'step')}"
        title = f"Beside it, not of the whole: {windows}, states before each held"
        yield section(title, _rows({"total": told["windowed"], "gates": {}}))


def _where(found: Sensitivity) -> RenderableType:
    return note(
        f"a relative change of one Jacobian changes the gain at most {found.condition:.3g} times as much, at "
        f"step {found.condition_step}; through the states a change of one of them counts at most "
        f"{found.largest_adjoint:.3g} (max |p|)"
    )


def _rows(told: Mapping[str, Any]) -> RenderableType:
    table = headed("parameter", *_COLUMNS)
    for name, row in told["total"].items():
        table.add_row(name, *_cells(row))
    if len(told["gates"]) > 1:
        for gate, row in told["gates"].items():
            table.add_row(f"gate {gate}", *_cells(row))
    return table


_COLUMNS = {
    "elasticity": ("elasticity", "+.3g"),
    "all + 1": ("shift", "+.3g"),
    "norm": ("norm", ".3g"),
    "error": ("elasticity_error", ".0e"),
}


def _cells(row: Mapping[str, float]) -> list[str]:
    values = [(row.get(key), form) for key, form in _COLUMNS.values()]
    return [
        "" if value is None else "lost" if math.isnan(value) else f"{value:{form}}" for value, form in values
    ]
