"""Norms by lag, as lines of blocks on one scale."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from rich.table import Table
from rich.text import Text

from gradscope.custom_types import Array
from gradscope.report.terminal import Terminal
from gradscope.report.verdict import scientific

_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.,-=+*#"


def by_lag(rows: Mapping[str, tuple[Array, Array]], steps: int, terminal: Terminal) -> Table:
    """A line for each name: its first lag and value, blocks, its last value and lag.

    rows : {name, or "": lags (L,), the last of which is ``steps``, and log10 of the norms at them}.
    """
    labels = [
        [name, f"lag {lags[0]}", scientific(float(norms[0])), scientific(float(norms[-1])), f"lag {steps}"]
        for name, (lags, norms) in rows.items()
    ]
    taken = sum(max(map(len, column)) for column in zip(*labels, strict=True)) + any(rows)
    width = max(min(terminal.width - taken - 6, steps, 100), 1)
    shown = 1 + np.linspace(0, steps - 1, width).round()
    lines = _sparkline(np.concatenate([_at(shown, *row) for row in rows.values()]), terminal)
    grid = Table.grid(padding=(0, 1))
    for _ in range(5 + any(rows)):
        grid.add_column(no_wrap=True)
    for number, (name, lag, first, *last) in enumerate(labels):
        line = Text(lines[number * width : (number + 1) * width], style="cyan")
        grid.add_row(*[name] * any(rows), lag, first, line, *last)
    return grid


def _at(shown: Array, lags: Array, norms: Array) -> Array:
    """Norms at the lags shown: between two that are known, the one before."""
    found: Array = norms[np.maximum(np.searchsorted(lags, shown, side="right") - 1, 0)]
    return found


def _sparkline(values: Array, terminal: Terminal) -> str:
    blocks = _BLOCKS if terminal.unicode else _ASCII_BLOCKS
    finite = values[np.isfinite(values)]
    if not len(finite):
        return " " * len(values)
    low, span = finite.min(), np.ptp(finite)
    if span < 1e-9:
        return "".join(blocks[len(blocks) // 2] if np.isfinite(v) else " " for v in values)
    ranks = (values - low) / span * (len(blocks) - 1)
    return "".join(blocks[round(rank)] if np.isfinite(rank) else " " for rank in ranks.tolist())
