"""A grid in the terminal: a diagram of characters, legible without colours, or a line for every point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from gradscope.custom_types import Array
from gradscope.errors import counted, shown
from gradscope.grid.curve_view import drawn
from gradscope.grid.sweep import Sweep
from gradscope.report.gain_words import gain_in_row, number_in
from gradscope.report.json import strict
from gradscope.report.page import bullet, fitted, note, page, prose, section
from gradscope.report.phase import MOST_PHASES, RATE, Phase, phases, shown_quantity
from gradscope.report.row_training import said_in_column, said_of_column, training_columns
from gradscope.report.table import STYLES
from gradscope.report.terminal import Terminal
from gradscope.report.verdict import scientific
from gradscope.report.views import Look
from gradscope.rows.journal import Row, failed

# By verdict and, between the thresholds, by whether the gain is below 1.
_SIGNS = {"exploding": "#", "vanishing": ".", "undecided": "?", "": "x"}
_GROWS, _SHRINKS = "+", "-"
_SAID = {
    "#": "exploding",
    "+": "stable, gain 1 or more",
    "-": "stable, gain below 1",
    ".": "vanishing",
    "?": "undecided",
    "x": "not measured",
}
# Beside a place, and below it, where the rate changes its sign: measured, by theory, both.
_UPRIGHT, _FLAT = (" ", "│", "┊", "┃"), (" ", "─", "┄", "━")
_ASCII_UPRIGHT, _ASCII_FLAT = (" ", "|", ":", "!"), (" ", "-", "~", "=")
_ZERO = ("", "measured", "by mean-field theory, of infinitely many units and steps", "both")
# Characters of a place, at most.
_WIDEST = 7
# Points that are listed one by one; reasons that are told.
_LISTED, _REASONS = 48, 3


def render_sweep(sweep: Sweep, look: Look) -> str:
    """The phase diagrams, or the points, and what there is to say of all."""
    rows = sweep.points
    found = phases(rows)
    parts = [prose(Text(_headline(sweep)))]
    if look.verdict_only:
        return page(parts, look.terminal)
    flat = found and found[0].y and len(found) <= MOST_PHASES
    for phase in found if flat else ():
        parts.append(section(_title(phase), _diagram(phase, look.terminal)))
    if flat:
        parts += _legend(found, look.terminal)
    else:
        if found and not found[0].y and (curves := drawn(found, look.terminal)):
            heading = f"{found[0].quantity.words}, {shown(found[0].x)} to the right{_medians(found[0])}"
            parts.append(section(heading, curves))
        parts.append(section("Points", _listed(rows, look.terminal)))
    parts += map(bullet, _sentences(rows))
    return page(parts, look.terminal)


def _headline(sweep: Sweep) -> str:
    subjects = dict.fromkeys(str(row["subject"]) for row in sweep.points if row.get("subject"))
    counts = Counter(str(row.get("verdict")) for row in sweep.points if not failed(row))
    told = [f"{count} {level}" for level, count in counts.most_common()]
    lost = sum(map(failed, sweep.points))
    told += [f"{lost} not measured"] * bool(lost)
    of = f" of {next(iter(subjects))}" if len(subjects) == 1 else ""
    return f"{counted(len(sweep.points), 'point')}{of}: {', '.join(told)}"


def _title(phase: Phase) -> str:
    seeds = _medians(phase)
    at = f", {shown(phase.title)}" if phase.title else ""
    what = "log10 gain" if phase.quantity.is_rate else phase.quantity.words
    masks = " under masks" if phase.quantity.part == "masks" else ""
    return f"{what}{masks}, {shown(phase.x)} to the right, {shown(phase.y)} upwards{at}{seeds}"


def _medians(phase: Phase) -> str:
    return f", medians of {phase.of} seeds" if phase.of > 1 else ""


def _sentences(rows: Sequence[Row]) -> Iterator[str]:
    """Which point is nearest to a rate of zero, and why some could not be measured."""
    known = [row for row in rows if None not in map(row.get, ("rate", "log10_norm", "horizon"))]
    if known and shown_quantity(rows) == RATE:
        best = min(known, key=lambda row: abs(row["rate"]))
        theory = best.get("theory_rate")
        expected = f", theory {theory:+.4f}" if isinstance(theory, int | float) else ""
        yield (
            f"Nearest to a rate of zero: {best['point']}, gain {scientific(best['log10_norm'])}, rate "
            f"{best['rate']:+.4f} nats per step{expected}, horizon {best['horizon']:g}."
        )
    reasons = Counter(str(row["error"]) for row in rows if failed(row))
    for reason, count in reasons.most_common(_REASONS):
        first = next(row for row in rows if row.get("error") == reason)
        yield f"Not measured: {count} of {len(rows)}, first {first['point']}: {reason}."


# -- the diagram ---------------------------------------------------------------------------------------


def _diagram(phase: Phase, terminal: Terminal) -> Text:
    """A row for every value of y, the highest first; below them the values of x."""
    label, columns, wide = _places(phase, terminal)
    cells = [[_cell(phase, i, j, wide) for j in columns] for i in range(len(phase.ys))]
    signs = _signs(phase, columns)
    upright, flat = (_UPRIGHT, _FLAT) if terminal.unicode else (_ASCII_UPRIGHT, _ASCII_FLAT)
    text = Text(no_wrap=True)
    for i in reversed(range(len(phase.ys))):
        text.append(f"{_label(phase.ys[i]):>{label}} ")
        crossed = _crossed([one[i, :-1] for one in signs], [one[i, 1:] for one in signs])
        for j, (cell, style) in enumerate(cells[i]):
            text.append(cell.rjust(wide - (wide > 1)), style=style)
            if wide > 1:
                text.append(upright[crossed[j]] if j < len(crossed) else " ")
        text.append("\n")
        below = _crossed([one[i] for one in signs], [one[i - 1] for one in signs]) if i else []
        if any(below):
            text.append(" " * (label + 1) + "".join(flat[mark] * wide for mark in below) + "\n")
    return text.append(_below(phase, columns, label, wide))


def _places(phase: Phase, terminal: Terminal) -> tuple[int, Array, int]:
    """Characters of a number on the left, the columns that are shown, and characters of a place."""
    label = max(len(_label(y)) for y in phase.ys)
    room = terminal.width - label - 3
    columns = np.arange(0, len(phase.xs), -(-len(phase.xs) // max(room, 1)))
    return label, columns, int(np.clip(room // len(columns), 1, _WIDEST))


def _label(value: float) -> str:
    return f"{value:.4g}"


def _cell(phase: Phase, i: int, j: int, wide: int) -> tuple[str, str]:
    """What stands at a place, and its style: a number where there is room for one, else a sign."""
    level, gain = str(phase.level[i, j]), float(phase.log10_norm[i, j])
    style = STYLES.get(level, "red")
    if not phase.quantity.is_rate:
        return _part(float(phase.value[i, j]), wide), ""
    if np.isfinite(gain):
        for text in (f"{gain:+.1f}", f"{gain:+.0f}"):
            if len(text) < wide and wide > 3:
                return text, style
    if level == "stable":
        return (_SHRINKS if gain < 0 else _GROWS), style
    return _SIGNS.get(level, "?"), style


def _part(value: float, wide: int) -> str:
    """A part of 1: with its decimals, or in tenths."""
    if not np.isfinite(value):
        return _SIGNS[""]
    for text in (f"{value:.3f}", f"{value:.2f}"):
        if len(text) < wide:
            return text
    return str(min(int(10 * value), 9))


def _signs(phase: Phase, columns: Array) -> list[Array]:
    """Of the rate as measured and by theory: -1 below zero, 1 from zero on, 0 where nothing is known."""
    lined = (phase.value if phase.quantity.is_rate else phase.theory, phase.theory)
    return [np.where(np.isnan(rate), 0, np.where(rate < 0, -1, 1))[:, columns] for rate in lined]


def _crossed(one: Sequence[Array], other: Sequence[Array]) -> list[int]:
    """1 where what was measured changes its sign, 2 where theory's does, 3 where both do."""
    changes = [a * b < 0 for a, b in zip(one, other, strict=True)]
    return [int(mark) for mark in changes[0] + 2 * changes[1]]


def _below(phase: Phase, columns: Array, label: int, wide: int) -> str:
    """The values of x below their places, as many as fit, each at its right end."""
    line = ""
    for place, column in enumerate(columns):
        text, end = _label(phase.xs[column]), label + 1 + (place + 1) * wide - (wide > 1)
        start = max(end - len(text), 0)
        if not line or start > len(line):
            line = line.ljust(start) + text
    return line


def _legend(found: Sequence[Phase], terminal: Terminal) -> Iterator[RenderableType]:
    used = {
        _cell(phase, i, j, _places(phase, terminal)[2])[0]
        for phase in found
        for i, j in np.ndindex(phase.value.shape)
    }
    if signs := [f"{sign} {said}" for sign, said in _SAID.items() if sign in used]:
        yield note("; ".join(signs))
    if not found[0].quantity.is_rate:
        if any(len(sign) == 1 and sign.isdigit() for sign in used):
            yield note("digits: tenths, 9 also what is more")
        return
    upright, flat = (_UPRIGHT, _FLAT) if terminal.unicode else (_ASCII_UPRIGHT, _ASCII_FLAT)
    drawn = sorted({mark for phase in found for mark in _marks(phase, _places(phase, terminal)[1])})
    if marks := [f"{upright[mark]} {flat[mark]} {_ZERO[mark]}" for mark in drawn]:
        yield note("the rate is zero: " + "; ".join(marks))


def _marks(phase: Phase, columns: Array) -> set[int]:
    """Those of ``_crossed`` that are beside its places, or between its rows."""
    signs = _signs(phase, columns)
    beside = _crossed([one[:, :-1].ravel() for one in signs], [one[:, 1:].ravel() for one in signs])
    between = _crossed([one[1:].ravel() for one in signs], [one[:-1].ravel() for one in signs])
    return {*beside, *between} - {0}


# -- one by one --------------------------------------------------------------------------------------


def _listed(rows: Sequence[Row], terminal: Terminal) -> RenderableType:
    some = [rows[k] for k in np.unique(np.linspace(0, len(rows) - 1, _LISTED).round().astype(int))]
    columns = {"point": [shown(row["point"]) for row in some]}
    columns["gain"] = [gain_in_row(row) for row in some]
    columns["rate"] = [number_in(row, "rate", "+.4f") for row in some]
    if any(isinstance(row.get("theory_rate"), int | float) for row in some):
        columns["theory"] = [number_in(row, "theory_rate", "+.4f") for row in some]
    columns["horizon"] = [number_in(row, "horizon", "g") for row in some]
    for name, values in training_columns(some).items():
        columns[said_of_column(name)] = [said_in_column(name, value) for value in values]
    columns["verdict"] = [str(row.get("verdict") or "not measured") for row in some]
    left = ("theory", "masked rate", "masked verdict", "masked horizon", "horizon", "rate")
    return fitted(columns, terminal, folds="point", dispensable=left, styles=STYLES)


def markdown_of(sweep: Sweep, look: Look) -> str:
    """A table for a comment: a line for every point."""
    told: Iterable[dict[str, Any]] = sweep.rows()
    names = [*sweep.axes, "log10_norm", "rate", "theory_rate", "horizon"]
    names += [*training_columns(sweep.points), "verdict"]
    lines = [f"**{_headline(sweep)}**", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in told:
        cells = [row["error"] if name == "verdict" and row["error"] else row[name] for name in names]
        lines.append(f"| {' | '.join(_plain(cell) for cell in cells)} |")
    return "\n".join([*lines, "", *_sentences(sweep.points)]) + "\n"


def _plain(cell: Any) -> str:
    text = "" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else shown(cell)
    return text.replace("|", "\\|").replace("<", "&lt;")


def html_of(sweep: Sweep, look: Look) -> str:
    """The page with the diagram and the exact numbers."""
    from gradscope.report.rows_page import rows_page

    return rows_page(sweep.points, look.origin)


def jsonl_of(sweep: Sweep, look: Look) -> str:
    """The rows as they are."""
    return "".join(map(strict, sweep.points))
