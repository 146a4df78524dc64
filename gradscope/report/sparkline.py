"""Norms by lag, as lines of blocks on one logarithmic scale, with an axis below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradscope.custom_types import Array
from gradscope.product_svd.norm_by_lag import TIED
from gradscope.report.page import note
from gradscope.report.pictures.axis import Axis
from gradscope.report.terminal import Terminal
from gradscope.report.verdict import scientific

_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.,-=+*#"
_WIDEST, _NARROWEST = 100, 4
# Columns between two ticks, at least.
_APART = 10


def by_lag(
    rows: Mapping[str, tuple[Array, Array]],
    steps: int,
    terminal: Terminal,
    marks: Mapping[int, str] | None = None,
) -> RenderableType:
    """A line for each name: its first lag and value, blocks, its last value and lag; below, the lags.

    rows : {name, or "": lags (L,), the last of which is ``steps``, and log10 of the norms at them}.
    marks : {lag: what begins there}.
    """
    labels = [
        [name, f"lag {lags[0]}", scientific(float(norms[0])), scientific(float(norms[-1])), f"lag {steps}"]
        for name, (lags, norms) in rows.items()
    ]
    if _room(labels, terminal) < _NARROWEST:  # the axis has the lags too
        labels = [[name, "", first, last, ""] for name, _, first, last, _ in labels]
    width = max(min(_room(labels, terminal), steps, _WIDEST), 1)
    shown = 1 + np.linspace(0, steps - 1, width).round()
    lines = sparkline(np.concatenate([_at(shown, *row) for row in rows.values()]), terminal)
    grid = Table.grid(padding=(0, 1))
    for _ in range(5 + any(rows)):
        grid.add_column(no_wrap=True)
    for number, (name, lag, first, *last) in enumerate(labels):
        line = Text(lines[number * width : (number + 1) * width])
        grid.add_row(*[name] * any(rows), lag, first, line, *last)
    marks = marks or {}
    for below in axis_below(shown, list(marks)):
        grid.add_row(*[""] * (2 + any(rows)), Text(below, style="dim"), "", "")
    return Group(grid, *(note(f"▲ lag {lag}: {begins}") for lag, begins in marks.items()))


def _room(labels: Sequence[Sequence[str]], terminal: Terminal) -> int:
    """Columns that are left for the blocks."""
    taken = sum(max(map(len, column)) for column in zip(*labels, strict=True))
    return terminal.width - taken - 6 - any(name for name, *_ in labels)


def crossings(lags: Array, norms: Array, vanishing_below: float, exploding_above: float) -> dict[int, str]:
    """The lags from which on a gain is below the one threshold, or above the other."""
    found = {}
    for outside, words in (
        (norms < np.log10(vanishing_below) - TIED, f"below {vanishing_below:g}"),
        (norms > np.log10(exploding_above) + TIED, f"above {exploding_above:g}"),
    ):
        if outside.any():
            found[int(lags[np.argmax(outside)])] = words
    return found


def axis_below(shown: Array, marks: list[int]) -> list[str]:
    """A line with ticks and marks, and their lags below it; shown : (width,) lags of the columns.

    Ticks are at both ends and at round lags, each in the column next to it; without one where its number
    would meet another.
    """
    width = len(shown)
    line, numbers = ["─"] * width, [" "] * width
    for lag in dict.fromkeys([*shown[[0, -1]].tolist(), *_round_lags(shown)]):
        column, text = int(np.abs(shown - lag).argmin()), f"{lag:.0f}"
        start = min(max(0, column - len(text) // 2), max(0, width - len(text)))
        if all(character == " " for character in numbers[max(0, start - 1) : start + len(text) + 1]):
            numbers[start : start + len(text)] = text
            line[column] = "┴"
    for lag in marks:
        line[min(int(np.searchsorted(shown, lag)), width - 1)] = "▲"
    return ["".join(line), "".join(numbers[:width])]


def _round_lags(shown: Array) -> list[float]:
    """Those between the ends."""
    ends = (float(shown[0]), float(shown[-1]))
    return Axis(*ends, 0, len(shown) - 1).ticks(_APART, 1.0) if ends[1] > ends[0] else []


def _at(shown: Array, lags: Array, norms: Array) -> Array:
    """Norms at the lags shown: between two that are known, the one before."""
    found: Array = norms[np.maximum(np.searchsorted(lags, shown, side="right") - 1, 0)]
    return found


def sparkline(values: Array, terminal: Terminal) -> str:
    """A block for every value, between the lowest and the highest; a space where it is not finite."""
    blocks = _BLOCKS if terminal.unicode else _ASCII_BLOCKS
    finite = values[np.isfinite(values)]
    if not len(finite):
        return " " * len(values)
    low, span = finite.min(), np.ptp(finite)
    if span < 1e-9:
        return "".join(blocks[len(blocks) // 2] if np.isfinite(v) else " " for v in values)
    ranks = (values - low) / span * (len(blocks) - 1)
    return "".join(blocks[round(rank)] if np.isfinite(rank) else " " for rank in ranks.tolist())
