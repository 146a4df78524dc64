"""The pictures there are, by their names, of a result or of one of its layers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradscope.errors import InputError, did_you_mean, listed, quoted

if TYPE_CHECKING:
    from gradscope.report.pictures.picture import Picture

# Name -> module:function, and whether it shows several layers side by side; of the others the whole is shown.
FIGURES: Mapping[str, tuple[str, bool]] = {
    "lag": ("lag:draw_lag", False),
    "layers": ("layers:draw_layers", True),
    "share": ("share:draw_share", False),
    "spectrum": ("spectrum:draw_spectrum", False),
    "heatmap": ("heatmap:draw_heatmap", False),
    "gates": ("gates:draw_gates", True),
    "eigenvalues": ("eigenvalues:draw_eigenvalues", True),
}

# The same of the rows of a grid (sweep), or of checkpoints (track).
FIGURES_OF_ROWS: Mapping[str, tuple[str, str]] = {
    "phase": ("phase:draw_phase", "gradscope/sweep/1"),
    "training": ("training:draw_training", "gradscope/track/1"),
}


def picture(result: Mapping[str, Any], name: str, size: str = "column", layer: str | None = None) -> Picture:
    """One of FIGURES, of the JSON of an analysis.

    size : see ``theme.size_of``; layer : by its name or as layer0, instead of the whole.
    Raises InputError for a name that is not known and for what the result does not tell.
    """
    from gradscope.report.pictures.parts import of_result, parts_of
    from gradscope.report.pictures.theme import size_of

    if name not in FIGURES:
        hint = did_you_mean(name, FIGURES) or f", expected one of {listed([*FIGURES])}"
        raise InputError(f"no picture is called {quoted(name)}{hint}")
    where, several = FIGURES[name]
    draw, measured = _function(where), size_of(size)
    with of_result():
        parts = dict(parts_of(result, layer))
        found: Picture = draw(parts if several else next(iter(parts.values())), measured)
    return found


def picture_of_rows(rows: Sequence[Mapping[str, Any]], name: str, size: str = "column") -> Picture:
    """One of FIGURES_OF_ROWS; raises InputError for an unknown name and for rows of something else."""
    from gradscope.report.pictures.parts import of_rows
    from gradscope.report.pictures.theme import size_of

    if name in FIGURES:
        raise InputError(f"{name} is drawn of a result, these are rows: they have {of_these(rows)}")
    if name not in FIGURES_OF_ROWS:
        hint = did_you_mean(name, FIGURES_OF_ROWS) or f", expected one of {listed([*FIGURES_OF_ROWS])}"
        raise InputError(f"no picture of rows is called {quoted(name)}{hint}")
    where, schema = FIGURES_OF_ROWS[name]
    if not rows or any(row.get("schema") != schema for row in rows):
        said = rows[0].get("schema") if rows else "none"
        own = f", of those {of_these(rows)}" if said in _OF_SCHEMA else ""
        raise InputError(f"the rows are {quoted(said)}, expected {schema}: {name} is drawn of these{own}")
    measured = size_of(size)
    with of_rows():
        return _function(where)(rows, measured)


_OF_SCHEMA = {schema: name for name, (_, schema) in FIGURES_OF_ROWS.items()}


def of_these(rows: Sequence[Mapping[str, Any]]) -> str:
    """The picture that there is of rows; of those of something else any, which says so."""
    return _OF_SCHEMA.get(str(rows[0].get("schema")), next(iter(FIGURES_OF_ROWS)))


def _function(where: str) -> Callable[..., Picture]:
    module, _, function = where.partition(":")
    found: Callable[..., Picture] = getattr(
        importlib.import_module(f"gradscope.report.pictures.{module}"), function
    )
    return found
