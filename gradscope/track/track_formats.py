"""Rows as text: a table, JSON lines and CSV one by one as they come, any other format when all are there."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gradscope.errors import shown
from gradscope.report.json import strict
from gradscope.report.markdown import as_markdown, bullets, markdown_table, sections
from gradscope.report.row_training import value_of
from gradscope.report.views import Look, render
from gradscope.rows.journal import Row
from gradscope.track.track_table import TrackTable, table_of_rows
from gradscope.track.tracked import Track, checks_in

_NUMBERS = ("log10_norm", "log10_norm_error", "rate", "horizon", "log10_largest_gain", "saturated")


class RowWriter(Protocol):
    """What makes text of rows, in this order."""

    def head(self, said: str) -> str:
        """Before all of them; said : what they are of."""

    def line(self, row: Row) -> str:
        """Of one."""

    def foot(self, rows: Sequence[Row]) -> str:
        """After all of them."""


def row_writer(name: str, checkpoints: Sequence[str], look: Look, whole: Track) -> RowWriter:
    """What writes the format of this name; whole : what the rows are to be part of."""
    if name == "table":
        return TrackTable(checkpoints, look.terminal, light=whole.light, training=whole.training)
    if name == "jsonl":
        return JsonLines()
    return CsvLines(whole.training) if name == "csv" else Whole(name, look, whole)


@dataclass(frozen=True)
class Whole:
    """A format of a result, for which all rows have to be there."""

    name: str
    look: Look
    whole: Track

    def head(self, said: str) -> str:
        """Nothing."""
        return ""

    def line(self, row: Row) -> str:
        """Nothing."""
        return ""

    def foot(self, rows: Sequence[Row]) -> str:
        """All of them."""
        return render(self.whole.of(rows), self.name, self.look)


class JsonLines:
    """A JSON object a line."""

    def head(self, said: str) -> str:
        """Nothing."""
        return ""

    def line(self, row: Row) -> str:
        """The row as it is."""
        return strict(row)

    def foot(self, rows: Sequence[Row]) -> str:
        """Nothing."""
        return ""


@dataclass(frozen=True)
class CsvLines:
    """A line of headings, and a line a row (RFC 4180, but lines end as text does).

    training : the columns of training that there are, see ``report.row_training``.
    """

    training: Sequence[str] = ()

    def head(self, said: str) -> str:
        """The headings."""
        return _csv(["checkpoint", *_NUMBERS, *self.training, "verdict", "error"])

    def line(self, row: Row) -> str:
        """What of the row is one number or one text."""
        training = [value_of(row, name) for name in self.training]
        numbers = [row.get(name) for name in _NUMBERS]
        return _csv([row["checkpoint"], *numbers, *training, row.get("verdict"), row.get("error")])

    def foot(self, rows: Sequence[Row]) -> str:
        """Nothing."""
        return ""


def _csv(cells: Sequence[object]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()


# -- of all rows at once -----------------------------------------------------------------------------


def _written(track: Track, name: str, look: Look) -> str:
    writer = row_writer(name, [row["checkpoint"] for row in track.rows], look, track)
    return writer.head(track.subject) + "".join(map(writer.line, track.rows)) + writer.foot(track.rows)


def track_table(track: Track, look: Look) -> str:
    """The table that otherwise grows."""
    return _written(track, "table", look)


def track_jsonl(track: Track, look: Look) -> str:
    """A row a line."""
    return _written(track, "jsonl", look)


def track_html(track: Track, look: Look) -> str:
    """The page with the picture of training and the exact numbers."""
    from gradscope.report.rows_page import rows_page

    return rows_page(track.rows, look.origin)


def track_csv(track: Track, look: Look) -> str:
    """What of each row is one number or one text."""
    return _written(track, "csv", look)


def track_markdown(track: Track, look: Look) -> str:
    """The headline, what is not kept, and a line per checkpoint."""
    word, _, rest = track.headline.partition(": ")
    said = [
        f"{row['checkpoint']}: {one.sentence}"
        for row in track.rows
        for one in checks_in(row)
        if one.outcome in ("error", "warning", "unmeasured") or one.open
    ]
    said += [f"{row['checkpoint']}: {row['error']}" for row in track.rows if row.get("error")]
    names = {"checkpoint": [shown(row["checkpoint"]) for row in track.rows]}
    table = markdown_table(names | table_of_rows(track.rows, light=track.light, training=track.training))
    return sections(f"**{word}**: {as_markdown(rest)}\n", bullets(said), table)
