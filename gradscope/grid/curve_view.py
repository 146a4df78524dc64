"""A grid of one numeric axis in the terminal: what it changes as a curve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich.text import Text

from gradscope.custom_types import Array
from gradscope.errors import shown
from gradscope.report.lag_view import COLOURS, LETTERS, Canvas
from gradscope.report.phase import Phase, curves_of, places_along
from gradscope.report.pictures.axis import Axis, spread
from gradscope.report.terminal import Terminal

# Rows of the plot, and between two numbers beside it.
_ROWS, _ROWS_APART = 14, 4


def drawn(found: Sequence[Phase], terminal: Terminal) -> Text | None:
    """The curves; None where there are more than letters for them, fewer than two values, or no number."""
    lines = curves_of(found)
    if not 0 < len(lines) <= len(LETTERS) or len(found[0].xs) < 2:
        return None
    known = np.concatenate([values[np.isfinite(values)] for _, values in lines])
    y = Axis(*spread([*known, 0.0], 1e-3), _ROWS, 0)
    beside = {min(int(y.at(tick)), _ROWS - 1): f"{tick:g}" for tick in y.ticks(_ROWS_APART)}
    margin = max(map(len, beside.values())) + 1
    canvas = Canvas(terminal.width - margin - 1, _ROWS, terminal.unicode)
    canvas.across(y.at(0.0), "0")
    for number, (_, values) in reversed([*enumerate(lines)]):
        canvas.draw(number, _heights(found[0].xs, values, y, canvas.dots_across))
    for number in reversed(range(len(lines))):
        canvas.letter(number, len(lines))
    text = Text(no_wrap=True)
    edge = "│" if terminal.unicode else "|"
    for row, drawn_row in enumerate(canvas.texts()):
        text += Text(beside.get(row, "").rjust(margin - 1) + edge) + drawn_row + "\n"
    text.append(" " * margin + _below(found[0].xs, canvas.width) + "\n")
    for number, (name, _) in enumerate(lines):
        text.append(f"{LETTERS[number]} {shown(name)}\n", style=COLOURS[number])
    text.rstrip()
    return text


def _heights(xs: Sequence[float], values: Array, y: Axis, dots: int) -> Array:
    """Rows from the top at every column of dots, NaN between values one of which is not known."""
    rows = [y.at(value) if np.isfinite(value) else np.nan for value in values.tolist()]
    places = places_along(xs)
    return np.asarray(np.interp(np.linspace(places[0], places[-1], dots), places, rows))


def _below(xs: Sequence[float], width: int) -> str:
    """The values under their columns, as many as fit."""
    line = ""
    for start, label in _labels(xs, width):
        if not line or start > len(line):
            line = line.ljust(start) + label
    return line


def _labels(xs: Sequence[float], width: int) -> Iterator[tuple[int, str]]:
    places = places_along(xs)
    for place, value in zip(places, xs, strict=True):
        label = f"{value:.4g}"
        middle = round((place - places[0]) / (places[-1] - places[0]) * (width - 1))
        yield min(max(middle - len(label) // 2, 0), width - len(label)), label
