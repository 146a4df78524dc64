"""A result as rows of the same columns: a JSON object a line, or CSV."""

from __future__ import annotations

import csv
import io
from typing import Any, Protocol

from gradscope.report.analysis import Analysis
from gradscope.report.json import strict
from gradscope.report.numbers import json_number, rows
from gradscope.report.views import Look


class Rows(Protocol):
    """A result that is rows."""

    def rows(self) -> list[dict[str, Any]]:
        """{column: value}, of all the same columns."""


def render_jsonl(result: Analysis | Rows, look: Look) -> str:
    """A JSON object a line; what is not finite is null."""
    return "".join(strict(_finite(row)) for row in _rows(result))


def render_csv(result: Analysis | Rows, look: Look) -> str:
    """A line of headings, and a line a row (RFC 4180, but lines end as text does); what is None is empty."""
    told = _rows(result)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(told[0]) if told else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(told)
    return stream.getvalue()


def _rows(result: Analysis | Rows) -> list[dict[str, Any]]:
    return rows(result) if isinstance(result, Analysis) else result.rows()


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {name: json_number(value) for name, value in row.items()}
