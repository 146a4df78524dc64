"""The gain by lag as large as the terminal: braille dots, or letters where there are none."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from gradscope.custom_types import Array
from gradscope.report.page import note, page, prose
from gradscope.report.pictures.axis import Axis
from gradscope.report.pictures.frame import power_of_ten
from gradscope.report.pictures.lag import Line, heights, lines_of, said_of, thresholds_of
from gradscope.report.pictures.parts import sentence
from gradscope.report.pictures.svg import short
from gradscope.report.sparkline import axis_below, crossings
from gradscope.report.terminal import Terminal

LETTERS = "abcdefgh"
# Contrast of at least 4 on black and on white; beside them every line has its letter.
COLOURS = ("bold", *(f"color({n})" for n in (63, 161, 28, 130, 30, 97, 242)))
# Rows that a plot has at least, and between two numbers beside it; columns between two letters of a line.
_LOWEST, _ROWS_APART, _LETTERS_APART = 8, 4, 24
# Columns that a line has of those that it shares, in its turn.
_TURN = 3
# The eight dots of a braille character, by column and row (Unicode 28xx).
_DOTS = np.array([[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]])


def render_lag_view(part: Mapping[str, Any], terminal: Terminal) -> str:
    """All chains and the loss by lag with the thresholds, as text; part : a result or a layer of it."""
    lines = lines_of(part)
    low, high = heights(part, lines)
    marks = _marks(part, lines[0])
    below: list[RenderableType] = [
        *_legend(lines, terminal),
        *(note(f"▲ lag {lag}: {begins}") for lag, begins in marks.items()),
    ]
    ends = [prose(Text(sentence(part))), *below, note(said_of(part, lines, (low, high), area=False))]
    taken = page(ends, terminal).count("\n")
    rows = max(terminal.height - taken - 4, _LOWEST)  # a heading, the axis with its numbers, the next prompt
    numbers = _numbers(low, high, rows)
    margin = max(map(len, numbers.values()), default=0) + 1
    canvas = Canvas(terminal.width - margin - 1, rows, terminal.unicode)
    lags = np.linspace(1, lines[0].lags[-1], canvas.dots_across)
    y = Axis(low, high, rows, 0)
    for name, value in thresholds_of(part).items():
        canvas.across(y.at(value), name)
    for number, line in reversed([*enumerate(lines)]):
        canvas.draw(number, _heights_at(lags, line, y))
    for number in reversed(range(len(lines))):
        canvas.letter(number, len(lines))
    edge = "│" if terminal.unicode else "|"
    heading = Text("gain, sigma_1 of the last k steps", style="dim")
    plot = [
        Text(numbers.get(row, "").rjust(margin - 1) + edge) + text for row, text in enumerate(canvas.texts())
    ]
    shown = np.linspace(1, lines[0].lags[-1], canvas.width).round()
    axis = [Text(" " * margin + text, style="dim") for text in axis_below(shown, [*marks])]
    return page([ends[0], heading, *plot, *axis, *ends[1:]], terminal)


def _heights_at(lags: Array, line: Line, y: Axis) -> Array:
    """Rows from the top, fractional, of a line at these lags; NaN beyond its ends."""
    known = np.isfinite(line.norms)
    if not known.any():
        return np.full(len(lags), np.nan)
    at, norms = line.lags[known], line.norms[known]
    found = np.array([y.at(value) for value in np.interp(lags, at, norms).tolist()])
    return np.where((lags >= at[0]) & (lags <= at[-1]), found, np.nan)


def _marks(part: Mapping[str, Any], full: Line) -> dict[int, str]:
    bounds = (part["thresholds"][key] for key in ("vanishing_below", "exploding_above"))
    return crossings(full.lags, full.norms, *bounds)


def _legend(lines: Sequence[Line], terminal: Terminal) -> Iterator[Text]:
    """Letters and names, as many on a row as fit."""
    row = Text()
    for number, line in enumerate(lines):
        entry = Text(f"{LETTERS[number]} {short(line.name)}   ", style=COLOURS[number])
        if row and len(row) + len(entry) > terminal.width:
            yield row
            row = Text()
        row += entry
    yield row


def _numbers(low: float, high: float, rows: int) -> dict[int, str]:
    """{row: the number beside it}."""
    y = Axis(low, high, rows, 0)
    return {
        min(int(y.at(value)), rows - 1): power_of_ten(value)
        for value in y.ticks(_ROWS_APART)
        if low <= value <= high
    }


@dataclass
class Canvas:
    """Characters, each of the lines that go through it: of several in turns, the last drawn first."""

    width: int
    rows: int
    unicode: bool

    def __post_init__(self) -> None:
        self._cell = np.zeros((self.rows, self.width), int)  # dots
        self._through: dict[tuple[int, int], list[int]] = {}
        self._behind: dict[tuple[int, int], str] = {}
        self._letters: dict[tuple[int, int], int] = {}
        self._across, self._down = (2, 4) if self.unicode else (1, 1)

    @property
    def dots_across(self) -> int:
        """Columns of dots."""
        return self.width * self._across

    def across(self, height: float, name: str) -> None:
        """A dotted line with its name, behind all others."""
        row = min(max(int(height), 0), self.rows - 1)
        words = f"{name} "
        for column in range(self.width):
            at = column - (self.width - len(words))
            character = words[at] if at >= 0 else "·" if self.unicode else "."
            self._behind[row, column] = character

    def draw(self, number: int, heights: Array) -> None:
        """A line by its height at every column of dots, each joined to the next, as far as it is inside."""
        before = np.nan
        for x, height in enumerate((heights * self._down).tolist()):
            if np.isnan(height):
                before = height
                continue
            start = height if np.isnan(before) else before
            first, last = sorted((int(start), int(height)))
            if first != last and start < height:
                first += 1
            elif first != last:
                last -= 1
            for dot in range(max(first, 0), min(last, self.rows * self._down - 1) + 1):
                self._dot(number, x, dot)
            before = height

    def letter(self, number: int, count: int) -> None:
        """The line's letter on it, every so many columns, and not where those of the others are."""
        first = int((number + 0.5) * _LETTERS_APART / count)
        for column in range(first, self.width, _LETTERS_APART):
            rows = [row for row in range(self.rows) if number in self._through.get((row, column), ())]
            if rows:
                self._letters[rows[len(rows) // 2], column] = number

    def texts(self) -> Iterator[Text]:
        """The rows, from the top."""
        for row in range(self.rows):
            text = Text(no_wrap=True)
            cells = (self._character(row, column) for column in range(self.width))
            for style, run in itertools.groupby(cells, key=lambda cell: cell[1]):
                text.append("".join(character for character, _ in run), style)
            yield text

    def _dot(self, number: int, x: int, y: int) -> None:
        row, column = y // self._down, x // self._across
        self._cell[row, column] |= _DOTS[x % self._across, y % self._down]
        through = self._through.setdefault((row, column), [])
        if number not in through:
            through.append(number)

    def _character(self, row: int, column: int) -> tuple[str, str]:
        through = self._through.get((row, column))
        if through is None:
            return self._behind.get((row, column), " "), "dim"
        owner = through[-1 - column // _TURN % len(through)]
        lettered = self._letters.get((row, column), None if self.unicode else owner)
        if lettered is not None:
            return LETTERS[lettered], f"{COLOURS[lettered]} reverse" if self.unicode else COLOURS[lettered]
        return chr(0x2800 + int(self._cell[row, column])), COLOURS[owner]
