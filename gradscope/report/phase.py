"""Rows of a grid as arrays: what is measured over one or two numeric axes, and what theory expects there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.custom_types import Array

Row = Mapping[str, Any]
# Drawn anew they are the same question: of them the median counts.
_REPEATED = ("seed",)
# Phases that are told of one grid, at most.
MOST_PHASES = 12


@dataclass(frozen=True)
class Phase:
    """Part of a grid: all points over its numeric axes, the others being as ``title`` says.

    x, y : the names of the axes, y "" where there is one alone; xs, ys : their values, rising.
    rate, log10_norm, horizon, theory : (len(ys), len(xs)), NaN where nothing is known, -inf where no gradient
    gets through; rate and theory in nats per step. level : verdicts, "" where nothing was measured.
    of : how many points the numbers are medians of.
    """

    title: str
    x: str
    y: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    rate: Array
    log10_norm: Array
    horizon: Array
    theory: Array
    level: Array
    of: int

    @property
    def failed(self) -> Array:
        """(len(ys), len(xs)), where there is a row and no number."""
        return np.asarray(self.level == "")


def axes_in(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """{axis: its values}, numbers rising, others in the order in which they come."""
    found: dict[str, dict[Any, None]] = {}
    for row in rows:
        for name, value in row["settings"].items():
            found.setdefault(str(name), {})[value] = None
    return {name: sorted(values) if _numeric(values) else list(values) for name, values in found.items()}


def _numeric(values: Mapping[Any, None]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def phases(rows: Sequence[Row]) -> list[Phase]:
    """A Phase for every combination of what is not on its axes; none where no axis is numeric."""
    axes = axes_in(rows)
    numeric = [
        name for name, values in axes.items() if _numeric(dict.fromkeys(values)) and name not in _REPEATED
    ]
    wide = [name for name in numeric if len(axes[name]) > 1]
    if not wide:
        return []
    x, y = wide[0], (wide[1] if len(wide) > 1 else "")
    apart: dict[str, list[Row]] = {}
    for row in rows:
        others = {name: value for name, value in row["settings"].items() if name not in (x, y, *_REPEATED)}
        several = ", ".join(f"{name}={value}" for name, value in others.items() if len(axes[name]) > 1)
        apart.setdefault(several, []).append(row)
    return [_phase(title, x, y, some) for title, some in apart.items()]


def _phase(title: str, x: str, y: str, rows: Sequence[Row]) -> Phase:
    axes = axes_in(rows)
    xs, ys = axes[x], axes[y] if y else [0.0]
    cells: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        at = (ys.index(row["settings"][y]) if y else 0, xs.index(row["settings"][x]))
        cells.setdefault(at, []).append(row)
    numbers = {
        name: np.full((len(ys), len(xs)), np.nan) for name in ("rate", "log10_norm", "horizon", "theory_rate")
    }
    level = np.full((len(ys), len(xs)), "", dtype=object)
    for at, some in cells.items():
        known = [row for row in some if isinstance(row.get("verdict"), str)]
        for name, array in numbers.items():
            array[at] = _median([_number(row, name) for row in known])
        level[at] = _middle(known)
    return Phase(
        title,
        x,
        y,
        tuple(map(float, xs)),
        tuple(map(float, ys)),
        numbers["rate"],
        numbers["log10_norm"],
        numbers["horizon"],
        numbers["theory_rate"],
        level,
        max(map(len, cells.values())),
    )


def _number(row: Row, name: str) -> float:
    """Of a gain that is exactly zero -inf: its logarithm is null."""
    value = row.get(name)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return -math.inf if name in ("rate", "log10_norm") else math.nan


def _median(values: Sequence[float]) -> float:
    known = sorted(value for value in values if not math.isnan(value))
    if not known:
        return math.nan
    low, high = known[(len(known) - 1) // 2], known[len(known) // 2]
    return low if low == high else (low + high) / 2


def _middle(rows: Sequence[Row]) -> str:
    """The verdict on the row in the middle by its gain."""
    ordered = sorted(rows, key=lambda row: _number(row, "log10_norm"))
    return str(ordered[len(ordered) // 2]["verdict"]) if ordered else ""


# -- lines of one height ------------------------------------------------------------------------------


Point = tuple[float, float]


def contour(values: Array) -> list[list[Point]]:
    """Lines on which values (h, w) are zero, as (column, row) in places of the grid: marching squares.

    Between two places by linear interpolation; through squares with a NaN no line is drawn, and of an
    infinite value its neighbour's size counts.
    """
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max()) if finite.size else 1.0
    bounded = np.where(np.isinf(values), np.sign(values) * largest, values)
    return _joined([piece for square in _squares(bounded) for piece in square])


def _squares(values: Array) -> list[list[tuple[Point, Point]]]:
    """The pieces of the lines in every square of four places."""
    height, width = values.shape
    found = []
    for i in range(height - 1):
        for j in range(width - 1):
            ring = [(j, i), (j + 1, i), (j + 1, i + 1), (j, i + 1)]
            heights = [float(values[row, column]) for column, row in ring]
            if any(math.isnan(one) for one in heights):
                continue
            met = [
                _between(ring[k], ring[k - 3], heights[k], heights[k - 3])
                for k in range(4)
                if (heights[k] < 0) != (heights[k - 3] < 0)
            ]
            if len(met) == 4 and (sum(heights) < 0) != (heights[0] < 0):
                met = [met[3], met[0], met[1], met[2]]  # the middle joins the corners on the other diagonal
            found.append([(met[k], met[k + 1]) for k in range(0, len(met), 2)])
    return found


def _between(a: Point, b: Point, u: float, v: float) -> Point:
    part = u / (u - v)
    return round(a[0] + part * (b[0] - a[0]), 9), round(a[1] + part * (b[1] - a[1]), 9)


def _joined(pieces: list[tuple[Point, Point]]) -> list[list[Point]]:
    """Pieces that meet at their ends as lines."""
    at: dict[Point, list[int]] = {}
    for number, piece in enumerate(pieces):
        for end in piece:
            at.setdefault(end, []).append(number)
    left, lines = dict(enumerate(pieces)), []

    def walk(line: list[Point]) -> None:
        while follows := [number for number in at[line[-1]] if number in left]:
            one, other = left.pop(follows[0])
            line.append(other if one == line[-1] else one)

    while left:
        line = list(left.pop(next(iter(left))))
        walk(line)
        line.reverse()
        walk(line)
        lines.append(line)
    return lines
