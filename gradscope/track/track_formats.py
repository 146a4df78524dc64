"""Rows as text, one by one as they come: a table, a JSON object a line, or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Protocol

from gradscope.report.terminal import Terminal
from gradscope.rows.journal import Row

FORMATS_OF_ROWS = ("table", "jsonl", "csv")
_COLUMNS = (
    *("checkpoint", "log10_norm", "log10_norm_error", "rate", "horizon", "log10_largest_gain", "saturated"),
    *("verdict", "error"),
)


class RowWriter(Protocol):
    """What makes text of rows, in this order."""

    def head(self, said: str) -> str:
        """Before all of them; said : what they are of."""

    def line(self, row: Row) -> str:
        """Of one."""

    def foot(self, rows: Sequence[Row]) -> str:
        """After all of them."""


def row_writer(name: str, checkpoints: Sequence[str], terminal: Terminal, *, light: bool) -> RowWriter:
    """What writes the format of this name."""
    if name == "jsonl":
        return JsonLines()
    if name == "csv":
        return CsvLines()
    from gradscope.track.track_table import TrackTable

    return TrackTable(checkpoints, terminal, light=light)


class JsonLines:
    """A JSON object a line."""

    def head(self, said: str) -> str:
        """Nothing."""
        return ""

    def line(self, row: Row) -> str:
        """The row as it is."""
        return json.dumps(row, allow_nan=False) + "\n"

    def foot(self, rows: Sequence[Row]) -> str:
        """Nothing."""
        return ""


class CsvLines:
    """A line of headings, and a line a row (RFC 4180, but lines end as text does)."""

    def head(self, said: str) -> str:
        """The headings."""
        return _csv(_COLUMNS)

    def line(self, row: Row) -> str:
        """What of the row is one number or one text."""
        return _csv([row.get(name) for name in _COLUMNS])

    def foot(self, rows: Sequence[Row]) -> str:
        """Nothing."""
        return ""


def _csv(cells: Sequence[object]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()
