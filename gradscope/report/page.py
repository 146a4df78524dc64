"""What every table is made of: headings, sections, sentences, and the page they stand on."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gradscope.errors import shown
from gradscope.report.terminal import Terminal

# Padding at the end of a line, before the codes that end its colours.
_TRAILING = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$", re.MULTILINE)


def page(parts: Iterable[RenderableType], terminal: Terminal) -> str:
    """The parts below one another, as text for this terminal."""
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=terminal.width,
        force_terminal=terminal.color,
        color_system="standard" if terminal.color else None,
        no_color=not terminal.color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        _environ={},  # the terminal is already known
    )
    for part in parts:
        console.print(part)
    text = _TRAILING.sub(r"\1", stream.getvalue())
    return text if terminal.unicode else text.translate(str.maketrans("•─", "*-"))


def bullet(sentence: str) -> RenderableType:
    """A sentence with a mark before it."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(" •", Text(shown(sentence)))
    return grid


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
