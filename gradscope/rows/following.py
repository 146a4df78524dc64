"""Pieces of work one after another, each done unless a row of it is there already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from gradscope.errors import InputError
from gradscope.rows.journal import KINDS, Kind, Row, failed, row_subject
from gradscope.version import __version__


class Piece(Protocol):
    """Of the work: what becomes a row."""

    @property
    def name(self) -> str:
        """What it is about."""

    def key(self) -> str:
        """By which its row is known again, such as ``rows.keys.key_of``; raises InputError."""

    def measure(self) -> Row:
        """What its row says besides its name and place; raises InputError."""

    def unmeasured(self, error: InputError) -> Row:
        """What its row says where that cannot be, with a text under "error"."""


def follow(
    work: Sequence[tuple[int, Piece]], of: int, schema: str, known: Sequence[Row]
) -> Iterator[tuple[Row, bool]]:
    """A row for each (place, piece) of ``of``, in this order, and whether it is to be written down.

    known : rows of earlier; of the same key they are kept, under another name too.
    """
    sound = [row for row in known if row.get("key") and not failed(row)]
    found = {row["key"]: row for row in sound}
    last = {row_subject(row): row for row in sound}
    kind = KINDS[schema]
    for index, piece in work:
        about: Row = {"schema": schema, "gradscope": __version__, kind.subject: piece.name}
        about |= {"index": index, "of": of}
        key = None
        try:
            key = piece.key()
            kept = found.get(key)
            measured = piece.measure() if kept is None else kept
        except InputError as error:
            kept, measured = None, piece.unmeasured(error)
        row = {**about, "key": key, **{name: one for name, one in measured.items() if name not in about}}
        if key and not failed(row):
            found[key] = row
        # Of what was asked in turns the last row is to be the one that counts.
        yield row, kept is None or not _stands(last.get(piece.name), row, kind)
        last[piece.name] = row


def _stands(old: Row | None, new: Row, kind: Kind) -> bool:
    """Whether a row need not be written again."""
    names = ("key", "index", "of") if kind.of_one else ("key",)
    return old is not None and all(old.get(name) == new[name] for name in names)
