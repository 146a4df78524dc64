"""Rows as one HTML page: the picture of them, and their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradscope.errors import InputError, counted, quoted, shown
from gradscope.report.gain_words import gain_in_row, gains_by_lag, number_in
from gradscope.report.html_page import document
from gradscope.report.html_text import folded, listing, origin_section, table, titled, unbroken
from gradscope.report.html_words import explained
from gradscope.report.pictures.figures import FIGURES_OF_ROWS, picture_of_rows
from gradscope.report.pictures.parts import of_rows
from gradscope.report.pictures.svg import element, escaped
from gradscope.report.row_training import said_of_column, training_columns
from gradscope.report.verdict import scientific

# Rows of the table of exact numbers; sentences about rows without any.
_ROWS, _LOST = 512, 12
# Of the table of gains by lag: rows and lags.
_CURVES, _LAGS = 128, 48
_OF_GRID = (
    "Where the rate is near 0 (the line, where there is one) a gradient neither vanishes nor explodes. "
    "gradscope analyze with the options of a point shows which path carries it there.",
)
_OF_RUN = (
    "What lies further back than the horizon has next to no part in what is learned at that step. gradscope "
    "report of that checkpoint shows where the gradient is lost, and which path carries it.",
)
_NUMBERS = (("rate", "+.5f"), ("theory_rate", "+.5f"), ("horizon", "g"), ("saturated", ".3f"))
_SUBJECTS = ("point", "checkpoint")


def rows_page(rows: Sequence[Mapping[str, Any]], origin: Mapping[str, str] = {}) -> str:
    """The page of the rows of a sweep, or of track; raises InputError for rows of something else.

    origin : what else there is to say of where they came from, such as the command.
    """
    schema = rows[0].get("schema") if rows else None
    names = [name for name, (_, known) in FIGURES_OF_ROWS.items() if known == schema]
    if not names:
        raise InputError(f"the rows are {quoted(schema)}, expected those of gradscope sweep or track")
    counts = Counter(str(row.get("verdict") or "not measured") for row in rows)
    subjects = dict.fromkeys(str(row["subject"]) for row in rows if row.get("subject"))
    told = ", ".join(f"{count} {level}" for level, count in counts.most_common())
    many = "points" if schema == FIGURES_OF_ROWS["phase"][1] else "checkpoints"
    count = counted(len(rows), many.removesuffix("s"))
    title = f"{count}{f' of {next(iter(subjects))}' if len(subjects) == 1 else ''}: {told}"
    lost = [f"{_called(row)}: {row['error']}" for row in rows if row.get("error")]
    figures = [_figure(rows, name) for name in names]
    with of_rows():
        numbers = _table(rows)
        drawn = any("<svg" in figure for figure in figures)  # else the numbers are all there is
        tables = [folded("Exact numbers", numbers) if drawn else numbers, _by_lag(rows)]
    parts = [
        element("h1", escaped(title)),
        listing(lost[:_LOST]),
        titled("Next"),
        listing(_OF_GRID if many == "points" else _OF_RUN),
        *figures,
        *tables,
        explained(("verdict", "gain", "rate", "horizon")),
        origin_section(origin),
    ]
    return document(title, f"Gain and horizon over {many}, their pictures and exact numbers.", parts)


def _called(row: Mapping[str, Any]) -> str:
    return shown(next((row[name] for name in _SUBJECTS if row.get(name)), ""))


def _figure(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    try:
        drawn = picture_of_rows(rows, name, "page")
    except InputError as error:
        return element("p", escaped(f"No picture: {error.in_shell}."), class_="quiet")
    caption = element("figcaption", unbroken(drawn.said))
    return element("figure", titled(drawn.title), drawn.svg(name, inside=True), caption, class_="large")


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    shown_rows = rows[:_ROWS]
    columns = [one for one in _NUMBERS if any(isinstance(row.get(one[0]), int | float) for row in shown_rows)]
    training = training_columns(shown_rows)
    cells = [
        (
            _called(row),
            gain_in_row(row, "–"),
            *(number_in(row, name, form, "–") for name, form in columns),
            *(_of_training(name, values[place]) for name, values in training.items()),
            row.get("verdict") or "not measured",
        )
        for place, row in enumerate(shown_rows)
    ]
    headings = ("row", "gain", *(name.replace("_", " ") for name, _ in columns))
    headings = (*headings, *map(said_of_column, training), "verdict")
    more = f", the first {_ROWS} of {len(rows)}" if len(rows) > _ROWS else ""
    return table(f"Every row{more}", headings, cells)


def _by_lag(rows: Sequence[Mapping[str, Any]]) -> str:
    """The gain at every lag that rows keep, of some of them where there are many."""
    known = [row for row in rows if row.get("by_lag")]
    if not known:
        return ""
    some = [known[k] for k in np.unique(np.linspace(0, len(known) - 1, _CURVES).round().astype(int))]
    curves = [gains_by_lag(row) for row in some]
    lags = sorted({lag for curve in curves for lag in curve})[:_LAGS]
    cells = [
        (_called(row), *(curve.get(lag, "–") for lag in lags))
        for row, curve in zip(some, curves, strict=True)
    ]
    of = f", {len(some)} of {len(known)} rows" if len(some) < len(known) else ""
    return folded("Gain by lag", table(f"Gain by lag{of}", ("row", *map(str, lags)), cells))


def _of_training(name: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    return scientific(value) if name.endswith(("gradient", "norm")) else f"{value:.4g}"
