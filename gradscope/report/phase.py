"""Rows of a grid as arrays: what is measured over one or two numeric axes, and what theory expects there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError, shown
from gradscope.report.gain_words import gain_lost
from gradscope.report.row_training import Row, part_of

Point = tuple[float, float]

# Drawn anew they are the same question: of them the median counts.
_REPEATED = ("seed",)
# Phases that are told of one grid, at most.
MOST_PHASES = 12


@dataclass(frozen=True)
class Shown:
    """What is shown of every point: a rate, which may be zero, or a part that is none.

    part : of the row it is in, "" for the row itself; name : its name there; words : with its unit.
    """

    part: str
    name: str
    words: str

    @property
    def is_rate(self) -> bool:
        """Whether it has a sign, and a line where that changes."""
        return self.name == "rate"


RATE = Shown("", "rate", "rate, nats per step")
_UNDER_MASKS = Shown("masks", "rate", "rate under masks, nats per step")
# What an axis changes, where that is not the rate.
_CHANGED = {
    "clip": Shown("loss.clip", "factor", "part of the gradient's norm that clipping leaves"),
    "tbptt": Shown("loss.tbptt", "bias", "bias of truncated BPTT, |G - G_K| / |G|"),
}


def shown_quantity(rows: Sequence[Row]) -> Shown:
    """What the axes of these rows change."""
    axes = axes_in(rows)
    changed = [quantity for axis, quantity in _CHANGED.items() if axis in axes]
    masked = any(row.get("masks") for row in rows)
    return changed[0] if changed else _UNDER_MASKS if masked else RATE


@dataclass(frozen=True)
class Phase:
    """Part of a grid: all points over its numeric axes, the others being as ``title`` says.

    quantity : what is shown; x, y : the names of the axes, y "" where there is one alone; xs, ys : their
    values, rising.
    value, log10_norm, theory : (len(ys), len(xs)), NaN where nothing is known, -inf where no gradient gets
    through; value is that of the quantity, theory that of RATE. level : verdicts, "" where nothing was
    measured. of : how many points the numbers are medians of.
    """

    quantity: Shown
    title: str
    x: str
    y: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    value: Array
    log10_norm: Array
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


def _written(values: Sequence[Any]) -> dict[Any, str]:
    """The values of an axis as pictures name them: files without folders, where that tells them apart."""
    whole = {value: str(value) for value in values}
    last = {value: text.rpartition("/")[2] for value, text in whole.items()}
    return last if len({*last.values()}) == len(last) else whole


def _numeric(values: Mapping[Any, None]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def phases(rows: Sequence[Row]) -> list[Phase]:
    """A Phase for every combination of what is not on its axes; none where no axis is numeric.

    Raises InputError for rows of several grids, or calls.
    """
    _check_one_grid(rows)
    axes = axes_in(rows)
    numeric = [
        name for name, values in axes.items() if _numeric(dict.fromkeys(values)) and name not in _REPEATED
    ]
    wide = [name for name in numeric if len(axes[name]) > 1]
    if not wide:
        return []
    x, y = wide[0], (wide[1] if len(wide) > 1 else "")
    quantity = shown_quantity(rows)
    apart: dict[str, list[Row]] = {}
    written = {name: _written(axes[name]) for name in axes if name not in (x, y, *_REPEATED)}
    for row in rows:
        others = {name: value for name, value in row["settings"].items() if name in written}
        several = ", ".join(
            f"{name}={written[name][value]}" for name, value in others.items() if len(axes[name]) > 1
        )
        apart.setdefault(several, []).append(row)
    xs, ys = axes[x], axes[y] if y else [0.0]
    return [_phase(quantity, title, (x, y), (xs, ys), some) for title, some in apart.items()]


def _check_one_grid(rows: Sequence[Row]) -> None:
    """Raise InputError for rows of several grids, or of one that was asked in several ways."""
    way = "give each call a file of its own, or look at all rows by --format csv"
    grids = dict.fromkeys(tuple(sorted(row["settings"])) for row in rows)
    if len(grids) > 1:
        names = "; ".join(shown(", ".join(grid)) for grid in [*grids][:3])
        raise InputError(f"the rows are of {len(grids)} grids ({names}), expected one: {way}")
    points = Counter(tuple(sorted(row["settings"].items())) for row in rows)
    if points and (most := points.most_common(1)[0])[1] > 1:
        name = shown(", ".join(f"{axis}={value}" for axis, value in most[0]))
        raise InputError(
            f"{most[1]} rows are of the point {name}, asked with other options or by another version: {way}"
        )


def _phase(
    quantity: Shown,
    title: str,
    names: tuple[str, str],
    values: tuple[Sequence[float], Sequence[float]],
    rows: Sequence[Row],
) -> Phase:
    (x, y), (xs, ys) = names, values
    cells: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        at = (ys.index(row["settings"][y]) if y else 0, xs.index(row["settings"][x]))
        cells.setdefault(at, []).append(row)
    value, log10_norm, theory = (np.full((len(ys), len(xs)), np.nan) for _ in range(3))
    level = np.full((len(ys), len(xs)), "", dtype=object)
    for at, some in cells.items():
        known = [row for row in some if isinstance(row.get("verdict"), str)]
        parts = [part_of(row, quantity.part) for row in known]
        gains = parts if quantity.is_rate else known
        value[at] = _median([_number(part, quantity.name) for part in parts])
        log10_norm[at] = _median([_number(gain, "log10_norm") for gain in gains])
        if quantity == RATE:
            theory[at] = _median([_number(row, "theory_rate") for row in known])
        level[at] = _middle(gains)
    numbers = (value, log10_norm, theory, level)
    return Phase(
        quantity,
        title,
        x,
        y,
        tuple(map(float, xs)),
        tuple(map(float, ys)),
        *numbers,
        max(map(len, cells.values())),
    )


def _number(row: Row, name: str) -> float:
    """Of a gain that is exactly zero -inf: its logarithm is null, as of one that is lost."""
    value = row.get(name)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    zero = name in row and name in ("rate", "log10_norm") and not gain_lost(row)
    return -math.inf if zero else math.nan


def _median(values: Sequence[float]) -> float:
    known = sorted(value for value in values if not math.isnan(value))
    if not known:
        return math.nan
    low, high = known[(len(known) - 1) // 2], known[len(known) // 2]
    return low if low == high else (low + high) / 2


def _middle(rows: Sequence[Row]) -> str:
    """The verdict on the row in the middle by its gain."""
    ordered = sorted(rows, key=lambda row: _number(row, "log10_norm"))
    return str(ordered[len(ordered) // 2].get("verdict") or "") if ordered else ""


def curves_of(found: Sequence[Phase]) -> list[tuple[str, Array]]:
    """(name, (len(xs),) values) along one axis, those of theory last; none where no number is known."""
    lines = [(_called(phase), phase.value[0]) for phase in found]
    lines += [
        (f"theory{f' ({phase.title})' if phase.title else ''}", phase.theory[0])
        for phase in found
        if np.isfinite(phase.theory).any()
    ]
    return lines if any(np.isfinite(values).any() for _, values in lines) else []


def _called(phase: Phase) -> str:
    """The name of a curve; one that nobody sees says why."""
    name = phase.title or "measured"
    if phase.failed.all():
        return f"{name}: not measured"
    return name if np.isfinite(phase.value).any() else f"{name}: no gradient gets through"


def places_along(xs: Sequence[float]) -> Array:
    """(len(xs),) places along an axis: the values, or their log10 where they rise by equal factors."""
    values = np.array(xs, np.float64)
    if len(values) < 3 or values[0] <= 0:
        return values
    logs = np.log10(values)
    return logs if np.ptp(np.diff(logs)) < 1e-6 * np.ptp(logs) else values


# -- lines of one height ------------------------------------------------------------------------------

MEASURED, THEORY = "measured", "theory"


def zero_lines(phase: Phase) -> dict[str, list[list[Point]]]:
    """{MEASURED, THEORY: the lines on which that rate is zero}, where there are any."""
    if not phase.quantity.is_rate:
        return {}
    found = {MEASURED: contour(phase.value), THEORY: contour(phase.theory)}
    return {name: lines for name, lines in found.items() if lines}


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
