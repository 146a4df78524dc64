"""Rows as a table that grows: lines of fixed columns, and at the end the course of every number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from gradscope.errors import counted, shown
from gradscope.gate.budgets import Check
from gradscope.gate.checks_table import OUTCOMES
from gradscope.report.gain_words import gain_in_row, number_in
from gradscope.report.page import page, section
from gradscope.report.row_training import said_in_column, said_of_column, training_columns, value_of
from gradscope.report.sparkline import sparkline
from gradscope.report.table import STYLES
from gradscope.report.terminal import Terminal
from gradscope.rows.journal import Row
from gradscope.track.tracked import checks_in

# Characters of a name, at least and at most.
_NAME, _LONGEST_NAME = 10, 48
# Paths whose shares are drawn.
_PATHS = 4


@dataclass(frozen=True)
class Column:
    """A column: its heading, how wide it is, and what stands in it."""

    heading: str
    width: int
    cell: Callable[[Row], str]


def _number(name: str, form: str) -> Callable[[Row], str]:
    return lambda row: number_in(row, name, form)


def _carrier(row: Row) -> str:
    shares = {name: share for name, share in (row.get("shares") or {}).items() if share is not None}
    if not shares:
        return "-"
    name = max(shares, key=lambda path: abs(shares[path]))
    return f"{shown(name)[:9]} {100 * shares[name]:.0f} %"


def _settled(row: Row) -> str:
    return {True: "yes", False: "no"}.get(row.get("converged"), "-")  # type: ignore[arg-type]


def _level(row: Row) -> str:
    return str(row.get("verdict") or "-")


_ALWAYS = (Column("gain", 9, gain_in_row), Column("horizon", 7, _number("horizon", "g")))
_WHERE_ROOM = (Column("rate", 8, _number("rate", "+.4f")),)
_WHOLE = (Column("carried by", 14, _carrier), Column("saturated", 9, _number("saturated", ".1%")))
_LIGHT = (Column("settled", 7, _settled),)
_LAST = Column("verdict", 10, _level)


def _of_training(name: str) -> Column:
    """A column of what training makes of the gradient; as wide as its heading and its longest number."""
    heading = said_of_column(name)
    return Column(heading, max(len(heading), 9), lambda row: said_in_column(name, value_of(row, name)))


def table_of_rows(rows: Sequence[Row], *, light: bool, training: Sequence[str]) -> dict[str, list[str]]:
    """Heading and cells of every column."""
    more = map(_of_training, training)
    columns = (*_ALWAYS, *_WHERE_ROOM, *more, *(_LIGHT if light else _WHOLE), _LAST)
    return {one.heading: [one.cell(row) for row in rows] for one in columns}


class TrackTable:
    """Lines for a terminal, one by one.

    names : of all checkpoints; light : whether gain and horizon alone are known; training : the columns
    that were asked for besides, which go before those that always are.
    """

    def __init__(
        self,
        names: Sequence[str],
        terminal: Terminal,
        *,
        light: bool = False,
        training: Sequence[str] = (),
    ) -> None:
        self._terminal = terminal
        folder = os.path.commonpath([os.path.dirname(name) for name in names]) if _relative(names) else ""  # noqa: PTH120
        self.folder = folder
        suffixes = {os.path.splitext(name)[1] for name in names}  # noqa: PTH122
        self._suffix = suffixes.pop() if len(suffixes) == 1 else ""
        columns = [*_ALWAYS]
        longest = min(max((len(self._called(name)) for name in names), default=0), _LONGEST_NAME)
        for more in (*map(_of_training, training), *_WHERE_ROOM, *(_LIGHT if light else _WHOLE)):
            if _total([*columns, more]) + max(_NAME, longest) <= terminal.width:
                columns.append(more)
        self._columns = [*columns, _LAST]
        self._name = max(_NAME, min(longest, terminal.width - _total(columns)))

    def head(self, said: str) -> str:
        """What is tracked, and the headings."""
        many, separator, how = said.partition("; ")
        said = f"{many} in {shown(self.folder)}{separator}{how}" if self.folder else said
        cells = [Text("checkpoint".ljust(self._name))]
        cells += [Text(f"{one.heading:>{one.width}}") for one in self._columns]
        rule = "─" * (self._name + sum(one.width + 1 for one in self._columns))
        return page([Text(said), Text(" ").join(cells), Text(rule, style="dim")], self._terminal)

    def line(self, row: Row) -> str:
        """A row, and below it what of it breaks a budget."""
        name = _fit(self._called(row["checkpoint"]), self._name, self._terminal)
        if error := row.get("error"):
            failed = Text("not read", style=OUTCOMES["BROKEN"])
            return page([Text.assemble(f"{name:{self._name}} ", failed, f": {shown(error)}")], self._terminal)
        cells = [Text(f"{name:{self._name}}")]
        not_kept = [one for one in checks_in(row) if one.outcome in ("error", "warning", "unmeasured")]
        for one in self._columns:
            text = one.cell(row)
            cells.append(Text(f"{text:>{one.width}}", style=STYLES.get(text, "")))
        return page([Text(" ").join(cells), *map(_broken, not_kept)], self._terminal)

    def foot(self, rows: Sequence[Row]) -> str:
        """The course of each number over the rows that were measured."""
        measured = [row for row in rows if not row.get("error")]
        courses = [one for one in _courses(measured) if sum(value is not None for value in one[1]) > 1]
        if not courses:
            return ""
        wide = max(len(label) for label, _, _ in courses)
        lines = [self._course(*one, wide) for one in courses]
        return page(
            [section(f"Over {counted(len(measured), 'checkpoint')}", Text("\n").join(lines))], self._terminal
        )

    def _called(self, name: str) -> str:
        return shown(os.path.relpath(name, self.folder) if self.folder else name).removesuffix(self._suffix)

    def _course(self, label: str, values: Sequence[float | None], digits: str, wide: int) -> Text:
        known = np.array([np.nan if value is None else value for value in values], float)
        finite = known[np.isfinite(known)]
        first, last = (format(finite[at], digits) for at in (0, -1))
        room = max(1, self._terminal.width - wide - _AROUND)
        some = np.linspace(0, len(known) - 1, min(room, len(known))).round().astype(int)
        return Text(f"{label:{wide}} {first:>9} {sparkline(known[some], self._terminal)} {last}")


# Characters beside the blocks of a course: its first and last value, and what is between them.
_AROUND = 22


def _courses(rows: Sequence[Row]) -> Iterator[tuple[str, list[float | None], str]]:
    """Every number over the rows: what it is called, its values, and how they are written."""
    yield "log10 gain", [row.get("log10_norm") for row in rows], ".2f"
    yield "rate", [row.get("rate") for row in rows], "+.4f"
    yield "horizon", [row.get("horizon") for row in rows], "g"
    names = dict.fromkeys(name for row in rows for name in row.get("shares") or {})
    shares = {name: [(row.get("shares") or {}).get(name) for row in rows] for name in names}
    size = {name: max((abs(v) for v in each if v is not None), default=0.0) for name, each in shares.items()}
    for name in shares:
        if name in sorted(size, key=lambda name: -size[name])[:_PATHS]:
            yield f"share {shown(name)}"[:16], shares[name], "z.0%"
    yield "saturated", [row.get("saturated") for row in rows], ".1%"
    for name, values in training_columns(rows).items():
        if name in _COURSES:
            label, digits = _COURSES[name]
            yield label, values, digits


# What training makes of the gradient: what its course is called, and how its numbers are written.
_COURSES = {
    "log10_gradient": ("log10 |dL/dp|", ".2f"),
    "clip_factor": ("clipped to", ".4g"),
    "tbptt_bias": ("bias", ".4g"),
    "masked_log10_norm": ("log10 masked", ".2f"),
    "masked_horizon": ("masked horizon", "g"),
}


def _broken(check: Check) -> RenderableType:
    """A line below a row on a budget of it that is on, and not kept."""
    style = OUTCOMES["warning" if check.outcome == "warning" else "BROKEN"]
    said = check.sentence if check.outcome == "unmeasured" else f"{check.outcome}: {check.sentence}"
    first, colon, rest = said.partition(": ")
    return Padding(Text.assemble((first, style), colon, rest), (0, 0, 0, 2))


def _total(columns: Sequence[Column]) -> int:
    return sum(one.width + 1 for one in (*columns, _LAST))


def _fit(name: str, width: int, terminal: Terminal) -> str:
    """The end of a name that is too long, without its suffix: there it has its number."""
    if len(name) <= width:
        return name
    stem = os.path.splitext(name)[0]  # noqa: PTH122
    mark = "…" if terminal.unicode else "~"
    return mark + stem[max(0, len(stem) - width + 1) :]


def _relative(names: Sequence[str]) -> bool:
    """Whether all of them are in one folder, which need not be said with each."""
    folders = {os.path.dirname(name) for name in names}  # noqa: PTH120
    return len(folders) == 1 and "" not in folders
