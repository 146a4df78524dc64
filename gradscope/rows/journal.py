"""Rows in a file that only grows: one JSON object a line, whatever ends the process that writes them.

A row is known by its ``key``, the content of what it is about, and by the name that this had; ``index`` is
its place in the whole work, of which there are ``of``. A line that was torn when its process was killed is no
row; what it was about is measured again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradscope.errors import InputError, about, quoted, shown
from gradscope.rows.sound import check_fields, finite_number

Row = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of rows.

    subject : the field that names what each is about; many : what several of these are called; of_one :
    whether all of them make one result: a row that has another place in it by now is written again.
    """

    subject: str
    many: str
    of_one: bool = False


# What rows say that they are.
TRACK, CHECK, SWEEP = "gradscope/track/1", "gradscope/check/1", "gradscope/sweep/1"
KINDS: Mapping[str, Kind] = {
    TRACK: Kind("checkpoint", "checkpoints"),
    CHECK: Kind("analysis", "analyses", of_one=True),
    SWEEP: Kind("point", "points"),
}
_ROW_BYTES = 2**20
_AS_IT_IS = getattr(os, "O_BINARY", 0)  # of Windows, which would end lines in its own way
_NUMBERS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Journal:
    """What a file holds.

    rows : those that are whole, in the order of their lines; torn : how many lines are not.
    """

    path: Path
    rows: list[Row] = field(default_factory=list)
    torn: int = 0

    @classmethod
    def read(cls, path: Path, schema: str | None = None) -> Journal:
        """From a file, or none at all; raises InputError for a file of something else.

        schema : what its rows are to be, anything known where that is None.
        """
        found = cls(path)
        with about(path):
            try:
                with path.open("rb") as file:
                    lines = list(iter(lambda: file.readline(_ROW_BYTES + 1), b""))
            except FileNotFoundError:
                return found
            except OSError as error:
                raise InputError(f"{error.strerror}, expected rows ({_expected(schema)})") from error
            rows = [_row(line, number, schema) for number, line in enumerate(lines, 1)]
        whole = [row for row in rows if row is not None]
        return cls(path, whole, len(rows) - len(whole))

    def append(self, row: Row) -> None:
        """Write a row at once; after a torn line on a line of its own. Raises OSError."""
        line = json.dumps(row, allow_nan=False).encode("ascii") + b"\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _AS_IT_IS, 0o666)
        try:
            if not _ends_a_line(self.path):
                line = b"\n" + line
            while line:  # a signal, or a disk that is nearly full, may end a call early
                line = line[os.write(descriptor, line) :]
        finally:
            os.close(descriptor)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if not (size := file.seek(0, os.SEEK_END)):
            return True
        file.seek(size - 1)
        return file.read(1) == b"\n"


def _row(line: bytes, number: int, schema: str | None) -> Row | None:
    """The row of a line; None where it is torn."""
    if len(line) > _ROW_BYTES:
        raise InputError(f"line {number} is over 1 MiB, expected a row ({_expected(schema)})")
    try:
        row = json.loads(line, parse_constant=finite_number, parse_float=finite_number)
    except InputError as error:
        raise InputError(f"line {number}: {error.marked}") from error
    except (ValueError, RecursionError):
        return None
    said = row.get("schema") if isinstance(row, dict) else None
    if row_subject(row) is None or schema not in (None, said):
        what = said if isinstance(row, dict) else row
        whole = isinstance(row, dict) and "rows" in row
        way = ": as one object they are no lines, write them by -o or --format jsonl" if whole else ""
        raise InputError(f"line {number} is {quoted(what)}, expected a row ({_expected(schema)}){way}")
    found: Row = row
    with about(f"line {number}"):
        check_fields(found)
        if said == SWEEP and not isinstance(found.get("settings"), dict):
            raise InputError("has no settings, expected a value for every axis: gradscope wrote no such row")
    return found


def _expected(schema: str | None) -> str:
    return schema or " or ".join(KINDS)


def row_subject(row: Any) -> str | None:
    """The name of what a row is about; None of what is no row."""
    kind = KINDS.get(str(row.get("schema"))) if isinstance(row, Mapping) else None
    name = row.get(kind.subject) if kind else None
    return name if isinstance(name, str) else None


def deduplicated(rows: Iterable[Row]) -> list[Row]:
    """Each once, the last that was written, in the order of the work; an error only where nothing came after.

    Rows of the same checkpoint with other content, options or version are others.
    """
    found: dict[tuple[Any, str | None], Row] = {}
    for row in rows:
        found[row.get("key"), row_subject(row)] = row
    measured = {row_subject(row) for row in found.values() if not failed(row)}
    left = [row for row in found.values() if not (failed(row) and row_subject(row) in measured)]
    return sorted(left, key=_place)


def the_only(journals: Iterable[Journal]) -> list[Row]:
    """Of rows that make one result: of each subject the last of its file, in order.

    Raises InputError where files hold rows of one subject that were asked in two ways, as from shards of an
    older call, or where they are not of one whole: which of them counts nobody can say.
    """
    found: dict[str | None, tuple[Row, Path]] = {}
    for journal in journals:
        for subject, row in {row_subject(row): row for row in journal.rows}.items():
            other, path = found.get(subject, (row, journal.path))
            if failed(row) and not failed(other):
                continue
            if other.get("key") != row.get("key") and not failed(other):
                where = f"{quoted(subject)} is in {shown(path)} and in {shown(journal.path)}"
                raise InputError(
                    f"{where}, with other options or another version: remove the older file, or call both "
                    "shards again"
                )
            found[subject] = row, journal.path
    totals = sorted({str(row.get("of")) for row, _ in found.values()})
    if len(totals) > 1:
        raise InputError(
            f"rows are of {' and of '.join(totals)} in all: call every shard again, what is unchanged is kept"
        )
    return sorted((row for row, _ in found.values()), key=_place)


def failed(row: Row) -> bool:
    """Whether what it is about could not be measured."""
    return isinstance(row.get("error"), str)


def _place(row: Row) -> tuple[int, list[tuple[int, str]]]:
    place = row.get("index")
    return (place if isinstance(place, int) else 0), natural(str(row_subject(row)))


def natural(name: str) -> list[tuple[int, str]]:
    """A name as people order it: its numbers by size."""
    parts = _NUMBERS.split(name)
    return [
        (int(part), "") if part.isdecimal() and number % 2 else (-1, part)
        for number, part in enumerate(parts)
    ]


def missing(rows: Iterable[Mapping[str, Any]]) -> tuple[list[int], int] | None:
    """The places that no row has, and how many there should be; None where rows do not agree on that."""
    rows = list(rows)
    totals = {row.get("of") for row in rows}
    if len(totals) != 1 or not isinstance(total := totals.pop(), int) or not 0 < total < 10**7:
        return None
    there = {row.get("index") for row in rows}
    return [place for place in range(total) if place not in there], total
