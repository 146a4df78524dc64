"""What every table is made of: headings, sections, sentences, and the page they stand on."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gradscope.errors import shown
from gradscope.report.terminal import Terminal

# Characters of a line of prose.
_LINE = 100
# Padding at the end of a line, and the codes of colours in it.
_CODE = re.compile(r"\x1b\[[0-9;]*m")
_TRAILING = re.compile(r"(?: |\x1b\[[0-9;]*m)+$", re.MULTILINE)


def page(parts: Iterable[RenderableType], terminal: Terminal) -> str:
    """The parts below one another, as text for this terminal."""
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=terminal.width,
        force_terminal=terminal.color,
        color_system="256" if terminal.color else None,
        no_color=not terminal.color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        _environ={},  # the terminal is already known
    )
    for part in parts:
        console.print(part)
    text = _TRAILING.sub(lambda end: "".join(_CODE.findall(end[0])), stream.getvalue())
    return text if terminal.unicode else text.translate(str.maketrans("•─┴▲", "*-+^"))


def prose(text: RenderableType) -> RenderableType:
    """Lines no longer than are read with ease, however wide the terminal."""
    return Constrain(text, _LINE)


def bullet(sentence: str) -> RenderableType:
    """A sentence with a mark before it."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(" •", Text(shown(sentence)))
    return prose(grid)


def note(sentence: str) -> RenderableType:
    """What is said of a table below it."""
    return prose(Text(sentence, style="dim"))


def not_applied(sentence: str) -> str:
    """What a model does besides, as every table says it."""
    return f"Not applied: {shown(sentence)}"


def assumed(sentence: str) -> str:
    """What the file leaves out and was taken to be so, as every table says it."""
    return f"Assumed: {shown(sentence)}"


def magnitude(value: float | None) -> str:
    """A norm or a radius of ``recurrent_matrices``."""
    if value is None:
        return "-"
    if math.isnan(value):
        return "not computed"
    if math.isinf(value):
        return "above 1e308"
    return f"{value:.4f}" if value < 1e6 else f"{value:.4e}"


def section(title: str, body: RenderableType) -> RenderableType:
    """A heading, and what stands under it."""
    grid = Table.grid()
    grid.add_row("")
    grid.add_row(Text(title, style="bold"))
    grid.add_row(Padding(body, (0, 0, 0, 1)))
    return grid


def headed(*columns: str) -> Table:
    """An empty table with these headings, the first column to the left."""
    made = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="dim",
    )
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left", overflow="fold")
    return made


# Characters of a line that a name has at least, where it does not fit.
_NAME = 10


def fitted(
    columns: dict[str, list[str]],
    terminal: Terminal,
    *,
    folds: str,
    dispensable: Sequence[str],
    styles: Mapping[str, str],
) -> RenderableType:
    """A table of those columns that fit, and which do not.

    columns : {heading: its cells}; those that do not fit leave it, in the order of ``dispensable``. Headings
        of two words are broken before one goes, and names under ``folds`` may take several lines.
    styles : of cells under "verdict".
    """
    left_out = []
    broken = _width(columns, folds) > terminal.width
    for name in dispensable:
        if _width(columns, folds, broken=broken) <= terminal.width:
            break
        left_out += [name] * (columns.pop(name, None) is not None)
    table = headed(*(name.replace(" ", "\n") if broken else name for name in columns))
    for name, column in zip(columns, table.columns, strict=True):
        column.no_wrap = name != folds
    for cells in zip(*columns.values(), strict=True):
        styled = [
            styles.get(cell, "") * (name == "verdict") for name, cell in zip(columns, cells, strict=True)
        ]
        table.add_row(*map(Text, cells, styled))
    return Group(table, note(f"no room for: {', '.join(left_out)}")) if left_out else table


def _width(columns: Mapping[str, Sequence[str]], folds: str, *, broken: bool = False) -> int:
    """Characters a table of these columns takes at least, with its indent and the gaps between."""
    headings = {name: name.split() if broken else [name] for name in columns}
    widths = {name: max(map(len, [*headings[name], *cells])) for name, cells in columns.items()}
    return sum(min(width, _NAME) + 2 if name == folds else width + 2 for name, width in widths.items())
